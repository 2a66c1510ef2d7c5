"""Guides side by side: one table, one verdict each, and figures."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyro_ext.autoguide import AutoJoint, AutoPerDatapoint
from pyro_ext.diagnostics import plots
from pyro_ext.diagnostics._estimates import Estimate
from pyro_ext.diagnostics._passes import inspect, progress
from pyro_ext.diagnostics._reference import Reference, distance, to_reference
from pyro_ext.diagnostics._result import Result
from pyro_ext.diagnostics._target import Fitted, resolve, undisturbed
from pyro_ext.diagnostics._types import DataFrame, DataTree, Figure
from pyro_ext.diagnostics._verdict import behind_best, choice, sentence, short
from pyro_ext.diagnostics.datatree import to_datatree
from pyro_ext.diagnostics.evidence import Evidence, evidence

__all__ = ["Comparison", "compare"]

_KEPT_SCALARS = 2**22
_KEPT_SCALARS_FOR_MOMENTS = 2**25
_MIN_KEPT = 50
_JOINT_PARTICLES = 10


@dataclass(frozen=True, eq=False)
class Comparison:
    """Guides held against each other, and against a reference.

    Args:
        results: What was found about each guide.
        reference: Reference moments, or None.
        exact_evidence: Exact log evidence, or None.
    """

    results: dict[str, Result]
    reference: Reference | None = field(repr=False, default=None)
    exact_evidence: float | None = None

    @property
    def verdicts(self) -> dict[str, str]:
        """One or two sentences per guide."""
        return {name: sentence(name, result) for name, result in self.results.items()}

    @property
    def choice(self) -> str:
        """Which guide to use, and why."""
        return choice(self.results)

    @cached_property
    def table(self) -> DataFrame:
        """Numbers, one row per guide; columns that hold nothing are left out."""
        from pandas import DataFrame as Frame

        gaps = behind_best(self.results)
        rows = {name: _numbers(result, gaps[name]) for name, result in self.results.items()}
        table = Frame.from_dict(rows, orient="index").dropna(axis="columns", how="all")
        table.index.name = "guide"
        return table

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Matplotlib figures by name; those that need a reference are there if there is one."""
        found = {
            "bounds": plots.bound_ladder(self.results, self.exact_evidence),
            "k_hat": plots.k_hats(self.results),
        }
        if self.reference is not None:
            found["forest"] = plots.forest(self.results, self.reference)
            found["sd_ratio"] = plots.sd_ratios(self.results, self.reference)
        return found

    def to_markdown(self) -> str:
        """Return the table and the verdicts as Markdown."""
        cells = self._cells()
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        rule = "|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(cells[0]))) + "|"
        verdicts = [f"- {text}" for text in self.verdicts.values()]
        parts = [lines[0], rule, *lines[1:], "", *self._notes(), "", *verdicts, "", self.choice]
        return "\n".join(parts) + "\n"

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

    def save(self, folder: str | Path) -> None:
        """Write ``table.md``, ``table.csv``, a PNG per figure and a NetCDF file per posterior.

        Args:
            folder: Where to; made if it is not there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(self.to_markdown(), encoding="utf-8")
        self.table.to_csv(folder / "table.csv")
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


def compare(
    runs: Mapping[str, Fitted],
    reference: Any = None,
    *,
    exact_evidence: float | Tensor | None = None,
    held_out: Any = None,
    num_samples: int = 4000,
    num_particles: int | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Hold fitted guides against each other, and against a reference.

    All guides are evaluated on the same random numbers. Where the runs learned a model as well,
    each bound is that of its own model.

    Args:
        runs: What ``px.fit`` returned, by name.
        reference: Draws ``{"mu": (S, ...)}``, a DataTree, a ``pyro.infer.MCMC``, or exact moments
            ``{"mu": (mean, sd)}``.
        exact_evidence: Exact log evidence, for the figure of bounds.
        held_out: Held-out data (the model's argument, or a tuple of them) for the guides that can
            be used on them as they are; or runs that were fitted to them, by name.
        num_samples: Number of draws.
        num_particles: K of the IWAE bound; by default 10, or ``num_samples`` if each datapoint has
            weights of its own.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.

    Raises:
        ValueError: If there are no runs, or the reference does not fit.

    Example:
        >>> from pyro_ext.testing.conjugate import NormalGlobal
        >>> exact = NormalGlobal(torch.tensor([0.0, 2.0]))
        >>> guide = px.AutoJoint(exact.model)
        >>> run = px.fit(exact.model, guide, data=exact.x, num_steps=1500, seed=0)
        >>> comparison = compare({"mean field": run}, exact_evidence=exact.log_evidence())
        >>> list(comparison.figures)
        ['bounds', 'k_hat']
    """
    if not isinstance(runs, Mapping) or not runs:
        raise ValueError(
            f"compare: expected a dict of runs by name; got {type(runs).__name__}"
            f"{' without entries' if isinstance(runs, Mapping) else ''}. "
            "Write: px.compare({'mean field': run})."
        )
    for name, run in runs.items():
        if not isinstance(run, Fitted):
            raise TypeError(
                f"compare: expected '{name}' to be a run, what px.fit returns; got "
                f"{type(run).__name__}. Write: px.compare({{'{name}': px.fit(...)}})."
            )
    found = None if reference is None else to_reference(reference)
    if num_particles is None:
        local = any(_is_local(run, seed) for run in runs.values())
        num_particles = num_samples if local else min(_JOINT_PARTICLES, num_samples)
    if not 1 <= num_particles <= num_samples:
        raise ValueError(
            f"compare: expected 1 <= num_particles <= num_samples; got {num_particles} and "
            f"{num_samples}. Write: num_samples={10 * num_particles}."
        )
    settings: dict[str, Any] = {
        "num_particles": num_particles,
        "num_repeats": num_samples // num_particles,
        "chunk_size": chunk_size,
        "seed": seed,
    }
    results = {}
    with progress(len(runs), "compare") as bar:
        for name, run in runs.items():
            bar.set_postfix_str(name)
            bounds = evidence(run, **settings)
            tree = _draws(run, num_samples, chunk_size, seed, moments=found is not None)
            results[name] = Result(
                bounds,
                tree,
                None if found is None else distance(tree, found),
                _held_out(name, run, held_out, settings),
                getattr(run, "seconds", None),
                _num_params(run.guide),
            )
            bar.update()
    return Comparison(results, found, None if exact_evidence is None else float(exact_evidence))


