"""Seconds until a fit has reached a stated ELBO, compilers included.

Adam at 0.02, 10 draws a step; after every 100 steps the ELBO is estimated from 4,000 draws, which
is not timed. Results are kept in a JSON file:

    python benchmarks/time_to_bound.py --data PATH_TO_POSTERIORDB
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from _results import Cells, cpu_seconds
from accuracy import FAMILIES, LR, PEERS, NumPyro, parser_of, weighed, write_arrays
from posteriordb_models import CASES, Case, load
from pyro.infer import SVI, Trace_ELBO

import pyro_ext as px

__all__ = ["BOUNDS", "main"]

BOUNDS = {
    "eight_schools-eight_schools_noncentered": ("Diagonal", "AutoNormal", -31.65),
    "sblri-blr": ("FullCovariance", "AutoMultivariateNormal", -184.87),
}
"""Family, Pyro's guide, and the bound: 0.05 nats below the best mean field, which is -31.599, and
0.1 below log p(x), which is -184.773."""

DRAWS, EVERY = 10, 100


def until(
    case: Case,
    args: tuple[Any, ...],
    guide: Any,
    take: Callable[[int], Any],
    bound: float,
    limit: int,
) -> dict[str, Any]:
    """Take steps until the bound is reached.

    Args:
        case: The posterior.
        args: The model's arguments.
        guide: Its guide.
        take: Takes a number of steps.
        bound: The ELBO to reach.
        limit: Largest number of steps.
    """
    seconds, elbo, steps = 0.0, -float("inf"), 0
    while elbo < bound and steps < limit:
        begun = cpu_seconds()
        take(EVERY)
        seconds += cpu_seconds() - begun
        steps += EVERY
        elbo = weighed(case, guide, args, 4000)[1].mean().item()
    return {"seconds": seconds, "steps": steps, "elbo": elbo, "reached": elbo >= bound}


def ours(case: Case, how: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the time of eager, recorded or compiled steps, or of the automatic fit."""
    args, _, _ = load(case, options.data)
    family, _, bound = BOUNDS[case.posterior]
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    if how == "auto":
        begun = cpu_seconds()
        run = px.fit(
            case.model,
            data=args,
            optim="auto",
            family="auto",
            seed=options.seed,
            progress=False,
        )
        seconds = cpu_seconds() - begun
        elbo = weighed(case, run.guide, args, 4000)[1].mean().item()
        return {"seconds": seconds, "steps": None, "elbo": elbo, "reached": elbo >= bound}
    guide = px.AutoJoint(case.model, family=FAMILIES[family]())
    adam = partial(torch.optim.Adam, lr=LR)
    way = {"eager": False, "recorded": "record", "compiled": True}[how]
    svi = px.CompiledSVI(case.model, guide, adam, px.ELBO(DRAWS), compile=way)
    return until(case, args, guide, lambda num: svi.run(num, *args), bound, options.limit)


def pyros(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return the time of Pyro's SVI."""
    args, _, _ = load(case, options.data)
    _, guide, bound = BOUNDS[case.posterior]
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    fitted = PEERS[guide](case.model)
    loss = Trace_ELBO(DRAWS, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(case.model, fitted, pyro.optim.Adam({"lr": LR}), loss)

    def take(num: int) -> None:
        for _ in range(num):
            svi.step(*args)

    return until(case, args, fitted, take, bound, options.limit)


def numpyros(case: Case, process: NumPyro, options: argparse.Namespace) -> dict[str, Any]:
    """Return the time of NumPyro, compiled over all steps between two looks."""
    args, _, _ = load(case, options.data)
    _, guide, bound = BOUNDS[case.posterior]
    with write_arrays(args) as path:
        return process.ask(
            act="until",
            posterior=case.posterior,
            path=str(path),
            guide=guide,
            bound=bound,
            every=EVERY,
            limit=options.limit,
            particles=DRAWS,
            lr=LR,
            seed=options.seed,
        )


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing."""
    parser = parser_of(__doc__, "time_to_bound.json")
    parser.add_argument("--only", default="", help="part of a cell's name")
    parser.add_argument("--limit", type=int, default=20_000, help="largest number of steps")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    process = NumPyro(options.numpyro)
    cells = Cells(options.out, versions=process.versions)
    for case in (c for c in CASES if c.posterior in BOUNDS):
        jobs = {
            f"ours/{how}": partial(ours, case, how, options)
            for how in ("eager", "recorded", "compiled", "auto")
        }
        jobs["Pyro/SVI"] = partial(pyros, case, options)
        if process.versions:
            jobs["NumPyro/scan"] = partial(numpyros, case, process, options)
        for name, job in jobs.items():
            key = f"{case.posterior}/{name}/{options.seed}"
            if options.only in key:
                cells.get(key, job)


if __name__ == "__main__":
    main()
