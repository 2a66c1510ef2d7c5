"""The result of a comparison: a table, verdicts, figures, a page."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pyro_ext.diagnostics import details, plots
from pyro_ext.diagnostics._estimates import Estimate
from pyro_ext.diagnostics._page import page
from pyro_ext.diagnostics._reference import Reference
from pyro_ext.diagnostics._result import Result
from pyro_ext.diagnostics._types import DataFrame, Figure
from pyro_ext.diagnostics._verdict import behind_best, choice, missed, plain, sentence, short

__all__ = ["Comparison"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Guides held against each other, and against a reference.

    Args:
        results: What was found about each guide.
        reference: Reference moments, or None.
        exact_evidence: Exact log evidence, or None.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> families = {"mean field": px.Diagonal(), "full": px.FullCovariance()}
        >>> fits = {
        ...     name: px.fit(exact.model, data=exact.x, family=family, num_steps=200, seed=0)
        ...     for name, family in families.items()
        ... }
        >>> found = px.compare(fits, num_samples=200)
        >>> list(found.results), found.choice.startswith("Use ")
        (['mean field', 'full'], True)
    """

    results: dict[str, Result]
    reference: Reference | None = None
    exact_evidence: float | None = None

    @property
    def verdicts(self) -> dict[str, str]:
        """One or two sentences per guide."""
        seen = missed(self.results)
        return {name: sentence(name, r, seen.get(name)) for name, r in self.results.items()}

    @property
    def choice(self) -> str:
        """Which guide to use, and why."""
        return choice(self.results)

    @cached_property
    def table(self) -> DataFrame:
        """Numbers, one row per guide; columns that hold nothing are left out."""
        from pandas import DataFrame as Frame

        gaps = behind_best(self.results)
        seen = missed(self.results)
        rows = {name: _numbers(r, gaps[name], seen.get(name)) for name, r in self.results.items()}
        table = Frame.from_dict(rows, orient="index").dropna(axis="columns", how="all")
        table.index.name = "guide"
        return table

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Matplotlib figures by name; those of what was not asked for are left out."""
        found = {
            "bounds": plots.bound_ladder(self.results, self.exact_evidence),
            "ladder": details.ladder(self.results, self.exact_evidence),
            "k_hat": plots.k_hats(self.results),
        }
        of_latents = {
            "forest": plots.forest,
            "sd_ratio": plots.sd_ratios,
            "marginals": details.marginals,
            "pairs": details.pairs,
        }
        for name, draw in of_latents.items():
            figure = draw(self.results, self.reference)
            if figure is not None:
                found[name] = figure
        if any(result.gaps is not None for result in self.results.values()):
            found["gaps"] = details.gap_bars(self.results)
        if any(result.calibration is not None for result in self.results.values()):
            found["calibration"] = details.rank_ecdf(self.results)
        return found

    def to_markdown(self) -> str:
        """Return the table and the verdicts as Markdown."""
        cells = self._cells()
        escaped = ([cell.replace("|", "\\|") for cell in row] for row in cells)
        lines = ["| " + " | ".join(row) + " |" for row in escaped]
        rule = "|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(cells[0]))) + "|"
        verdicts = [f"- {text}" for text in self.verdicts.values()]
        parts = [lines[0], rule, *lines[1:], "", *self._notes(), "", *verdicts, "", self.choice]
        return "\n".join(parts) + "\n"

    def to_html(self) -> str:
        """Return one page that holds everything: choice, verdicts, table and figures."""
        cells, verdicts = self._cells(), self.verdicts
        return page(self.choice, verdicts, cells, self._notes(), self.figures)

    def __str__(self) -> str:
        """Return a table for the terminal, a verdict per guide, and which one to use."""
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        verdicts = [f"  {text}" for text in self.verdicts.values()]
        return "\n".join([*lines, "", *self._notes(), "", *verdicts, "", self.choice])

    __repr__ = __str__  # as a console and a notebook show it

    def save(self, folder: str | Path) -> None:
        """Write ``report.html``, the table, a PNG per figure and a NetCDF file per posterior.

        Args:
            folder: Where to; made if it is not there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(self.to_markdown(), encoding="utf-8")
        self.table.to_csv(folder / "table.csv")
        (folder / "report.html").write_text(self.to_html(), encoding="utf-8")
        for name, figure in self.figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
        taken: set[str] = set()
        for name, result in self.results.items():
            result.tree.to_netcdf(folder / f"{_file_name(name, taken)}.nc", engine="h5netcdf")
        if self.reference is not None and self.reference.tree is not None:
            self.reference.tree.to_netcdf(
                folder / f"{_file_name('reference', taken)}.nc", engine="h5netcdf"
            )

    def _notes(self) -> list[str]:
        shape = next(iter(self.results.values())).evidence.k_hat
        notes = [
            f"Nats, ± standard error, from {shape.num_draws} draws a guide. Below k-hat "
            f"{shape.threshold:.2f} importance weighting works. Effective: share of the "
            "draws that weighting leaves."
        ]
        if self.exact_evidence is not None:
            notes.append(f"Exact log evidence {self.exact_evidence:.4f}.")
        if self.reference is not None:
            notes.append(
                "Mean error: (mean - reference) / reference sd; sd ratio: sd / reference sd; the "
                "worst of all marginals."
            )
        return notes

    def _cells(self) -> list[list[str]]:
        gaps = behind_best(self.results)
        rows = [_texts(name, result, gaps[name]) for name, result in self.results.items()]
        columns = dict.fromkeys(column for row in rows for column in row)
        kept = [column for column in columns if any(row.get(column) for row in rows)]
        return [kept, *([row.get(column) or "-" for column in kept] for row in rows)]


