"""The weight of an annealed loss as an input of the graph."""

import copy

import torch
from torch import Tensor

from pyro_ext.losses import Annealed

__all__ = ["Weight"]


class Weight:
    """The weight β of an annealed loss in a tensor, which a graph reads at each step.

    Args:
        loss: The loss of the user, which counts the steps.
        like: A tensor of the loss's dtype and device.
    """

    def __init__(self, loss: Annealed, like: Tensor) -> None:
        self._loss = loss
        self.value = torch.tensor(loss.beta, dtype=like.dtype, device=like.device)
        self.loss = copy.copy(loss)
        self.loss._given = self.value

    def advance(self) -> None:
        """Set the weight of this step, and go on to the next."""
        self.value.fill_(self._loss.beta)
        self._loss.step += 1
