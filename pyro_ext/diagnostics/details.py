"""Figures of the details: the ladder of bounds, gaps, pairs of latents, ranks."""

from collections.abc import Mapping, Sequence

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
from pyro_ext.diagnostics._reference import Place, Reference, draws_at, places_of
from pyro_ext.diagnostics._result import Result
from pyro_ext.diagnostics._types import Array, DataTree, Figure

__all__ = ["gap_bars", "ladder", "marginals", "pairs", "rank_ecdf"]

_MAX_POINTS, _MOST_SCALARS = 400, 200
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


def marginals(results: Mapping[str, Result], reference: Reference | None) -> Figure | None:
    """Draw histograms of single latents: of the six on which guides and reference differ most.

    They are latents that all have; None if there are none.

    Args:
        results: Results by name.
        reference: The reference, whose draws are filled; without, guides are held to one another.
    """
    from matplotlib.figure import Figure as NewFigure

    trees = {name: result.tree for name, result in results.items()}
    behind = None if reference is None else reference.tree
    labels, places = _shared([*trees.values(), *([] if behind is None else [behind])])
    if not labels:
        return None
    columns = {name: draws_at(tree, places) for name, tree in trees.items()}
    main = next(iter(columns.values())) if behind is None else draws_at(behind, places)
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
    behind = None if reference is None else reference.tree
    labels, places = _shared([*trees.values(), *([] if behind is None else [behind])])
    if len(labels) < 2:
        return None
    sources = [*trees.values()] if behind is None else [behind]
    correlation = np.nan_to_num(
        np.max([np.abs(np.corrcoef(draws_at(tree, places))) for tree in sources], axis=0)
    )
    np.fill_diagonal(correlation, 0)
    pair = [int(at) for at in np.unravel_index(correlation.argmax(), correlation.shape)]
    names, chosen = [labels[at] for at in pair], [places[at] for at in pair]
    figure = NewFigure(figsize=(max(4.0, 3.2 * len(trees)), 3.8), layout="constrained")
    grid = figure.subplots(1, len(trees), squeeze=False, sharex=True, sharey=True)[0]
    for index, (axes, (name, tree)) in enumerate(zip(grid, trees.items(), strict=True)):
        if behind is not None:
            axes.scatter(*_some(behind, chosen), s=6, color="0.6", label="reference")
        axes.scatter(*_some(tree, chosen), s=6, color=color(index), alpha=0.6, label=name)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(names[0])
    drawn = np.concatenate([_some(tree, chosen) for tree in trees.values()], 1)
    main = drawn if behind is None else draws_at(behind, chosen)
    if behind is not None:
        drawn = np.concatenate([drawn, _some(behind, chosen)], 1)
    first, second = np.quantile(main, (0.01, 0.99), axis=1).T  # one draw far out squashes the rest
    keep_close(grid[0], "x", first, drawn[0])
    keep_close(grid[0], "y", second, drawn[1])
    grid[0].set_ylabel(names[1])
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


def _shared(trees: Sequence[DataTree]) -> tuple[list[str], list[Place]]:
    """Return the scalars that all trees have: their names in the first, and their places."""
    others = [{at for _, at in places_of(tree)} for tree in trees[1:]]
    known = places_of(trees[0])
    shared = [(n, at) for n, at in known if all(at in other for other in others)][:_MOST_SCALARS]
    return [label for label, _ in shared], [place for _, place in shared]


def _some(tree: DataTree, places: Sequence[Place]) -> Array:
    """Return no more draws of some scalars than a panel can show, ``(scalars, draws)``."""
    rows = draws_at(tree, places)
    count = min(rows.shape[1], _MAX_POINTS)
    return rows[:, np.linspace(0, rows.shape[1] - 1, count).astype(int)]
