"""Figures of the page of benchmarks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["FIGURES"]

COLORS = {"ours": "C0", "Pyro": "C1", "NumPyro": "C2", "auto": "k"}


def accuracy(cells: dict[str, Any], path: Path) -> None:
    """Draw the worst mean error of each fit, by posterior."""
    fits = [
        (name.split("/"), value)
        for name, value in cells.items()
        if name.count("/") == 4 and math.isfinite(value.get("mean_error", math.inf))
    ]
    posteriors = list(dict.fromkeys(parts[0] for parts, _ in fits))[::-1]
    figure, (left, right) = _panels(2, width=5.2, height=4.2)
    lifts = {"ours": 0.15, "Pyro": -0.05, "NumPyro": -0.25, "auto": 0.32}
    labels = {"ours": "ours, fixed budget", "auto": "ours, auto"}
    for who, color in COLORS.items():
        own = [
            (posteriors.index(parts[0]), value)
            for parts, value in fits
            if (parts[2] if parts[2] == "auto" else parts[1]) == who
        ]
        rows = [row + lifts[who] for row, _ in own]
        style = {"color": color, "marker": "*" if who == "auto" else ".", "linestyle": "none"}
        left.plot([v["mean_error"] for _, v in own], rows, label=labels.get(who, who), **style)
        right.plot([v["seconds"] for _, v in own], rows, **style)
    left.axvline(0.05, color="0.6", linestyle=":")
    names = [name.partition("-")[2] for name in posteriors]
    left.set(xscale="log", xlabel="worst mean error, posterior sds", yticks=range(len(names)))
    left.set_yticklabels(names)
    right.set(xscale="log", xlabel="CPU seconds", yticks=[])
    figure.legend(loc="outside lower center", ncols=len(COLORS), fontsize=8)
    figure.savefig(path, dpi=110)


def scaling(cells: dict[str, Any], path: Path) -> None:
    """Draw milliseconds of a step against size."""
    axes = sorted({name.rsplit("/", 2)[0] for name in cells})
    figure, panels = _panels(len(axes), width=2.0, height=3.4, sharey=True)
    colors = {"eager": "C0", "recorded": "C2", "compiled": "C3", "Pyro": "C1"}
    for panel, axis in zip(panels, axes, strict=True):
        for how, color in colors.items():
            points = sorted(
                (int(name.rsplit("/", 1)[1]), value)
                for name, value in cells.items()
                if name.startswith(f"{axis}/{how}/")
            )
            if points:
                panel.loglog(
                    *zip(*points, strict=True), "o-", color=color, label=how, markersize=4
                )
        panel.set(title=axis, xlabel="size")
    panels[0].set(ylabel="ms of a step")
    lines = [Line2D([], [], color=color, marker="o", markersize=4) for color in colors.values()]
    figure.legend(lines, list(colors), loc="outside lower center", ncols=len(colors))
    figure.savefig(path, dpi=110)


FIGURES: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "accuracy": accuracy,
    "scaling": scaling,
}


def _panels(
    columns: int, *, width: float, height: float, sharey: bool = False
) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, sharey=sharey, squeeze=False)[0])
