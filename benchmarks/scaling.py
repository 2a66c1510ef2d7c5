"""Cost of a training step against particles K, data N, dimensions D and number of sites.

Processor time of the fastest of five rounds; a first round is left out, compiling too. Cells
are kept in a JSON file, which ``python benchmarks/report.py`` turns into a table and a figure:

    python benchmarks/scaling.py

"Pyro" is Pyro's SVI with the guide of its own that corresponds, in the same process.
"""

import argparse
import gc
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _results import Cells, cpu_seconds
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pyro_ext as px

sys.path.insert(0, str(Path(__file__).parent / "speed"))

from workloads import vae

__all__ = ["AXES", "main"]


@dataclass(frozen=True)
class Axis:
    """What grows.

    Args:
        what: The model, in words.
        make: From a size to model, guide, loss and arguments.
        sizes: The sizes.
        compiled: Largest size whose step is compiled.
        peer: Pyro's guide for the model, if there is one.
        optim: From parameters to the optimizer.
        around: From a size to what a step is taken in.
    """

    what: str
    make: Callable[[int], tuple[Any, Any, Any, tuple[Any, ...]]]
    sizes: tuple[int, ...]
    compiled: int
    peer: Callable[..., Any] | None = None
    optim: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    around: Callable[[int], AbstractContextManager[Any]] = lambda size: nullcontext()


def particles(size: int) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    work = vae(20, size)
    return work.model, work.guide, work.loss, work.args


def regression(size: int) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    x = torch.randn(size, 10)
    t = (torch.rand(size) < torch.sigmoid(x @ torch.randn(10))).float()

    def model(x, t):
        b = pyro.sample("b", dist.Normal(torch.zeros(10), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            logits = (b @ x.T).reshape(*b.shape[:-2], len(x))
            pyro.sample("t", dist.Bernoulli(logits=logits), obs=t)

    return model, px.AutoJoint(model), px.ELBO(), (x, t)


def local_latents(size: int) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    x = torch.randn(size)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=256) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    return model, px.AutoPerDatapoint(model), px.ELBO(), (x,)


def sparse_latents(size: int) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    model, _, loss, args = local_latents(size)
    return model, px.AutoPerDatapoint(model, sparse=True), loss, args


def given_rows(size: int) -> px.MiniBatch:
    """Return a mini-batch whose rows are drawn outside of the step, as ``px.fit`` does."""
    return px.MiniBatch("data", size, torch.randperm(size)[:256], sliced=False)


def dimensions(size: int, *, family: px.Family) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.factor("likelihood", -0.5 * (z.sum(-1) - 1.0).square())

    return model, px.AutoJoint(model, family=family), px.ELBO(), ()


def sites(size: int) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    def model():
        z = torch.zeros(())
        for index in range(size):
            z = pyro.sample(f"z{index}", dist.Normal(0.9 * z, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    return model, px.AutoJoint(model), px.ELBO(), ()


AXES = {
    "K": Axis("VAE 784-200-200-50, batch 20, IWAE", particles, (1, 10, 100, 1000), 100),
    "N": Axis(
        "logistic regression, D = 10, all rows",
        regression,
        (1000, 10_000, 100_000, 1_000_000),
        1_000_000,
        AutoNormal,
    ),
    "N, table": Axis(
        "a latent for each row, 256 rows a step",
        local_latents,
        (1000, 10_000, 100_000, 1_000_000),
        1_000_000,
    ),
    "N, sparse table": Axis(
        "the same with sparse=True, and rows drawn outside of the step",
        sparse_latents,
        (1000, 10_000, 100_000, 1_000_000),
        0,
        optim=torch.optim.SparseAdam,
        around=given_rows,
    ),
    "D, Diagonal": Axis(
        "one vector of size D, Diagonal",
        partial(dimensions, family=px.Diagonal()),
        (2, 10, 100, 1000),
        1000,
        AutoNormal,
    ),
    "D, FullCovariance": Axis(
        "one vector of size D, FullCovariance",
        partial(dimensions, family=px.FullCovariance()),
        (2, 10, 100, 300, 1000),
        1000,
        AutoMultivariateNormal,
    ),
    "sites": Axis(
        "a chain of scalar latents, Diagonal", sites, (1, 10, 50, 100, 200), 200, AutoNormal
    ),
}


WAYS: dict[str, bool | str] = {"eager": False, "recorded": "record", "compiled": True}
"""What ``compile`` is, by name."""


def stepper(axis: Axis, size: int, how: str) -> Callable[[], Any]:
    """Return a step that has been taken twice, so that it is compiled."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide, loss, args = axis.make(size)
    svi: Any
    if how == "Pyro":
        assert axis.peer is not None
        svi = SVI(model, axis.peer(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    else:
        optim = partial(axis.optim, lr=1e-3)
        svi = px.CompiledSVI(model, guide, optim, loss, compile=WAYS[how])
    around = axis.around(size)

    def step() -> None:
        with around:
            svi.step(*args)

    for _ in range(2):
        step()
    return step


def milliseconds(axis: Axis, size: int, how: str, *, rounds: int, seconds: float) -> float:
    """Return milliseconds of a step, of the fastest round.

    Args:
        axis: What grows.
        size: How large it is.
        how: ``"eager"``, ``"recorded"``, ``"compiled"`` or ``"Pyro"``.
        rounds: Number of rounds.
        seconds: Of a round, about.
    """
    step = stepper(axis, size, how)
    begun = cpu_seconds()
    step()
    count = max(1, int(seconds / max(cpu_seconds() - begun, 1e-4)))
    found = []
    for _ in range(rounds):
        begun = cpu_seconds()
        for _ in range(count):
            step()
        found.append((cpu_seconds() - begun) / count)
    gc.collect()
    return 1e3 * min(found)


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--only", default="", help="part of a cell's name, such as sites/eager")
    parser.add_argument("--largest", type=int, default=1_000_000, help="largest size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a round")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_flush_denormal(True)
    cells = Cells(options.out)
    for name, axis in AXES.items():
        hows = [*WAYS, *(["Pyro"] if axis.peer else [])]
        for size in axis.sizes:
            for how in hows:
                key = f"{name}/{how}/{size}"
                wanted = options.only in key and size <= options.largest
                graph = WAYS.get(how, False)
                if wanted and not (graph and size > axis.compiled):
                    measure = {"rounds": options.rounds, "seconds": options.seconds}
                    cells.get(key, partial(milliseconds, axis, size, how, **measure))


if __name__ == "__main__":
    main()