def _is_local(run: Fitted, seed: int) -> bool:
    target = resolve("compare", run, None, (), {})
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
    return layout.has_locals and not layout.has_globals


def _draws(
    run: Fitted, num_samples: int, chunk_size: int | None, seed: int, *, moments: bool
) -> DataTree:
    """Draw as many as fit into a file of moderate size."""
    target = resolve("compare", run, None, (), {})
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
    budget = _KEPT_SCALARS_FOR_MOMENTS if moments else _KEPT_SCALARS
    fitting = max(_MIN_KEPT, budget // (layout.width * layout.size))
    return to_datatree(
        run,
        num_samples=min(num_samples, fitting),
        chunk_size=chunk_size,
        seed=seed,
        predictive=fitting >= num_samples,
    )


@dataclass(frozen=True)
class _Elsewhere:
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]


def _held_out(name: str, run: Fitted, held_out: Any, settings: dict[str, Any]) -> Evidence | None:
    if held_out is None:
        return None
    if isinstance(held_out, Mapping):
        return evidence(held_out[name], **settings) if name in held_out else None
    if isinstance(run.guide, AutoJoint | AutoPerDatapoint):
        return None
    args = tuple(held_out) if isinstance(held_out, tuple | list) else (held_out,)
    return evidence(_Elsewhere(run.model, run.guide, args), **settings)


def _num_params(guide: Any) -> int | None:
    if isinstance(getattr(guide, "num_params", None), int):
        return int(guide.num_params)
    if isinstance(guide, nn.Module):
        return sum(p.numel() for p in guide.parameters() if p.requires_grad)
    return None


def _numbers(result: Result, gap: Estimate) -> dict[str, Any]:
    bounds, far, new = result.evidence, result.distance, result.held_out
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
        "seconds": math.nan if result.seconds is None else result.seconds,
        "parameters": math.nan if result.num_params is None else result.num_params,
        "verdict": short(result),
    }


def _texts(name: str, result: Result, gap: Estimate) -> dict[str, str]:
    bounds, far, new = result.evidence, result.distance, result.held_out
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
        "mean error": "" if far is None else f"{far.worst_mean_error:+.2f} sd",
        "sd ratio": "" if far is None else f"{far.worst_sd_ratio:.2f}",
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
