"""Automatic fits of nine models with published variational bounds (Agrawal et al., 2020).

Densities drop the constants that Stan's ``~`` drops, as the published bounds do. "bound" is the
ELBO of the fitted guide; "bound of 10" is the importance weighted bound of ten draws of it. Keeps
each fit in a JSON file, so that a run can be taken up again, and prints a Markdown table:

    python benchmarks/auto_bbvi.py --data PATH_TO_BBVI
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _results import Cells
from torch import Tensor
from torch.distributions import constraints

import pyro_ext as px
from pyro_ext.training import AutoRun

__all__ = ["MODELS", "main"]

_HALF = 0.5 * math.log(2 * math.pi)
_BLOCKS, _BLOCK = 20, 10_000  # draws of a bound


def flat(name: str, size: int) -> Tensor:
    return pyro.sample(name, dist.ImproperUniform(constraints.real_vector, (), (size,)))


def scales(name: str, size: int) -> Tensor:
    """Standard deviations with a flat prior on (0, 100)."""
    support = constraints.independent(constraints.interval(0.0, 100.0), 1)
    return pyro.sample(name, dist.ImproperUniform(support, (), (size,)))


def normal(name: str, scale: float, size: int) -> Tensor:
    """Normal latents without the constant of their density."""
    value = pyro.sample(name, dist.Normal(0.0, scale).expand([size]).to_event(1))
    pyro.factor(f"{name}_constant", torch.as_tensor(size * (_HALF + math.log(scale))))
    return value


def observe(mean: Tensor, sd: Tensor, y: Tensor) -> None:
    """Normal data without the constant of their density."""
    pyro.factor("y", dist.Normal(mean, sd).log_prob(y).sum(-1) + len(y) * _HALF)


def bernoulli(logits: Tensor, y: Tensor) -> None:
    pyro.factor("y", dist.Bernoulli(logits=logits).log_prob(y).sum(-1))


def linear(x: Tensor, y: Tensor) -> None:
    beta = flat("beta", x.shape[1])
    positive = constraints.independent(constraints.positive, 1)
    sigma = pyro.sample("sigma", dist.ImproperUniform(positive, (), (1,)))
    observe(beta @ x.mT, sigma, y)


def logistic(x: Tensor, y: Tensor) -> None:
    bernoulli(flat("beta", x.shape[1]) @ x.mT, y)


def dogs(x: Tensor, y: Tensor) -> None:
    bernoulli(normal("beta", 100.0, 3) @ x.mT, y)


def electric(d: dict[str, Tensor]) -> None:
    num_pairs, pairs = len(d["grade_pair"]), d["grade_pair"]
    eta, mu_a = normal("eta", 1.0, num_pairs), normal("mu_a", 1.0, 4)
    b, c = normal("b", 100.0, 4), normal("c", 100.0, 4)
    sigma_a, sigma_y = scales("sigma_a", 4), scales("sigma_y", 4)
    a = 50 * mu_a[..., pairs] + sigma_a[..., pairs] * eta
    grade = d["grade"]
    mean = a[..., d["pair"]] + b[..., grade] * d["treatment"] + c[..., grade] * d["pre_test"]
    observe(mean, sigma_y[..., grade], d["y"])


def radon(d: dict[str, Tensor]) -> None:
    num, county = int(d["county"].max()) + 1, d["county"]
    mu, eta1, eta2 = normal("mu", 1.0, 2), normal("eta1", 1.0, num), normal("eta2", 1.0, num)
    sigma = scales("sigma", 3)
    a1 = mu[..., :1] + sigma[..., :1] * eta1
    a2 = 0.1 * mu[..., 1:] + sigma[..., 1:2] * eta2
    observe(a1[..., county] + a2[..., county] * d["x"], sigma[..., 2:], d["y"])


def election(d: dict[str, Tensor]) -> None:
    b, mu, sigma = normal("b", 100.0, 2), normal("mu", 1.0, 1), scales("sigma", 1)
    num = int(d["state"].max()) + 1
    a = pyro.sample("a", dist.ImproperUniform(constraints.real_vector, (), (num,)))
    pyro.factor("a_prior", dist.Normal(mu, sigma).log_prob(a).sum(-1) + num * _HALF)
    logits = b[..., :1] * d["black"] + b[..., 1:] * d["female"] + a[..., d["state"]]
    bernoulli(logits, d["y"])


def hepatitis(d: dict[str, Tensor]) -> None:
    num = len(d["y0"])
    alpha0, beta0, gamma = (normal(n, 1000.0, 1) for n in ("alpha0", "beta0", "gamma"))
    support = constraints.independent(constraints.positive, 1)
    variance = pyro.sample("variance", dist.ImproperUniform(support, (), (3,)))
    prior = -(0.001 + 1) * variance.log() - 0.001 / variance
    pyro.factor("variance_prior", prior.sum(-1))
    sd = variance.sqrt()
    alpha, beta = flat("alpha", num), flat("beta", num)
    own = dist.Normal(alpha0, sd[..., :1]).log_prob(alpha)
    own = own + dist.Normal(beta0, sd[..., 1:2]).log_prob(beta)
    pyro.factor("own", own.sum(-1) + 2 * num * _HALF)
    i = d["index"]
    mean = alpha[..., i] + beta[..., i] * (d["t"] - 6.5)
    observe(mean + gamma * (d["y0"] - d["y0"].mean())[i], sd[..., 2:], d["y"])


def read(name: str, path: Path) -> tuple[Any, ...]:
    """Return a model's arguments."""
    content = json.loads((path / f"{name}.json").read_text())
    d = {key: torch.tensor(value, dtype=torch.float64) for key, value in content.items()}
    if name == "wells":
        return torch.stack([torch.ones_like(d["dist"]), d["dist"] / 100], -1), d["switc"]
    if name == "dogs":
        y = d["y"]
        shocks = y.cumsum(1) - y
        avoided = (1 - y).cumsum(1) - (1 - y)
        x = torch.stack([torch.ones_like(y), avoided, shocks], -1)
        return x.flatten(0, 1), y.flatten()
    if name == "electric_one_pred":
        return torch.stack([torch.ones_like(d["treatment"]), d["treatment"]], -1), d["post_test"]
    if name == "mesquite_volume":
        volume = (d["diam1"] * d["diam2"] * d["canopy_height"]).log()
        return torch.stack([torch.ones_like(volume), volume], -1), d["weight"].log()
    if name == "congress":
        ones = torch.ones_like(d["vote_86"])
        return torch.stack([ones, d["vote_86"], d["incumbency_88"]], -1), d["vote_88"]
    if name == "hepatitis":
        index = d["idxn1"].long() - 1
        return ({"y": d["Yvec1"], "t": d["tvec1"], "y0": d["y0"], "index": index},)
    indices = ("pair", "grade", "grade_pair", "county", "state")
    return ({k: v.long() - 1 if k in indices else v for k, v in d.items()},)


