"""What a fit leaves behind."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext._cited import Cited, references_of
from pyro_ext._whole import whole
from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.loader import loader_in
from pyro_ext.weights import log_weights

__all__ = ["Run", "offer"]

_offered: dict[str, Callable[..., Any]] = {}


def offer(name: str, function: Callable[..., Any]) -> None:
    """Let a method of ``Run`` call a function of a layer above.

    Args:
        name: Name of the method.
        function: Called with the run and the options of the method.
    """
    _offered[name] = function


@dataclass(frozen=True)
class Run(Cited):
    """What a fit leaves behind.

    Args:
        model: The model, with its fitted parameters.
        guide: The fitted guide.
        loss: The loss that was minimized.
        args: The model's arguments, with all rows; or the ``DataLoader``.
        losses: Loss of each step in nats, shape ``(num_steps,)``.
        seconds: Wall time of the fit.
        seed: Seed of the fit's random numbers.
        stopped: Why it stopped.
        elbo_per_datum: The plain ELBO in nats per datum, whatever the loss and its annealing, of
            every 50th step and the last of ``num_steps``: an estimate from the step's own rows,
            shape ``(records,)``.
        elbo_steps: The steps that it is of, shape ``(records,)``.
        num_data: Number of data that it is divided by: the size of the data plate, 1 if none is
            known.
        compiled: From which step on the steps were recorded or compiled, or why they were not.
        holdout_per_datum: Minus the loss of held-out data per row, shape ``(looks,)``.
        holdout_steps: The steps after which that was, shape ``(looks,)``.
        session: What it takes to go on.

    Example:
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> run = px.fit(model, data=torch.full((20,), 3.0), num_steps=10, seed=0)
        >>> run.losses.shape, run.resume(5).num_steps
        ((10,), 15)
        >>> run.sample(100)["mu"].shape
        torch.Size([100])
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: BoundLoss
    args: tuple[Any, ...] = field(repr=False)
    losses: "np.ndarray[Any, np.dtype[np.float64]]" = field(repr=False)
    seconds: float
    seed: int
    stopped: str
    elbo_per_datum: "np.ndarray[Any, np.dtype[np.float64]]" = field(repr=False)
    elbo_steps: "np.ndarray[Any, np.dtype[np.int64]]" = field(repr=False)
    num_data: int
    compiled: str = field(default="", kw_only=True)
    holdout_per_datum: "np.ndarray[Any, np.dtype[np.float64]]" = field(
        default_factory=lambda: np.zeros(0), repr=False, kw_only=True
    )
    holdout_steps: "np.ndarray[Any, np.dtype[np.int64]]" = field(
        default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False, kw_only=True
    )
    session: Any = field(default=None, repr=False, compare=False, kw_only=True)

    def _papers_in_use(self) -> Iterable[str]:
        return references_of(self.guide, self.loss)

    def __str__(self) -> str:
        """One line each of what was fitted, and how it ended."""
        return "\n".join(f"{name:<9}{text}" for name, text in self._lines().items() if text)

    def _lines(self) -> dict[str, str]:
        name = getattr(self.guide, "__name__", type(self.guide).__name__)
        family = getattr(self.guide, "family", None)
        return {
            "guide": name if family is None else f"{name}, {family}",
            "loss": str(self.loss),
            "steps": f"{self.num_steps:,} in {self.seconds:.1f} s, seed {self.seed}",
            "stopped": self.stopped,
            "compiled": self.compiled,
        }

    @property
    def num_steps(self) -> int:
        """Number of steps that were taken."""
        return len(self.losses)

    def resume(self, num_steps: int) -> "Run":
        """Take further steps, from where the fit stopped, and return the longer run.

        Optimizer, learning-rate schedule, order of the rows and random numbers go on as if it had
        never stopped; so the rate of the default optimizer, which has fallen to 0 on a cosine,
        rises again, and a fit that is to be resumed has an ``optim`` of its own. The parameters
        are those of this run, which is not to be resumed twice.

        Args:
            num_steps: Number of further steps.

        Raises:
            TypeError: If ``num_steps`` is no whole number.
            ValueError: If it is not positive, or the fit has nothing to go on with, as an
                automatic one.
        """
        if self.session is None:
            raise ValueError(
                "Run.resume: expected a run of px.fit with settings; got one that was found "
                "without. Write: px.fit(model, run.guide, data=data)."
            )
        num_steps = whole(num_steps, "num_steps", write="run.resume(1000)", owner="Run.resume")
        if num_steps < 1:
            raise ValueError(
                f"Run.resume: expected num_steps >= 1; got {num_steps}. Write: run.resume(1000)."
            )
        self.session.resume(num_steps)
        resumed: Run = self.session.run()
        return resumed

    def to_datatree(self, **options: Any) -> Any:
        """Draw from the guide and return what ArviZ works on.

        Args:
            **options: Options of ``px.to_datatree``.
        """
        return _offered["to_datatree"](self, **options)

    def sample(self, num_samples: int) -> dict[str, Tensor]:
        """Draw latents of all rows from the fitted guide, shape ``(num_samples, *site)`` each.

        Args:
            num_samples: Number of draws.

        Raises:
            ValueError: If the fit got a ``DataLoader``.
        """
        if loader_in(self.args) is not None:
            raise ValueError(
                "Run.sample: expected a run whose data are at hand; got one of a DataLoader. "
                "Write: run.guide.sample_posterior(num_samples, x)."
            )
        if isinstance(self.guide, PackedGuide):
            # All rows, also where the model subsamples inside its plate.
            return self.guide.sample_posterior(num_samples, *self.args)
        with torch.no_grad():
            draws = log_weights(
                self.model, self.guide, *self.args, num_particles=num_samples, joint=True
            )
        return draws.latents
