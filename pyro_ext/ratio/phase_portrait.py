"""A picture of a game of two numbers: its velocity field and where some starts lead."""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_ext.ratio.game import Game

__all__ = ["phase_portrait"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GRID = 25


def phase_portrait(
    game: Game,
    trajectories: Mapping[str, Tensor],
    *,
    limit: float = 2.0,
    title: str = "",
) -> Figure:
    """Draw the velocity field of a game of two numbers, and trajectories through it.

    Args:
        game: A game with one ψ and one θ.
        trajectories: States by name, shape ``(states, 2)`` each, as ``Game.trajectory`` returns.
        limit: Half the width of the picture.
        title: Its title.

    Raises:
        ValueError: If the game has more than one ψ, or a trajectory more than two numbers a state.

    Example:
        >>> game = Game(lambda psi, theta: (-(psi * theta).sum(), (psi * theta).sum()), num_psi=1)
        >>> path = game.trajectory(torch.ones(2), step_size=0.1, num_steps=9)
        >>> phase_portrait(game, {"simultaneous": path}).axes[0].get_xlabel()
        'θ (generator)'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    wide = [name for name, states in trajectories.items() if states.shape[1] != 2]
    if game.num_psi != 1 or wide:
        raise ValueError(
            f"phase_portrait: expected one ψ and one θ; got {game.num_psi} ψ, and more than two "
            f"numbers in {wide}. Write: axes.plot(states.norm(dim=1)), to draw norms instead."
        )
    figure = NewFigure(figsize=(5.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    at = torch.linspace(-limit, limit, _GRID, dtype=torch.float64)
    theta, psi = (grid.flatten() for grid in torch.meshgrid(at, at, indexing="xy"))
    field = torch.stack([game.velocity(state) for state in torch.stack([psi, theta], 1)])
    of_psi, of_theta = (part.reshape(_GRID, _GRID).numpy() for part in field.T)
    axes.streamplot(
        at.numpy(), at.numpy(), of_theta, of_psi, color="0.75", linewidth=0.8, arrowsize=0.8
    )
    for color, (name, states) in zip(cycle(_COLORS), trajectories.items(), strict=False):
        path = states.detach().cpu().numpy()
        axes.plot(path[:, 1], path[:, 0], ".-", color=color, markersize=3, lw=0.8, label=name)
        axes.plot(path[0, 1], path[0, 0], "o", color=color, markersize=6)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    axes.set_xlabel("θ (generator)")
    axes.set_ylabel("ψ (critic)")
    if trajectories:
        axes.legend(loc="upper right", fontsize=8)
    return figure
