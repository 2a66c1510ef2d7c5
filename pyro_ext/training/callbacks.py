"""What may be called after each step of a fit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro_ext.training.history import RECORD_EVERY, History

__all__ = ["Callback", "Progress", "TensorBoard"]


@dataclass(frozen=True)
class Progress:
    """How far a fit has come.

    Args:
        step: Number of the step that was taken, from 0.
        num_steps: Number of steps of the run.
        history: What was recorded.

    Example:
        >>> def stop(progress):
        ...     return "enough" if progress.step >= 3 else None
        >>> def model():
        ...     pyro.sample("mu", dist.Normal(0.0, 1.0))
        >>> px.fit(model, num_steps=10, callbacks=[stop], seed=0).stopped
        'enough'
    """

    step: int
    num_steps: int
    history: History = field(repr=False)

    @property
    def loss(self) -> float:
        """Loss of the step."""
        return self.history.losses[-1].item()

    @property
    def elbo_per_datum(self) -> float | None:
        """The plain ELBO per datum, as it was last recorded."""
        return self.history.elbos[-1] / self.history.num_data if self.history.elbos else None


Callback = Callable[[Progress], str | None]
"""Called after each step; a text that it returns stops the fit, which gives it as the reason."""


class TensorBoard:
    """Callback that writes loss and bound for TensorBoard, every 50th step.

    Args:
        folder: Where to write; by default what TensorBoard chooses.

    Raises:
        ImportError: If TensorBoard is not installed.

    Example:
        >>> board = px.TensorBoard("runs/first")  # doctest: +SKIP
        >>> run = px.fit(model, data=x, callbacks=[board])  # doctest: +SKIP
    """

    def __init__(self, folder: str | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard: expected the package tensorboard to be installed; got an "
                "environment without it. Write: pip install tensorboard."
            ) from error
        self._writer: Any = SummaryWriter(folder)

    def __call__(self, progress: Progress) -> None:
        """Write the numbers of a step.

        Args:
            progress: The step.
        """
        if progress.step % RECORD_EVERY:
            return
        self._writer.add_scalar("loss", progress.loss, progress.step)
        if progress.elbo_per_datum is not None:
            self._writer.add_scalar("elbo_per_datum", progress.elbo_per_datum, progress.step)
        if progress.history.holdout:
            self._writer.add_scalar(
                "holdout_per_datum", progress.history.holdout[-1], progress.step
            )
        self._writer.flush()
