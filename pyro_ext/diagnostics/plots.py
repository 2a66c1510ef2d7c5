"""Figures of a comparison. Nothing here touches matplotlib's global state."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_ext.diagnostics._axes import (
    COLORS,
    LIMIT,
    MARKERS,
    color,
    keep_close,
    legend,
    lowest_shown,
    name_rows,
    new_figure,
    not_below,
)
from pyro_ext.diagnostics._reference import Reference, places_of
from pyro_ext.diagnostics._result import Result
from pyro_ext.diagnostics._types import Array, DataTree, Figure

__all__ = ["bound_ladder", "forest", "k_hats", "sd_ratios"]

_MAX_SCALARS = 24
_ERRORS = 2
_K_HATS = (-0.5, 1.5)
_SD_RATIOS = (0.05, 20.0)
_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20)


def bound_ladder(results: Mapping[str, Result], exact_evidence: float | None) -> Figure:
    """Draw ELBO, IWAE bound and estimated log evidence of each guide, ± 2 standard errors.

    Args:
        results: Results by name.
        exact_evidence: A line, if known.
    """
    figure, axes = new_figure(7.5, 1.6 + 0.75 * len(results))
    particles = next(iter(results.values())).evidence.num_particles
    kinds = (
        ("elbo", "ELBO", -0.2),
        ("iwae", f"IWAE-{particles}", 0.0),
        ("log_evidence", "log evidence (importance sampling)", 0.2),
    )
    elbos = [result.evidence.elbo for result in results.values()]
    lowest = lowest_shown([elbo.value for elbo in elbos])
    for paint, marker, (kind, label, shift) in zip(COLORS, MARKERS, kinds, strict=False):
        estimates = [getattr(result.evidence, kind) for result in results.values()]
        axes.errorbar(
            [not_below(lowest, estimate.value) for estimate in estimates],
            np.arange(len(results)) + shift,
            xerr=[_ERRORS * estimate.se for estimate in estimates],
            fmt=marker,
            color=paint,
            capsize=3,
            label=label,
        )
    if exact_evidence is not None:
        axes.axvline(exact_evidence, color="black", linewidth=1, label="exact log evidence")
    if lowest is not None:
        axes.set_xlim(lowest, _highest(results, lowest, exact_evidence))
        for row, elbo in enumerate(elbos):
            if elbo.value < lowest:
                text = f"◀ ELBO {elbo}"
                axes.annotate(text, (lowest, row - 0.2), xytext=(3, 0), textcoords="offset points",
                              va="center", fontsize=9, color=COLORS[0])  # fmt: skip
    name_rows(axes, list(results))
    axes.set_xlabel("nats (bars: ± 2 standard errors)")
    axes.set_title("Bounds on the log evidence: further right is better", fontsize=11)
    legend(figure)
    return figure


def k_hats(results: Mapping[str, Result]) -> Figure:
    """Draw k-hat of each guide: over the datapoints, or one joint value each.

    Args:
        results: Results by name.
    """
    local = {n: r for n, r in results.items() if r.evidence.k_hat.values.numel() > 1}
    threshold = next(iter((local or results).values())).evidence.k_hat.threshold
    if local:
        figure, axes = new_figure(7.5, 4.4)
        for index, (name, result) in enumerate(local.items()):
            values = np.sort(result.evidence.k_hat.values.flatten().numpy())
            axes.plot(
                (np.arange(len(values)) + 0.5) / len(values) * 100,
                values.clip(*_K_HATS),
                color=color(index),
                linewidth=1.8,
                marker=MARKERS[index % len(MARKERS)] if len(values) <= 50 else None,
                markersize=4,
                label=name,
            )
        axes.axhline(threshold, **LIMIT, label=f"limit {threshold:.2f}")
        axes.set_xlim(0, 100)
        axes.set_xlabel("datapoints, from lowest to highest k-hat (%)")
        axes.set_ylabel(f"k-hat (drawn within {_K_HATS[0]} and {_K_HATS[1]})")
        axes.set_title("k-hat by datapoint: weighting works below the line", fontsize=11)
    else:
        figure, axes = new_figure(7.5, 1.6 + 0.45 * len(results))
        joint = [result.evidence.k_hat.values.item() for result in results.values()]
        places = np.clip(joint, *_K_HATS)
        axes.scatter(places, np.arange(len(results)), color=COLORS[0], zorder=3, s=45)
        for row, (value, place) in enumerate(zip(joint, places, strict=True)):
            axes.annotate(
                f"{value:.2f}{' ▶' if value > place else ''}",
                (place, row),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axes.axvline(threshold, **LIMIT, label=f"limit {threshold:.2f}")
        axes.set_xlim(min(0.0, *places) - 0.05, max(1.0, *places) + 0.1)
        name_rows(axes, list(results))
        axes.set_xlabel("k-hat of the joint importance weights")
        axes.set_title("k-hat: weighting works left of the line", fontsize=11)
    legend(figure)
    return figure


def forest(results: Mapping[str, Result], reference: Reference | None) -> Figure | None:
    """Draw marginal means and central 95 % intervals of each guide and of the reference.

    Args:
        results: Results by name.
        reference: The reference.

    Returns:
        None without a reference, or if there is no latent that all have.
    """
    chosen, total = _chosen(results)
    if reference is None or not chosen:
        return None
    known = dict(places_of(next(iter(results.values())).tree))
    panels: dict[str, list[str]] = {}
    for label in chosen:
        panels.setdefault(known[label][0], []).append(label)
    count = len(results) + 1
    height = 0.1 + 0.075 * count
    from matplotlib.figure import Figure as NewFigure

    sizes = [len(labels) for labels in panels.values()]
    figure = NewFigure(
        figsize=(7.5, 1.9 + 0.55 * len(panels) + height * sum(sizes)), layout="constrained"
    )
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[s + 0.6 for s in sizes])
    sources: list[tuple[str, Any, str, str]] = [(reference.label, None, "black", ".")]
    for index, (name, result) in enumerate(results.items()):
        sources.append((name, result, color(index), MARKERS[index % len(MARKERS)]))
    for axes, (variable, labels) in zip(grid[:, 0], panels.items(), strict=True):
        ends: list[Array] = []
        for position, (name, result, paint, marker) in enumerate(sources):
            rows = np.arange(len(labels)) + 0.8 * ((position + 0.5) / count - 0.5)
            places = [known[label][1] for label in labels]
            tree = reference.tree if result is None else result.tree
            mean, low, high = _interval(tree, reference, variable, places)
            ends.append(np.concatenate([low, high]))
            first = axes is grid[0, 0]
            axes.errorbar(
                mean,
                rows,
                xerr=(np.maximum(mean - low, 0), np.maximum(high - mean, 0)),
                fmt=marker,
                color=paint,
                markersize=5,
                linewidth=1.6,
                label=name if first else None,
            )
        keep_close(axes, "x", ends[0], np.concatenate(ends))
        name_rows(axes, labels)
        axes.set_ylabel(None)
    grid[-1, 0].set_xlabel(
        "mean and central 95 % interval; a guide that is not there is far outside"
    )
    grid[0, 0].set_title(_title("Marginals", len(chosen), total), fontsize=11)
    legend(figure)
    return figure


def sd_ratios(results: Mapping[str, Result], reference: Reference | None) -> Figure | None:
    """Draw each guide's marginal sds over those of the reference.

    Args:
        results: Results by name.
        reference: The reference.

    Returns:
        None without a reference, or if there is no latent that all have.
    """
    chosen, total = _chosen(results)
    if reference is None or not chosen:
        return None
    figure, axes = new_figure(7.5, 1.7 + (0.12 + 0.07 * len(results)) * len(chosen))
    axes.axvline(1.0, color="black", linewidth=1, label=f"{reference.label} sd")
    low, high = 0.9, 1.1
    for index, (name, result) in enumerate(results.items()):
        if result.distance is None:
            continue
        place = {label: i for i, label in enumerate(result.distance.labels)}
        ratios = np.array([result.distance.sd_ratio[place[label]] for label in chosen])
        ratios = ratios.clip(*_SD_RATIOS)
        low, high = min(low, float(ratios.min())), max(high, float(ratios.max()))
        shift = 0.7 * ((index + 0.5) / len(results) - 0.5)
        axes.plot(
            ratios,
            np.arange(len(chosen)) + shift,
            MARKERS[index % len(MARKERS)],
            color=color(index),
            markersize=5,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xlim(low / 1.06, high * 1.06)
    shown = [tick for tick in _TICKS if low / 1.06 <= tick <= high * 1.06]
    while len(shown) > 9:
        shown = [tick for i, tick in enumerate(shown) if i % 2 == 0 or tick == 1]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_xticks([], minor=True)
    name_rows(axes, chosen)
    edge = "; at an edge: there or beyond" if {low, high} & set(_SD_RATIOS) else ""
    axes.set_xlabel(f"sd / reference sd (left of 1: too narrow{edge})")
    axes.set_title(_title("Posterior sds", len(chosen), total), fontsize=11)
    legend(figure)
    return figure


def _highest(results: Mapping[str, Result], lowest: float, exact: float | None) -> float:
    """Return the upper end of the error bars of the guides that are not cut."""
    bounds = [
        one
        for result in results.values()
        if result.evidence.elbo.value >= lowest
        for one in (result.evidence.elbo, result.evidence.iwae, result.evidence.log_evidence)
    ]
    ends = [one.value + _ERRORS * one.se for one in bounds]
    highest = max([*ends, *([] if exact is None else [exact])])
    return highest + 0.05 * (highest - lowest)


def _title(what: str, shown: int, total: int) -> str:
    if shown == total:
        return f"{what} against the reference"
    return f"{what} against the reference: the {shown} of {total} furthest from it"


def _chosen(results: Mapping[str, Result]) -> tuple[list[str], int]:
    """Return the scalars to show, in order: all, or those that are furthest from the reference."""
    far: list[dict[str, float]] = []
    for distance in (r.distance for r in results.values() if r.distance is not None):
        with np.errstate(divide="ignore"):
            score = np.maximum(np.abs(distance.mean_error), np.abs(np.log(distance.sd_ratio)))
        far.append(dict(zip(distance.labels, score.tolist(), strict=True)))
    labels = [label for label in far[0] if all(label in one for one in far)] if far else []
    furthest = sorted(labels, key=lambda label: -max(one[label] for one in far))[:_MAX_SCALARS]
    return [label for label in labels if label in set(furthest)], len(labels)


def _interval(
    tree: DataTree | None, reference: Reference, variable: str, places: list[int]
) -> tuple[Array, Array, Array]:
    if tree is None:
        moments = reference.moments[variable]
        mean, sd = moments.mean.reshape(-1)[places], moments.sd.reshape(-1)[places]
        return mean, mean - 1.96 * sd, mean + 1.96 * sd
    draws = np.asarray(tree["posterior"][variable].values, dtype=float)
    draws = draws.reshape(draws.shape[0] * draws.shape[1], -1)[:, places]
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return draws.mean(0), low, high
