"""What families with networks share: the context in π, and networks that start at zero."""

import torch
from torch import Tensor, nn

from pyro_ext._whole import whole
from pyro_ext.families._fixed import fixed_normal

__all__ = ["average_last", "check_context", "initial_context", "join_context", "zero_last"]


def check_context(owner: str, context: int) -> int:
    """Return the size of the context as an int; raise if it is negative."""
    context = whole(context, "context", write="context=8", owner=owner)
    if context < 0:
        raise ValueError(
            f"{owner}: expected a context of size >= 0; got {context}. Write: context=8, or leave "
            "it out if all π share one shape of distribution."
        )
    return context


def initial_context(size: int, loc: Tensor) -> Tensor:
    """Return the context to start from, shape ``(*batch, size)``: the same for every element.

    It is not zero, for then the weights that read it would have no gradient.
    """
    return fixed_normal(size).to(loc).expand(*loc.shape[:-1], size)


def join_context(rows: Tensor, context: Tensor) -> Tensor:
    """Return the rows with the context behind each."""
    lead = torch.broadcast_shapes(rows.shape[:-1], context.shape[:-1])
    return torch.cat([rows.expand(*lead, -1), context.expand(*lead, -1)], dim=-1)


def zero_last(layers: nn.Sequential) -> None:
    """Let a network of layers return zero, and learn nevertheless."""
    for param in layers[-1].parameters():
        nn.init.zeros_(param)


class _Averaged(nn.Module):
    """An activation, divided by the number of units."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, units: Tensor) -> Tensor:
        """Return the activation of each unit by their number."""
        active: Tensor = self.activation(units)
        return active / active.shape[-1]


def average_last(layers: nn.Sequential) -> None:
    """Let the last of some layers average its inputs where it summed them.

    Adam moves each weight by about the learning rate, so that a sum of n units moves n times as
    fast as a parameter does. An average moves as fast, at any width.
    """
    if len(layers) > 1:
        layers[-2] = _Averaged(layers[-2])
