"""Held-out data, and when a fit has come to its end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._modules import evaluated
from pyro_ext._whole import whole
from pyro_ext.losses import Annealed
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.batches import told_rows
from pyro_ext.training.compiled.walk import in_sight
from pyro_ext.training.history import History
from pyro_ext.training.loader import loader_in

__all__ = ["Holdout", "Plateau", "annealing_end"]

_PARTS = 10  # of a window, whose means tell how sure the mean of the window is


@dataclass(frozen=True)
class Holdout:
    """Data that a fit is looked at with, by the same noise each time.

    Only for guides that know rows which they were not trained on: amortized ones, and those of
    global latents alone.

    Args:
        data: The model's argument, or a tuple of its arguments.
        every: Number of steps between two looks.
        loss: What to look at; by default the loss of the fit, without its annealing.

    Raises:
        TypeError: If data are in a ``DataLoader``, ``every`` is no whole number, or the loss none
            of this package.
        ValueError: If ``every`` is not positive.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.zeros(20))
        >>> guide = px.AutoAmortized(exact.model, lambda x: x.unsqueeze(-1))
        >>> looks = Holdout(torch.ones(10), every=5)
        >>> run = px.fit(exact.model, guide, px.ELBO(), exact.x, num_steps=10, holdout=looks)
        >>> run.holdout_per_datum.shape
        (2,)
    """

    data: Any
    every: int = 200
    loss: BoundLoss | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        every = whole(self.every, "every", write="every=200", owner="Holdout")
        object.__setattr__(self, "every", every)
        if loader_in(self._args) is not None:
            raise TypeError(
                "Holdout: expected held-out rows in a tensor or a tuple of arguments, which are "
                "looked at together; got a DataLoader. Write: px.Holdout(x_test)."
            )
        if self.loss is not None and not isinstance(self.loss, BoundLoss):
            raise TypeError(
                f"Holdout: expected a loss of pyro_ext; got {self.loss!r}. Write: "
                "px.Holdout(x_test, loss=px.IWAE(100))."
            )
        if self.every < 1:
            raise ValueError(f"Holdout: expected every >= 1; got {self.every}. Write: every=200.")

    def evaluate(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loss: BoundLoss,
        devices: Sequence[int],
    ) -> float:
        """Return minus the loss.

        Args:
            model: The model.
            guide: Its guide.
            loss: The loss of the fit.
            devices: GPUs whose random state is left alone.
        """
        used = self.loss or (loss.elbo if isinstance(loss, Annealed) else loss)
        with evaluated(*in_sight(model, guide)), torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(0)
            return -used.loss(model, guide, *self._args)

    def count(
        self, model: Callable[..., Any], guide: Callable[..., Any], plate: str | None
    ) -> int:
        """Return the number of held-out rows: of the data plate, or of the first tensor.

        Args:
            model: The model.
            guide: Its guide.
            plate: Name of the data plate, or None to find it.
        """
        with evaluated(*in_sight(model, guide)):
            rows = told_rows(Pair(model, guide, self._args, {}), plate)
        tensors = (a for a in self._args if isinstance(a, Tensor) and a.dim())
        return next((len(tensor) for tensor in tensors), 1) if rows is None else rows

    @property
    def _args(self) -> tuple[Any, ...]:
        return tuple(self.data) if isinstance(self.data, (tuple, list)) else (self.data,)


@dataclass(frozen=True)
class Plateau:
    r"""Stops a fit whose loss no longer falls by more than its noise.

    The mean loss of each window of steps is compared with that of the window before:

    .. math:: \bar{\mathcal{L}}_{\text{before}} - \bar{\mathcal{L}}_{\text{now}}
        \le z \sqrt{s^2_{\text{before}} + s^2_{\text{now}}}

    with standard errors s from the means of ten parts of a window. It counts from the end of an
    annealing schedule on, and steps that were left out as not finite do not count.

    Args:
        window: Number of steps of a window.
        z: How many standard errors a fall must exceed to count as one.
        patience: Number of windows in a row without a fall.

    Raises:
        TypeError: If ``window`` or ``patience`` is no whole number.
        ValueError: If an option is not in its range.

    Example:
        >>> def model():
        ...     pyro.sample("mu", dist.Normal(0.0, 1.0))
        >>> run = px.fit(model, num_steps=5000, plateau=Plateau(window=50), compile=False, seed=0)
        >>> len(run.losses) < 5000
        True
    """

    window: int = 500
    z: float = 1.0
    patience: int = 2

    def __post_init__(self) -> None:
        """Check the options."""
        for name, write in (("window", "window=500"), ("patience", "patience=2")):
            number = whole(getattr(self, name), name, write=write, owner="Plateau")
            object.__setattr__(self, name, number)
        if self.window < 2 * _PARTS or not self.z >= 0 or self.patience < 1:
            raise ValueError(
                f"Plateau: expected window >= {2 * _PARTS}, z >= 0 and patience >= 1; got {self}. "
                "Write: px.Plateau(window=500)."
            )

    def reached(self, history: History, loss: BoundLoss, left_out: Sequence[int]) -> str | None:
        """Return why a fit is to stop, or None.

        Args:
            history: Its history.
            loss: Its loss.
            left_out: Steps that were left out.
        """
        start, steps = annealing_end(loss), len(history.losses)
        needed = self.window * (self.patience + 1)
        if steps - start < needed or (steps - start) % self.window:
            return None
        losses = torch.stack(history.losses[steps - needed :]).cpu().double()
        if any(step >= steps - needed for step in left_out) or not losses.isfinite().all():
            return None
        means, errors = zip(*map(_mean_and_error, losses.split(self.window)), strict=True)
        for index in range(self.patience):
            fall = means[index] - means[index + 1]
            if fall > self.z * math.hypot(errors[index], errors[index + 1]):
                return None
        fall, error = means[-2] - means[-1], math.hypot(errors[-2], errors[-1])
        return (
            f"plateau: from one window of {self.window} steps to the next the loss fell by "
            f"{fall:.3g} ± {error:.2g}"
        )


def annealing_end(loss: BoundLoss) -> int:
    """Return the step from which on a loss is annealed no more.

    Args:
        loss: The loss.
    """
    if not isinstance(loss, Annealed):
        return 0
    steps = loss.schedule.num_steps
    if isinstance(steps, float):
        steps = math.ceil(steps * ((loss.total or 1) - 1))
    return int(steps)


def anneals_a_share(loss: BoundLoss) -> bool:
    """Tell whether a loss is annealed for a share of the run, whatever its length.

    Args:
        loss: The loss.
    """
    return isinstance(loss, Annealed) and isinstance(loss.schedule.num_steps, float)


def _mean_and_error(window: Tensor) -> tuple[float, float]:
    parts = torch.stack([part.mean() for part in window.tensor_split(_PARTS)])
    return window.mean().item(), (parts.std() / _PARTS**0.5).item()
