"""Figures of the details: the ladder of bounds, gaps, pairs of latents, ranks."""

from collections.abc import Mapping

import numpy as np

from pyro_ext.diagnostics._axes import (
    COLORS,
    MARKERS,
    color,
    keep_close,
    legend,
    lowest_shown,
    name_rows,
    new_figure,
    not_below,
)
from pyro_ext.diagnostics._reference import Reference, labels_of
from pyro_ext.diagnostics._result import Result
from pyro_ext.diagnostics._types import Array, DataTree, Figure

__all__ = ["gap_bars", "ladder", "marginals", "pairs", "rank_ecdf"]

_MAX_POINTS = 400
_CRITICAL = 1.63  # of the Kolmogorov distribution: 1 % of calibrated guides leave the band


def ladder(results: Mapping[str, Result], exact_evidence: float | None) -> Figure:
    """Draw the IWAE bounds over the number of particles, ± 2 standard errors.

    Args:
        results: Results by name.
        exact_evidence: A line, if known.
    """
    figure, axes = new_figure(7.5, 4.4)
    lowest = lowest_shown([result.evidence.elbo.value for result in results.values()])
    for index, (name, result) in enumerate(results.items()):
        steps = result.evidence.ladder
        cut = lowest is not None and result.evidence.elbo.value < lowest
        values = np.array([not_below(lowest, bound.value) for bound in steps.values()])
        errors = np.array([2 * bound.se for bound in steps.values()])
        axes.errorbar(
            list(steps),
            values,
            yerr=errors,
            color=color(index),
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            capsize=3,
            label=f"{name} (begins below the figure)" if cut else name,
        )
    if lowest is not None:
        shown = [r.evidence for r in results.values() if r.evidence.elbo.value >= lowest]
        highest = max(one.value + 2 * one.se for e in shown for one in e.ladder.values())
        axes.set_ylim(lowest, highest + 0.05 * (highest - lowest))
    if exact_evidence is not None:
        axes.axhline(exact_evidence, color="black", linewidth=1, label="exact log evidence")
    axes.set_xscale("log")
    sizes = sorted({size for result in results.values() for size in result.evidence.ladder})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("particles K")
    axes.set_ylabel("nats")
    axes.set_title("Importance-weighted bounds: K = 1 is the ELBO", fontsize=11)
    legend(figure)
    return figure


def gap_bars(results: Mapping[str, Result]) -> Figure:
    """Draw the two gaps of each guide as one bar, ± 2 standard errors.

    Args:
        results: Results by name.
    """
    figure, axes = new_figure(7.5, 1.6 + 0.55 * len(results))
    found = {name: result.gaps for name, result in results.items() if result.gaps is not None}
    left = np.zeros(len(found))
    kinds = (
        ("approximation", "approximation (family)"),
        ("amortization", "amortization (source)"),
    )
    for index, (kind, label) in enumerate(kinds):
        totals = [getattr(gaps, kind).total() for gaps in found.values()]
        values = np.array([total.value for total in totals])
        axes.barh(
            np.arange(len(found)),
            values,
            left=left,
            xerr=[2 * total.se for total in totals],
            color=COLORS[index],
            height=0.6,
            capsize=3,
            label=label,
        )
        left = left + values
    name_rows(axes, list(found))
    axes.set_xlabel("nats below the log evidence (bars: ± 2 standard errors)")
    axes.set_title("Where each guide loses", fontsize=11)
    legend(figure)
    return figure


