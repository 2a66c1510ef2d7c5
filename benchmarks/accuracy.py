"""Errors of families, losses and automatic fits on ten posteriors, beside Pyro's and NumPyro's.

Every fit but the automatic one has the same budget: steps x draws gradients, Adam from 0.02 to 0
on a cosine, and no tuning. Errors are those of draws against posteriordb's reference draws;
k-hat and evidence come from log weights of the guide. Cells are kept in a JSON file, which
``python benchmarks/report.py`` turns into tables:

    python benchmarks/accuracy.py --data PATH_TO_POSTERIORDB

NumPyro is compared if this Python, or the one of ``--numpyro``, has it. Its models are first held
against Pyro's: the same log density at random points.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from _results import Cells, cpu_seconds
from posteriordb_models import CASES, Case, load, log_evidences
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px

__all__ = [
    "FAMILIES",
    "LOSSES",
    "LR",
    "PEERS",
    "NumPyro",
    "errors",
    "main",
    "parser_of",
    "weighed",
    "write_arrays",
]

LR = 0.02

FAMILIES: dict[str, Callable[[], px.Family]] = {
    "Diagonal": px.Diagonal,
    "FullCovariance": px.FullCovariance,
    "Flow": lambda: px.Flow("realnvp", base=px.FullCovariance()),
}

LOSSES: dict[str, Callable[[int], Any]] = {
    "ELBO": px.ELBO,
    "ELBO stl": partial(px.ELBO, estimator="stl"),
    "IWAE dreg": partial(px.IWAE, estimator="dreg"),
}

LOST = {
    **{"mean_error": math.inf, "low": 0.0, "high": math.inf},
    **{"k_hat": math.inf, "log_evidence": -math.inf, "elbo": -math.inf},
}
"""Errors of a fit that ended in numbers that are not finite."""

PEERS: dict[str, Callable[..., Any]] = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
}


class NumPyro:
    """NumPyro in a process of its own.

    Args:
        python: A Python that has it; None for no comparison.
    """

    def __init__(self, python: str | None) -> None:
        self.versions: dict[str, str] = {}
        if python is None:
            return
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("numpyro_accuracy.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        self.versions = json.loads(self._stream("stdout").readline())

    def _stream(self, name: str) -> Any:
        return getattr(self._process, name)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        self._stream("stdin").write(json.dumps(request) + "\n")
        self._stream("stdin").flush()
        return json.loads(self._stream("stdout").readline())


def errors(draws: Tensor, log_w: Tensor, mean: np.ndarray, sd: np.ndarray) -> dict[str, Any]:
    """Return worst errors of draws, and k-hat and log evidence of log weights.

    Args:
        draws: Shape ``(draws, parameters)``.
        log_w: Log weights, shape ``(draws,)``.
        mean: Reference means.
        sd: Reference standard deviations.
    """
    if not (draws.isfinite().all() and log_w.isfinite().all()):
        return LOST
    found = draws.numpy()
    ratio = found.std(0) / sd
    return {
        "mean_error": float(np.abs((found.mean(0) - mean) / sd).max()),
        "low": float(ratio.min()),
        "high": float(ratio.max()),
        "k_hat": px.k_hat(log_w).values.item(),
        "log_evidence": px.bounds.iwae(log_w).item(),
        "elbo": log_w.mean().item(),
    }


def weighed(case: Case, guide: Any, args: tuple[Any, ...], num_draws: int) -> tuple[Any, Any]:
    """Return draws of a guide and their log weights."""
    with torch.no_grad():
        found = px.log_weights(case.model, guide, *args, num_particles=num_draws, joint=True)
    return case.parameters(found.latents), found.terms[0].log_w


def ours(case: Case, family: str, loss: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fit a family by a loss."""
    args, mean, sd = load(case, options.data)
    pyro.clear_param_store()
    start = cpu_seconds()
    cost = {"gradients": options.steps * options.draws}
    try:
        run = px.fit(
            case.model,
            px.AutoJoint(case.model, family=FAMILIES[family]()),
            LOSSES[loss](options.draws),
            args,
            partial(torch.optim.Adam, lr=LR),
            schedule=partial(CosineAnnealingLR, T_max=options.steps),
            num_steps=options.steps,
            seed=options.seed,
            progress=False,
        )
    except (ValueError, torch.linalg.LinAlgError) as error:  # where a peer may go on with nan
        if isinstance(error, ValueError) and "expected a finite" not in str(error):
            raise
        return LOST | cost | {"seconds": cpu_seconds() - start}
    cost["seconds"] = cpu_seconds() - start
    torch.manual_seed(options.seed)
    return errors(*weighed(case, run.guide, args, options.samples), mean, sd) | cost


