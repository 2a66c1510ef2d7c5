"""One step of a flow, and what a layer that makes it is built from."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["LayerSpec", "Step"]


@dataclass(frozen=True)
class Step:
    """A map x ↦ y of R^D, with the logarithm of the determinant of its Jacobian.

    Args:
        forward: From x to y and log |det ∂y/∂x|.
        inverse: From y to x and the same log |det ∂y/∂x|.
    """

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LayerSpec:
    """What a layer is built from.

    Args:
        dim: Dimension D.
        index: Place of the layer in the flow, from 0.
        context: Size of the context; 0 for none.
        hidden: Widths of hidden layers.
        num_bins: Bins of a spline.
        averaged: Whether the last layer of a network averages its inputs or sums them.
    """

    dim: int
    index: int
    context: int
    hidden: tuple[int, ...]
    num_bins: int
    averaged: bool