def marginals(results: Mapping[str, Result], reference: Reference | None) -> Figure:
    """Draw histograms of single latents: of the six on which guides and reference differ most.

    Args:
        results: Results by name.
        reference: The reference, whose draws are filled; without, guides are held to one another.
    """
    from matplotlib.figure import Figure as NewFigure

    trees = {name: result.tree for name, result in results.items()}
    behind = None if reference is None else reference.tree
    labels = _labels(next(iter(trees.values())))
    if behind is not None:
        labels = [label for label in labels if label in _labels(behind)]
    columns = {name: _columns(tree, labels) for name, tree in trees.items()}
    main = next(iter(columns.values())) if behind is None else _columns(behind, labels)
    ends = np.quantile(main, (0.001, 0.999), axis=1)
    sds = main.std(1)
    unit = np.where(sds > 0, sds, 1)
    # A guide that is far off in everything must not choose for the others.
    score = sum(
        np.minimum((np.abs(draws.mean(1) - main.mean(1)) + np.abs(draws.std(1) - sds)) / unit, 2)
        for draws in columns.values()
    )
    chosen = sorted(np.argsort(-np.asarray(score), kind="stable")[:6].tolist())
    rows = -(-len(chosen) // 3)
    figure = NewFigure(figsize=(7.5, 0.9 + 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, min(3, len(chosen)), squeeze=False)
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, place in zip(grid.flat, chosen, strict=False):
        width = max(float(ends[1, place] - ends[0, place]), 1e-12)
        bins = np.linspace(ends[0, place] - width / 3, ends[1, place] + width / 3, 51)
        if behind is not None:
            axes.hist(main[place], bins, density=True, color="0.85", label="reference")
        for index, (name, draws) in enumerate(columns.items()):
            # Of all draws, not of those in the bins: a guide that is elsewhere shows as nothing.
            weights = np.full(draws.shape[1], 1 / draws.shape[1] / (bins[1] - bins[0]))
            axes.hist(
                draws[place],
                bins,
                weights=weights,
                histtype="step",
                color=color(index),
                linewidth=1.4,
                label=name,
            )
        axes.set_title(labels[place], fontsize=10)
        axes.set_yticks([])
    figure.suptitle(
        "Single latents" + ("" if behind is None else ", the reference filled"), fontsize=11
    )
    legend(figure)
    return figure


def pairs(results: Mapping[str, Result], reference: Reference | None) -> Figure | None:
    """Draw two latents against each other, one panel a guide; None if there is one latent only.

    They are the two that depend most on each other in the reference, or in any of the guides.

    Args:
        results: Results by name.
        reference: The reference, whose draws lie behind each guide's.
    """
    from matplotlib.figure import Figure as NewFigure

    trees = {name: result.tree for name, result in results.items()}
    behind = None if reference is None or reference.tree is None else reference.tree
    labels = _labels(next(iter(trees.values())))
    if behind is not None:
        labels = [label for label in labels if label in _labels(behind)]
    if len(labels) < 2:
        return None
    sources = [*trees.values()] if behind is None else [behind]
    correlation = np.nan_to_num(
        np.max([np.abs(np.corrcoef(_columns(tree, labels))) for tree in sources], axis=0)
    )
    np.fill_diagonal(correlation, 0)
    places = np.unravel_index(correlation.argmax(), correlation.shape)
    chosen = [labels[int(place)] for place in places]
    figure = NewFigure(figsize=(max(4.0, 3.2 * len(trees)), 3.8), layout="constrained")
    grid = figure.subplots(1, len(trees), squeeze=False, sharex=True, sharey=True)[0]
    for index, (axes, (name, tree)) in enumerate(zip(grid, trees.items(), strict=True)):
        if behind is not None:
            axes.scatter(
                *_columns(behind, chosen, _MAX_POINTS), s=6, color="0.6", label="reference"
            )
        axes.scatter(
            *_columns(tree, chosen, _MAX_POINTS), s=6, color=color(index), alpha=0.6, label=name
        )
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(chosen[0])
    drawn = np.concatenate([_columns(tree, chosen, _MAX_POINTS) for tree in trees.values()], 1)
    main = drawn if behind is None else _columns(behind, chosen)
    first, second = np.quantile(main, (0.01, 0.99), axis=1).T  # one draw far out squashes the rest
    keep_close(grid[0], "x", first, drawn[0])
    keep_close(grid[0], "y", second, drawn[1])
    grid[0].set_ylabel(chosen[1])
    legend(figure)
    return figure


def rank_ecdf(results: Mapping[str, Result]) -> Figure:
    """Draw the distribution of ranks less the uniform one, one line a scalar.

    Args:
        results: Results by name.
    """
    figure, axes = new_figure(7.5, 4.4)
    smallest = None
    for index, (name, result) in enumerate(results.items()):
        if result.calibration is None:
            continue
        for values in result.calibration.pit.values():
            flat = np.sort(values.reshape(len(values), -1), axis=0)
            smallest = len(flat) if smallest is None else min(smallest, len(flat))
            steps = (np.arange(len(flat)) + 0.5) / len(flat)
            for column in range(flat.shape[1]):
                places = np.concatenate([[0.0], flat[:, column], [1.0]])
                axes.plot(
                    places,
                    np.concatenate([[0.0], steps, [1.0]]) - places,
                    color=color(index),
                    linewidth=1.2,
                    alpha=0.8,
                    label=name,
                )
    if smallest is not None:
        half = _CRITICAL / smallest**0.5
        axes.axhspan(-half, half, color="0.9", zorder=0, label="99 % band of a calibrated guide")
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of draws below the truth")
    axes.set_ylabel("ECDF less uniform")
    axes.set_title("Calibration on simulated data: one line a latent", fontsize=11)
    legend(figure)
    return figure


def _labels(tree: DataTree) -> list[str]:
    return [label for v in tree["posterior"].data_vars.values() for label in labels_of(v)][:200]


def _columns(tree: DataTree, labels: list[str], count: int | None = None) -> Array:
    """Return the draws of some scalars, ``(scalars, draws)``."""
    found: dict[str, Array] = {}
    for variable in tree["posterior"].data_vars.values():
        draws = np.asarray(variable.values, dtype=float)
        flat = draws.reshape(draws.shape[0] * draws.shape[1], -1)
        found.update(zip(labels_of(variable), flat.T, strict=True))
    rows = np.stack([found[label] for label in labels])
    if count is None or rows.shape[1] <= count:
        return rows
    return rows[:, np.linspace(0, rows.shape[1] - 1, count).astype(int)]