def _numbers(result: Result, gap: Estimate, finder: str | None) -> dict[str, Any]:
    bounds, far, new = result.evidence, result.distance, result.held_out
    near, lost, ranks = result.distances, result.gaps, result.calibration
    shape = bounds.k_hat
    several = shape.values.numel() > 1
    iwae = f"IWAE-{bounds.num_particles}"
    return {
        "ELBO": bounds.elbo.value,
        "ELBO se": bounds.elbo.se,
        "behind best": gap.value,
        "behind best se": gap.se,
        iwae: bounds.iwae.value,
        f"{iwae} se": bounds.iwae.se,
        "log evidence": bounds.log_evidence.value,
        "log evidence se": bounds.log_evidence.se,
        "k-hat": shape.median if several else shape.values.item(),
        "k-hat share above": shape.share_above if several else math.nan,
        "k-hat threshold": shape.threshold,
        "effective share": bounds.effective_share,
        "mean error": far.worst_mean_error if far is not None else math.nan,
        "sd ratio": far.worst_sd_ratio if far is not None else math.nan,
        "held-out ELBO": new.elbo.value if new is not None else math.nan,
        "held-out ELBO se": new.elbo.se if new is not None else math.nan,
        f"held-out {iwae}": new.iwae.value if new is not None else math.nan,
        f"held-out {iwae} se": new.iwae.se if new is not None else math.nan,
        "covariance error": _or_nan(None if near is None else near.covariance_error),
        "sliced Wasserstein": _or_nan(None if near is None else near.sliced_wasserstein),
        "MMD p-value": _or_nan(None if near is None or near.mmd is None else near.mmd.p_value),
        "classifier accuracy": _or_nan(
            None if near is None or near.classifier is None else near.classifier.value
        ),
        "approximation gap": _or_nan(None if lost is None else lost.approximation.total().value),
        "amortization gap": _or_nan(None if lost is None else lost.amortization.total().value),
        "calibration p-value": _or_nan(None if ranks is None else ranks.p_value),
        "seconds": math.nan if result.seconds is None else result.seconds,
        "parameters": math.nan if result.num_params is None else result.num_params,
        "verdict": short(result, finder),
    }


def _texts(name: str, result: Result, gap: Estimate) -> dict[str, str]:
    bounds, far, new = result.evidence, result.distance, result.held_out
    lost, ranks = result.gaps, result.calibration
    shape = bounds.k_hat
    if shape.values.numel() > 1:
        k_hat = {
            "k-hat (median)": f"{shape.median:.2f}",
            "above limit": f"{shape.share_above:.1%}",
        }
    else:
        k_hat = {"k-hat": f"{shape.values.item():.2f}"}
    iwae = f"IWAE-{bounds.num_particles}"
    return {
        "guide": name,
        "ELBO": str(bounds.elbo),
        "behind best": "" if gap.value == 0 else str(gap),
        iwae: str(bounds.iwae),
        **k_hat,
        "effective": f"{bounds.effective_share:.0%}",
        "mean error": "" if far is None else f"{plain(far.worst_mean_error, '+')} sd",
        "sd ratio": "" if far is None else plain(far.worst_sd_ratio),
        "approximation": "" if lost is None else str(lost.approximation.total()),
        "amortization": "" if lost is None else str(lost.amortization.total()),
        "calibration p": "" if ranks is None else f"{ranks.p_value:.3f}",
        "held-out ELBO": "" if new is None else str(new.elbo),
        f"held-out {iwae}": "" if new is None else str(new.iwae),
        "seconds": "" if result.seconds is None else f"{result.seconds:.1f}",
        "parameters": "" if result.num_params is None else f"{result.num_params:,}",
    }


def _file_name(name: str, taken: set[str]) -> str:
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "guide"
    unique, number = base, 2
    while unique.lower() in taken:
        unique, number = f"{base}_{number}", number + 1
    taken.add(unique.lower())
    return unique


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