MODELS: dict[str, Callable[..., None]] = {
    "wells": logistic,
    "dogs": dogs,
    "electric_one_pred": linear,
    "mesquite_volume": linear,
    "congress": linear,
    "election88": election,
    "electric_1c_chr": electric,
    "radon_vary_si_chr": radon,
    "hepatitis": hepatitis,
}


def bound_of(run: AutoRun, size: int) -> tuple[float, float]:
    """Return the importance weighted bound of ``size`` draws of the guide, and its error."""
    torch.manual_seed(0)
    (group,) = run.guide.groups
    network = getattr(run.guide, "global_network", None)
    parts = []
    with torch.no_grad():
        posterior = group.posterior(run.guide.params, network)
        for _ in range(_BLOCKS):
            z = posterior.sample((_BLOCK,))
            log_w = run.density.value(z.to(run.density.dtype)) - posterior.log_prob(z)
            parts.append(log_w.reshape(-1, size).logsumexp(-1) - math.log(size))
    bounds = torch.cat(parts)
    return float(bounds.mean()), float(bounds.std()) / len(bounds) ** 0.5


def measure(name: str, path: Path) -> dict[str, Any]:
    """Fit one model, and return its bounds and what it cost."""
    args = read(name, path)
    start = time.process_time()
    run = px.fit(MODELS[name], data=args, optim="auto", family="auto", seed=0, progress=False)
    return {
        "seconds": time.process_time() - start,
        "dim": run.density.dim,
        "bound": bound_of(run, 1),
        "bound_of_10": bound_of(run, 10),
        "family": type(run.guide.groups[0].family).__name__,
        "verdict": run.verdict.grade,
        "k_hat": run.verdict.k_hat,
        "gradients": run.num_gradients,
    }


def cell(bound: tuple[float, float]) -> str:
    """Return a bound with its error, if that shows."""
    value, error = bound
    return f"{value:.2f}" + f" ± {error:.2f}" * (error >= 0.005)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/auto_bbvi.json"))
    options = parser.parse_args()
    cases = json.loads((options.data / "cases.json").read_text())["cases"]
    published = {c["model_name"]: c["published_bound_mean_and_sd_over_seeds"] for c in cases}
    cells, lines = Cells(options.out), []
    for name in MODELS:
        if options.only not in name:
            continue

        def compute(name: str = name) -> dict[str, Any]:
            return measure(name, options.data)

        r = cells.get(name, compute)
        best = max(
            float(value.split("±")[0]) for key, value in published[name].items() if key != "dim"
        )
        cost = f"{r['gradients']:,} | {r['seconds']:.0f}"
        why = f" (k-hat {r['k_hat']:.2f})" if r["verdict"] == "not to be trusted" else ""
        lines.append(
            f"| {name} | {r['dim']} | {cell(r['bound'])} | {cell(r['bound_of_10'])} | "
            f"{best:.2f} | {r['family']} | {cost} | {r['verdict']}{why} |"
        )
    print(
        "| model | D | bound | bound of 10 | best published | family | gradients | CPU s | "
        "verdict |\n|---|--:|--:|--:|--:|---|--:|--:|---|",
        *lines,
        sep="\n",
    )


if __name__ == "__main__":
    main()
