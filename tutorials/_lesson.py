"""What the lessons share: options, claims that are judged, figures, and a table at the end.

A lesson is one script. It measures, calls :meth:`Lesson.equal` or :meth:`Lesson.holds` for each
thing that it claims, draws, and ends with :meth:`Lesson.finish`, which prints the claims and
raises ``SystemExit`` with a message if one of them does not hold.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # models/ and guides/ stand beside tutorials/, and are not installed
    sys.path.insert(0, str(ROOT))

import pyro
import torch
from matplotlib.figure import Figure

__all__ = ["Claim", "Lesson", "figure"]

SIGMAS = 5.0
"""Standard errors that a measured value may be from the expected one: one false alarm in 2e6."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One thing that a lesson claims, and what came out; ``holds`` is None if it is not judged."""

    text: str
    expected: str
    measured: str
    holds: bool | None


class Lesson:
    """Options of one lesson, and its claims.

    Args:
        name: Name of the script, which names its files.
        title: One line.
        options: Defaults of options of its own, such as ``{"data": "digits"}``.
        dtype: Default dtype of the lesson.
    """

    def __init__(
        self,
        name: str,
        title: str,
        *,
        options: dict[str, str] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        parser = argparse.ArgumentParser(description=title)
        parser.add_argument(
            "--smoke", action="store_true", help="a few steps, to see that it runs"
        )
        parser.add_argument("--out", type=Path, default=Path("results/lessons"))
        parser.add_argument("--seed", type=int, default=0)
        for option, default in (options or {}).items():
            parser.add_argument(f"--{option}", default=default, help=f"default: {default}")
        in_notebook = "ipykernel" in sys.modules
        self.options = parser.parse_args([] if in_notebook else None)
        self.smoke: bool = self.options.smoke or "SMOKE" in os.environ
        self.out: Path = self.options.out
        self.seed: int = self.options.seed
        self.name, self.title = name, title
        self.claims: list[Claim] = []
        self.figures: list[str] = []
        self._start = time.process_time()
        torch.set_default_dtype(dtype)
        pyro.clear_param_store()
        pyro.set_rng_seed(self.seed)
        print(f"{title}\n", flush=True)

    def steps(self, full: int, smoke: int = 5) -> int:
        """Return a number of steps, draws or seeds: the second one in smoke mode."""
        return smoke if self.smoke else full

    def equal(
        self,
        text: str,
        measured: float,
        expected: float,
        *,
        se: float = 0.0,
        tolerance: float = 0.0,
        trained: bool = False,
    ) -> None:
        """Claim that two numbers are the same.

        Args:
            text: The claim.
            measured: The number that was found.
            expected: The closed form, or the published one.
            se: Standard error of ``measured``; 0 for an identity, which holds to rounding.
            tolerance: What is allowed on top, such as the distance to the optimum that a fit
                of a fixed length may keep.
            trained: Whether it needs a fit of full length, so that smoke mode does not judge it.
        """
        rounding = 1e-9 * max(1.0, abs(expected))
        ok = abs(measured - expected) <= SIGMAS * se + tolerance + rounding
        error = f" ± {se:.1g}" if se else ""
        allowed = f" (within {tolerance:g})" if tolerance else ""
        self.holds(
            text, f"{expected:.6g}{allowed}", f"{measured:.6g}{error}", ok=ok, trained=trained
        )

    def holds(
        self, text: str, expected: str, measured: str, *, ok: bool, trained: bool = False
    ) -> None:
        """Claim anything else.

        Args:
            text: The claim.
            expected: What is expected, in words.
            measured: What came out, in words.
            ok: Whether it holds.
            trained: Whether it needs a fit of full length, so that smoke mode does not judge it.
        """
        judged = None if trained and self.smoke else bool(ok)
        self.claims.append(Claim(text, expected, measured, judged))

    def say(self, text: str) -> None:
        """Print a line at once."""
        print(text, flush=True)

    def save(self, drawn: Figure, suffix: str = "") -> None:
        """Save a figure as PNG, and show it in a notebook.

        Args:
            drawn: The figure.
            suffix: End of the file's name, where a lesson has more than one.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.name}{suffix}.png"
        drawn.savefig(path, dpi=110)
        self.figures.append(path.name)
        if "ipykernel" in sys.modules:
            from IPython.display import display

            display(drawn)

    def finish(self) -> None:
        """Print the claims, keep them as JSON, and stop with an error if one does not hold."""
        seconds = time.process_time() - self._start  # of this process, whatever else runs
        marks = {True: "holds", False: "FAILS", None: "(not judged in smoke mode)"}
        for claim in self.claims:
            print(f"- {claim.text}")
            print(
                f"    expected {claim.expected}; measured {claim.measured}: {marks[claim.holds]}"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        found = {
            "title": self.title,
            "seconds": round(seconds, 1),
            "figures": self.figures,
            "claims": [dataclasses.asdict(claim) for claim in self.claims],
        }
        kept = self.out / f"{self.name}.json"
        kept.write_text(json.dumps(found, indent=1, ensure_ascii=False))
        print(f"\n{seconds:.0f} s of CPU time; figures and results: {self.out}", flush=True)
        failed = [claim.text for claim in self.claims if claim.holds is False]
        if failed:
            raise SystemExit(f"{self.name}: {len(failed)} claims fail: " + "; ".join(failed))


def figure(columns: int, rows: int = 1, *, width: float = 4.3, height: float = 3.7) -> Any:
    """Return a figure and its axes, as an array of ``(rows, columns)``, or a list for one row.

    Args:
        columns: Number of panels beside each other.
        rows: Number of rows of panels.
        width: Inches of a panel.
        height: Inches of a panel.
    """
    drawn = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False)
    return drawn, (list(axes[0]) if rows == 1 else axes)
