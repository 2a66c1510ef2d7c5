"""What a fit records on its way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ext.losses import ELBO, Annealed
from pyro_ext.losses.loss import BoundLoss

__all__ = ["RECORD_EVERY", "History"]

RECORD_EVERY = 50


class History:
    """Losses of all steps, and the plain ELBO of some.

    Args:
        loss: The loss that is minimized.
        num_data: Number of data.
        num_steps: Number of steps of the run.
        devices: GPUs whose random state is left alone.
    """

    def __init__(self, loss: BoundLoss, num_data: int, num_steps: int, devices: list[int]) -> None:
        self.num_data, self._num_steps = num_data, num_steps
        self._loss, self._devices = loss, devices
        self.losses: list[Tensor] = []
        self.elbos: list[float] = []
        self.elbo_steps: list[int] = []

    def record(
        self,
        step: int,
        value: Tensor,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        """Record the ELBO at every 50th step; another pass estimates it if the loss is another.

        Args:
            step: The step.
            value: Value of the loss.
            model: The model.
            guide: Its guide.
            args: Arguments of the step.
        """
        if step % RECORD_EVERY and step != self._num_steps - 1:
            return
        if not self._loss.needs_density:
            return  # there is no log q for the plain ELBO
        self.elbo_steps.append(step)
        loss = self._loss
        annealed = loss if isinstance(loss, Annealed) else None
        known = isinstance(loss, ELBO) if annealed is None else annealed.at(step) == 1
        if known:
            self.elbos.append(-value.item())
            return
        with torch.random.fork_rng(devices=self._devices):
            plain = ELBO() if annealed is None else annealed.elbo
            self.elbos.append(-plain.loss(model, guide, *args))
