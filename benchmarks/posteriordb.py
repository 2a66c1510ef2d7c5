"""Evidence by annealed importance sampling, and distances to reference draws, on real posteriors.

Six posteriors of posteriordb have proper priors and a known log evidence. AIS is held against it,
in standard errors, from the guide of an automatic fit and from the prior; "n of N" is how many
chains the weights are worth, and a star marks an estimate that the result itself calls not to be
trusted. The guide's draws are held against the reference means and sds of all ten. Prints a
Markdown table:

    python benchmarks/posteriordb.py --data PATH_TO_POSTERIORDB
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from posteriordb_models import CASES, Case, load, log_evidences

import pyro_ext as px

__all__ = ["annealed", "main", "row"]


def annealed(run: px.Run, exact: float, start: str, options: argparse.Namespace) -> str:
    """Return estimate, distance to the exact evidence in standard errors, and effective chains."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not to be trusted")
        try:
            found = px.ais(
                run,
                start=start,
                num_chains=options.chains,
                num_temperatures=options.temperatures,
                seed=options.seed,
            )
        except NotImplementedError:
            return "the model has no draws of its prior"
    estimate = found.log_evidence
    score = (estimate.value - exact) / estimate.se
    mark = "" if found.reliable else "*"
    return f"{estimate} ({score:+.1f}{mark}; {found.effective.min():.0f} of {options.chains})"


def row(case: Case, exact: float | None, options: argparse.Namespace) -> str:
    """Return a line of the table."""
    args, mean, sd = load(case, options.data)
    begun = time.perf_counter()
    run = px.fit(
        case.model, data=args, optim="auto", family="auto", seed=options.seed, progress=False
    )
    cells = ["improper prior", ""]
    if exact is not None:
        cells = [annealed(run, exact, start, options) for start in ("guide", "prior")]
    torch.manual_seed(options.seed)
    draws = case.parameters(run.sample(20_000)).numpy()
    worst = np.abs((draws.mean(0) - mean) / sd).max()
    ratio = draws.std(0) / sd
    ratio = ratio[np.abs(np.log(ratio)).argmax()]
    k_hat = px.k_hat_joint(run, seed=options.seed).values.item()
    seconds = time.perf_counter() - begun
    known = "" if exact is None else f"{exact:.4f}"
    return (
        f"| {case.posterior} | {known} | {cells[0]} | {cells[1]} | {k_hat:.2f} | {worst:.2f} | "
        f"{ratio:.2f} | {seconds:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--temperatures", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a posterior's name")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    known = log_evidences(options.data)
    print("| posterior | exact | from the guide (z) | from the prior (z) | k̂ | mean | sd | s |")
    print("|" + " --- |" * 8)
    for case in CASES:
        if options.only in case.posterior:
            print(row(case, known.get(case.posterior), options), flush=True)


if __name__ == "__main__":
    main()
