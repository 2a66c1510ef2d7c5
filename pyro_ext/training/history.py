"""What a fit records on its way."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pyro_ext.losses import ELBO, Annealed
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.batches import Step
from pyro_ext.training.ranks import Ranks

__all__ = ["RECORD_EVERY", "History"]

RECORD_EVERY = 50
_RECORDS = ("elbos", "elbo_steps", "holdout", "holdout_steps")


class History:
    """Losses of all steps, and the plain ELBO of some.

    Args:
        loss: The loss that is minimized.
        num_data: Number of data.
        unchanged: Makes a context that leaves random states and buffers as they are.
        ranks: The processes that share the batch.
    """

    def __init__(
        self,
        loss: BoundLoss,
        num_data: int,
        unchanged: Callable[[], AbstractContextManager[None]],
        ranks: Ranks,
    ) -> None:
        self.num_data = num_data
        self._loss, self._unchanged, self._ranks = loss, unchanged, ranks
        self.losses: list[Tensor] = []
        self.elbos: list[float] = []
        self.elbo_steps: list[int] = []
        self.holdout: list[float] = []
        self.holdout_steps: list[int] = []

    def before(
        self,
        number: int,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        step: Step,
        *,
        last: bool,
    ) -> None:
        """Estimate the ELBO at every 50th step and the last, where the loss itself does not tell.

        Args:
            number: Number of the step.
            model: The model.
            guide: Its guide.
            step: The step.
            last: Whether it is the last one.
        """
        # Without a density there is no log q for the plain ELBO.
        if (number % RECORD_EVERY and not last) or not self._loss.needs_density:
            return
        self.elbo_steps.append(number)
        if self._known(number):
            return
        loss = self._loss
        plain = loss.elbo if isinstance(loss, Annealed) else ELBO()
        with self._unchanged(), step.context:
            value = plain.loss(model, guide, *step.args, **step.kwargs)
        self.elbos.append(-self._ranks.mean(value, step.share))

    def after(self, number: int, value: Tensor) -> None:
        """Record the loss of a step.

        Args:
            number: Number of the step.
            value: Its loss.
        """
        self.losses.append(value)
        if len(self.elbos) < len(self.elbo_steps):
            self.elbos.append(-value.item())

    def state(self) -> dict[str, Any]:
        """Return the records."""
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        return {"losses": losses, **{name: getattr(self, name) for name in _RECORDS}}

    def load(self, state: dict[str, Any]) -> None:
        """Take over records.

        Args:
            state: What ``state`` returned.
        """
        self.losses = list(state["losses"].unbind())
        for name in _RECORDS:
            setattr(self, name, list(state[name]))

    def go_on(self) -> None:
        """Forget the records of a last step that is the last no more, or was broken off."""
        taken = len(self.losses)
        kept = [n for n in self.elbo_steps if n < taken and n % RECORD_EVERY == 0]
        self.elbos, self.elbo_steps = self.elbos[: len(kept)], kept

    def shown(self) -> dict[str, str]:
        """Return what a progress bar shows: the loss, and the bound per datum."""
        shown = {"loss": f"{self.losses[-1].item():.2f}"}
        if self.elbos:
            shown["elbo_per_datum"] = f"{self.elbos[-1] / self.num_data:.4g}"
        return shown

    def _known(self, number: int) -> bool:
        """Tell whether minus the loss is the plain ELBO."""
        loss = self._loss
        return loss.at(number) == 1 if isinstance(loss, Annealed) else isinstance(loss, ELBO)
