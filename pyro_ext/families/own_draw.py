"""A draw that its distribution scores without an inverse."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["OwnDraw"]


@dataclass(frozen=True)
class OwnDraw:
    """A draw with what is known of its density.

    Args:
        value: The draw.
        log_prob: Its log density, or that of its noise.
        recorded: Whether gradients were recorded when it was made.
    """

    value: Tensor
    log_prob: Tensor
    recorded: bool
    version: int = field(init=False)

    def __post_init__(self) -> None:
        """Note how often the draw was changed in place so far."""
        object.__setattr__(self, "version", _version(self.value))

    def scores(self, value: Tensor) -> bool:
        """Tell whether a value is this very draw, not changed in place since.

        A draw that recorded no gradient has a density without the gradient of the score.
        """
        same = value is self.value and _version(value) == self.version
        return same and self.recorded >= torch.is_grad_enabled()


def _version(value: Tensor) -> int:
    """Return how often a tensor was changed in place, which inference mode does not count."""
    return -1 if value.is_inference() else value._version
