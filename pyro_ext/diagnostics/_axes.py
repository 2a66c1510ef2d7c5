"""What the figures share: colours, axes with a grid, rows with names, a legend below."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pyro_ext.diagnostics._types import Array, Axes, Figure

__all__ = [
    "COLORS",
    "LIMIT",
    "MARKERS",
    "color",
    "keep_close",
    "legend",
    "lowest_shown",
    "name_rows",
    "new_figure",
    "not_below",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # one more: the seventh guide differs
LIMIT: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}


def color(index: int) -> str:
    """Return the colour of a guide.

    Args:
        index: Its place.
    """
    return COLORS[index % len(COLORS)]


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes.

    Args:
        width: In inches.
        height: In inches.
    """
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def name_rows(axes: Axes, labels: list[str]) -> None:
    """Give each row of the axes a name, the first on top.

    Args:
        axes: The axes.
        labels: The names.
    """
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.grid(visible=True, axis="x", color="0.9", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)


def lowest_shown(values: Sequence[float]) -> float | None:
    """Return where to cut an axis of bounds, for a diverged guide not to hide how the others lie.

    Twenty nats below the best bound, or twenty times as far as the second one is.

    Args:
        values: One bound a guide.

    Returns:
        The cut, or None if no guide is below it.
    """
    gaps = np.sort(np.max(values) - np.asarray(values))
    positive = gaps[gaps > 0]
    if not len(positive):
        return None
    reach = max(20.0, 20 * float(positive[0]))
    return float(np.max(values) - 1.1 * reach) if gaps[-1] > reach else None


def not_below(lowest: float | None, value: float) -> float:
    """Return a value, or NaN, which is not drawn, where it is below the cut.

    Args:
        lowest: The cut, if there is one.
        value: The value.
    """
    return np.nan if lowest is not None and value < lowest else value


def keep_close(axes: Axes, axis: Literal["x", "y"], near: Array, every: Array) -> None:
    """Cut an axis two widths beyond some numbers, if others are twice as far out.

    Args:
        axes: The axes.
        axis: ``"x"`` or ``"y"``.
        near: What must be seen.
        every: All that is drawn.
    """
    low, high = near.min(), near.max()
    width = high - low
    if every.min() < low - 4 * width or every.max() > high + 4 * width:
        ends = (max(low - 2 * width, every.min()), min(high + 2 * width, every.max()))
        axes.set(**{f"{axis}lim": ends})


def legend(figure: Figure) -> None:
    """Put the legend below the axes, where it covers nothing.

    Args:
        figure: The figure.
    """
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    longest = max(map(len, entries))
    columns = max(1, min(len(entries), 75 // (longest + 6)))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