def automatic(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Fit without settings; errors are those of draws as ``run.sample`` returns them."""
    args, mean, sd = load(case, options.data)
    start = cpu_seconds()
    run = px.fit(
        case.model, data=args, optim="auto", family="auto", seed=options.seed, progress=False
    )
    seconds = cpu_seconds() - start
    torch.manual_seed(options.seed)
    draws = case.parameters(run.sample(options.samples))
    found = errors(draws, torch.zeros(options.samples), mean, sd)
    pool = {"k_hat": run.verdict.k_hat, "log_evidence": run.pool.log_evidence, "elbo": None}
    cost = {"seconds": seconds, "gradients": run.num_gradients, "verdict": run.verdict.grade}
    return found | pool | cost


def pyros(case: Case, guide: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fit one of Pyro's guides by Pyro's SVI."""
    args, mean, sd = load(case, options.data)
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    start = cpu_seconds()
    fitted = PEERS[guide](case.model, **start_of(case, args))
    adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": LR}, "T_max": options.steps}
    optim = pyro.optim.CosineAnnealingLR(adam)
    loss = Trace_ELBO(options.draws, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(case.model, fitted, optim, loss)
    try:
        for _ in range(options.steps):
            svi.step(*args)
            optim.step()
    except NotImplementedError as error:  # AutoIAFNormal does not take a start
        return {"failed": str(error)}
    seconds = cpu_seconds() - start
    found = errors(*weighed(case, fitted, args, options.samples), mean, sd)
    return found | {"seconds": seconds, "gradients": options.steps * options.draws}


def start_of(case: Case, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the option that lets a guide of Pyro start where ours does, if a prior is flat.

    A flat prior cannot be drawn from, and Pyro's own starts raise ``NotImplementedError``.
    """
    try:
        with pyro.poutine.block():
            case.model(*args)
    except NotImplementedError:
        guide = px.AutoJoint(case.model)
        guide(*args)
        return {"init_loc_fn": init_to_value(values=guide.median())}
    return {}


def numpyros(
    case: Case, guide: str, process: NumPyro, options: argparse.Namespace
) -> dict[str, Any]:
    """Fit one of NumPyro's guides; seconds count its compiling."""
    args, mean, sd = load(case, options.data)
    with write_arrays(args) as path:
        answer = process.ask(
            act="fit",
            posterior=case.posterior,
            path=str(path),
            guide=guide,
            steps=options.steps,
            particles=options.draws,
            lr=LR,
            seed=options.seed,
            draws=options.samples,
            out=str(path.with_name("out.npz")),
        )
        with np.load(path.with_name("out.npz")) as file:
            log_w = torch.from_numpy(file["log_w"])
            sites = {n[5:]: torch.from_numpy(file[n]) for n in file.files if n.startswith("site_")}
    found = errors(case.parameters(sites), log_w, mean, sd)
    return found | {"seconds": answer["seconds"], "gradients": options.steps * options.draws}


def same_density(case: Case, process: NumPyro, data: Path, num_points: int = 20) -> float:
    """Return the largest difference of log densities, and raise if it is not rounding.

    Args:
        case: The case.
        process: NumPyro.
        data: Folder of the data.
        num_points: Number of random points.

    Raises:
        AssertionError: If the models differ.
    """
    args, _, _ = load(case, data)
    torch.manual_seed(0)
    guide = px.AutoJoint(case.model)
    guide(*args)
    stacked = guide.sample_posterior(num_points)
    here = []
    for index in range(num_points):
        point = {name: value[index] for name, value in stacked.items()}
        trace = pyro.poutine.trace(pyro.condition(case.model, data=point)).get_trace(*args)
        here.append(trace.log_prob_sum().item())
    with write_arrays(args, stacked) as path:
        there = process.ask(act="densities", posterior=case.posterior, path=str(path))
    gap = np.abs(np.array(here) - there["log_density"]) / np.maximum(1.0, np.abs(here))
    assert gap.max() < 1e-8, f"{case.posterior}: NumPyro's log density differs by {gap.max():.3g}"
    return float(gap.max())


@contextmanager
def write_arrays(args: tuple[Any, ...], points: dict[str, Tensor] | None = None) -> Iterator[Path]:
    """Write a model's arguments, and latents to evaluate it at, for NumPyro to read.

    Args:
        args: The arguments.
        points: Latents by name, shape ``(points, *site)``.

    Yields:
        The file, in a folder that is removed afterwards.
    """
    arrays = {f"arg_{index}": np.asarray(arg) for index, arg in enumerate(args)}
    arrays |= {f"point_{name}": value.numpy() for name, value in (points or {}).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.npz"
        np.savez(path, **arrays)
        yield path


def parser_of(description: str, out: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark on posteriors beside NumPyro.

    Args:
        description: Docstring of its module.
        out: File of the results, in their folder.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / out)
    here = sys.executable if find_spec("numpyro") else None
    parser.add_argument("--numpyro", default=here, metavar="PYTHON", help="one that has NumPyro")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing."""
    parser = parser_of(__doc__, "accuracy.json")
    parser.add_argument("--only", default="", help="part of a posterior's name")
    parser.add_argument(
        "--guides", nargs="+", default=[""], help="parts of what fits, such as ours/auto Pyro"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=50, help="of a step")
    parser.add_argument("--samples", type=int, default=10_000, help="to judge a guide by")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    process = NumPyro(options.numpyro)
    cells = Cells(options.out, versions=process.versions)
    cells.get("budget", lambda: {"steps": options.steps, "draws": options.draws})
    exact = log_evidences(options.data)
    for case in (c for c in CASES if options.only in c.posterior):
        jobs = {
            f"ours/{f}/{loss}": partial(ours, case, f, loss, options)
            for f in FAMILIES
            for loss in LOSSES
        }
        jobs["ours/auto/auto"] = partial(automatic, case, options)
        jobs |= {f"Pyro/{g}/Trace_ELBO": partial(pyros, case, g, options) for g in PEERS}
        if process.versions:
            print(
                f"{case.posterior}: densities agree, {same_density(case, process, options.data)}"
            )
            for guide in PEERS:
                job = partial(numpyros, case, guide, process, options)
                jobs[f"NumPyro/{guide}/Trace_ELBO"] = job
        cells.get(f"{case.posterior}/exact", partial(exact.get, case.posterior))
        for name, job in jobs.items():
            key = f"{case.posterior}/{name}/{options.seed}"
            if any(part in key for part in options.guides):
                cells.get(key, job)


if __name__ == "__main__":
    main()
