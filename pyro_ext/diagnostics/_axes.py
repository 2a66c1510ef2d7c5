"""What the figures share: colours, axes with a grid, rows with names, a legend below."""

from typing import Any

import numpy as np

from pyro_ext.diagnostics._types import Axes, Figure

__all__ = ["COLORS", "LIMIT", "MARKERS", "color", "legend", "name_rows", "new_figure"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P")
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
