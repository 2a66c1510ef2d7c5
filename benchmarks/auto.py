"""Automatic fits of ten posteriors of posteriordb against their reference draws.

One setting for all, several seeds. Errors are those of draws as ``run.sample`` returns them, in
the reference's own coordinates; "claimed" counts fits that are called trusted or usable with
correction, "false" those of them outside the limits. Keeps each fit in a JSON file, so that a run
can be taken up again, and prints a Markdown table:

    python benchmarks/auto.py --data PATH_TO_POSTERIORDB
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import Cells
from posteriordb_models import CASES, Case, load

import pyro_ext as px

__all__ = ["Row", "main", "measure", "table"]

_LIMIT = 0.05
_DRAWS = 20_000


@dataclass(frozen=True)
class Row:
    """One fit.

    Args:
        posterior: Name of the posterior.
        grade: The verdict's word.
        mean_error: Worst error of a mean, in reference standard deviations.
        low: Smallest ratio of standard deviations.
        high: Largest one.
        k_hat: Tail shape of the weights.
        seconds: Time of one core that the fit took.
        gradients: Gradients of the log density that it took.
    """

    posterior: str
    grade: str
    mean_error: float
    low: float
    high: float
    k_hat: float
    seconds: float
    gradients: int

    @property
    def right(self) -> bool:
        """Whether it is within the limits."""
        near = 1 - _LIMIT <= self.low and self.high <= 1 + _LIMIT
        return self.mean_error <= _LIMIT and near


def measure(case: Case, path: Path, seed: int) -> Row:
    """Fit one posterior and compare it with its reference."""
    args, mean, sd = load(case, path)
    start = time.process_time()
    run = px.fit(case.model, data=args, optim="auto", family="auto", seed=seed, progress=False)
    spent = time.process_time() - start
    torch.manual_seed(seed)
    draws = case.parameters(run.sample(_DRAWS)).numpy()
    ratio = draws.std(0) / sd
    return Row(
        case.posterior,
        run.verdict.grade,
        float(np.abs((draws.mean(0) - mean) / sd).max()),
        float(ratio.min()),
        float(ratio.max()),
        run.verdict.k_hat,
        spent,
        run.num_gradients,
    )


def table(rows: list[Row]) -> str:
    """Return a Markdown table, one line per posterior, over seeds."""
    lines = [
        "| posterior | verdicts | worst mean error | sd ratios | k-hat | CPU s | gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.posterior for row in rows):
        own = [row for row in rows if row.posterior == name]
        grades = [row.grade for row in own]
        words = ", ".join(f"{grades.count(word)} {word}" for word in dict.fromkeys(grades))
        lines.append(
            f"| {name} | {words} | {max(r.mean_error for r in own):.3f} | "
            f"{min(r.low for r in own):.3f} to {max(r.high for r in own):.3f} | "
            f"{max(r.k_hat for r in own):.2f} | {np.median([r.seconds for r in own]):.1f} | "
            f"{np.median([r.gradients for r in own]):,.0f} |"
        )
    claimed = [row for row in rows if row.grade != "not to be trusted"]
    wrong = sum(not row.right for row in claimed)
    seconds = [row.seconds for row in rows]
    lines += [
        "",
        f"{len(claimed)} of {len(rows)} fits claimed, {wrong} of them false; "
        f"{sum(row.right for row in rows)} within the limits. "
        f"CPU seconds: median {np.median(seconds):.1f}, worst {max(seconds):.1f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="part of a posterior's name")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/auto.json"))
    options = parser.parse_args()
    jobs = [(c, s) for c in CASES if options.only in c.posterior for s in range(options.seeds)]
    cells, rows = Cells(options.out), []
    for case, seed in jobs:

        def compute(case: Case = case, seed: int = seed) -> dict[str, Any]:
            return asdict(measure(case, options.data, seed))

        rows.append(Row(**cells.get(f"{case.posterior}/{seed}", compute)))
    print(table(rows))


if __name__ == "__main__":
    main()
