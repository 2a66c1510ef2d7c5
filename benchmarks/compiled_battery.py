"""Compiled steps against eager ones, for the losses and guides of this package.

``python benchmarks/compiled_battery.py`` takes 200 steps of each pair twice from one seed, eager
and compiled, in both precisions, and prints the largest relative difference of a loss. Where it is
over the tolerance, the eager steps are taken again from parameters moved by one rounding: some
flows make a large difference of the smallest in 200 steps. Without ``--all`` each loss meets two
guides and each guide two losses. With ``--record`` steps are recorded, not compiled, and no
difference is allowed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from tqdm.auto import tqdm

import pyro_ext as px

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
ROWS = [[0.3, -1.0], [1.2, 0.4], [-0.5, 0.9], [2.0, 0.0], [0.1, 0.1], [1.0, -2.0]]

LOSSES: dict[str, Callable[[], Any]] = {
    "ELBO": lambda: px.ELBO(2),
    "ELBO kl": lambda: px.ELBO(2, form="kl"),
    "ELBO entropy": lambda: px.ELBO(2, form="entropy"),
    "ELBO stl": lambda: px.ELBO(2, estimator="stl"),
    "ELBO score": lambda: px.ELBO(2, estimator="score"),
    "IWAE": lambda: px.IWAE(3),
    "IWAE dreg": lambda: px.IWAE(3, estimator="dreg"),
    "IWAE stl": lambda: px.IWAE(3, estimator="stl"),
    "IWAE vimco": lambda: px.IWAE(3, estimator="vimco"),
    "MIWAE dreg": lambda: px.MIWAE(2, 3, estimator="dreg"),
    "CIWAE": lambda: px.CIWAE(3, beta=0.3),
    "Renyi": lambda: px.Renyi(3, alpha=0.5),
    "PIWAE": lambda: px.PIWAE(2, 3),
    "CUBO": lambda: px.CUBO(3),
    "JackknifeIWAE": lambda: px.JackknifeIWAE(3),
    "WakeSleep": lambda: px.WakeSleep(3),
}

FAMILIES: dict[str, Callable[[], px.Family]] = {
    "diagonal": px.Diagonal,
    "full covariance": px.FullCovariance,
    "low rank": lambda: px.LowRank(rank=1),
    "Householder": lambda: px.Householder(num_reflections=2),
    "NSF": lambda: px.Flow("nsf", hidden=(8,)),
    "planar": lambda: px.Flow("planar"),
}


def model(x):
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z + shift.unsqueeze(-1)
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


SOURCES: dict[str, Callable[[px.Family], Any]] = {
    "joint": lambda family: px.AutoJoint(model, family=family),
    "per datapoint": lambda family: px.AutoPerDatapoint(model, family=family),
    "amortized": lambda family: px.AutoAmortized(model, nn.Linear(2, 4), family=family),
    "semi-amortized": lambda family: px.AutoSemiAmortized(model, nn.Linear(2, 4), family=family),
}


def pairs(*, everything: bool) -> Iterator[tuple[str, str, str]]:
    """Yield names of source, family and loss."""
    for source, family, loss in product(SOURCES, FAMILIES, LOSSES):
        guide_counts = (source, family) in (
            ("joint", "full covariance"),
            ("amortized", "diagonal"),
        )
        if everything or guide_counts or loss in ("ELBO", "IWAE dreg"):
            yield source, family, loss


def losses_of(
    source: str, family: str, loss: str, *, compile: bool | str, moved: bool = False
) -> tuple[torch.Tensor, float]:
    """Return the losses of 200 steps, and seconds of the first two.

    With ``moved`` the parameters are off by one rounding after the first step.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    svi = px.CompiledSVI(
        model,
        SOURCES[source](FAMILIES[family]()),
        lambda params: torch.optim.Adam(params, lr=0.01),
        LOSSES[loss](),
        compile=compile,
    )
    x = torch.tensor(ROWS)
    start = time.perf_counter()
    first = [svi.step(x)]
    if moved:
        with torch.no_grad():
            for group in svi.optimizer.param_groups:
                for param in group["params"]:
                    param.mul_(1 + torch.finfo(param.dtype).eps)
    first.append(svi.step(x))
    seconds = time.perf_counter() - start
    if compile and svi._last is None:
        raise RuntimeError("was not compiled")
    return torch.tensor([*first, *(svi.step(x) for _ in range(198))], dtype=torch.float64), seconds


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of losses, relative where they are larger than one."""
    return ((found - expected).abs() / expected.abs().clamp(min=1.0)).max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every loss with every guide")
    parser.add_argument("--record", action="store_true", help="steps that are not compiled")
    parser.add_argument("--match", default="", help="only pairs whose name has this in it")
    args = parser.parse_args()
    count = missed = 0
    cases = [
        c for c in product(pairs(everything=args.all), TOLERANCE) if args.match in ", ".join(c[0])
    ]
    print("| guide | loss | precision | largest difference | compile |\n|---|---|---|---|---|")
    for (source, family, loss), dtype in tqdm(cases, desc="pairs"):
        torch.set_default_dtype(dtype)
        name = f"{source}, {family} | {loss} | {str(dtype)[6:]}"
        try:
            eager, _ = losses_of(source, family, loss, compile=False)
            way = "record" if args.record else True
            found, seconds = losses_of(source, family, loss, compile=way)
        except (ValueError, TypeError, RuntimeError) as error:
            tqdm.write(f"| {name} | refused: {str(error).splitlines()[0][:90]} | |")
            continue
        difference = apart(found, eager)
        count += 1
        note = ""
        tolerance = 0.0 if args.record else TOLERANCE[dtype]
        if difference > tolerance:
            rounding = apart(losses_of(source, family, loss, compile=False, moved=True)[0], eager)
            note = f" (over {tolerance:g}; one rounding makes {rounding:.1e})"
            missed += args.record or difference > 10 * rounding
        tqdm.write(f"| {name} | {difference:.1e}{note} | {seconds:.0f} s |")
    print(f"\n{count} compared, {len(cases) - count} refused, {missed} off by more than rounding")


if __name__ == "__main__":
    main()
