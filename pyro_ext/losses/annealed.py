"""The ELBO with its KL divergence weighed by a schedule."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext.losses.elbo import ELBO
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.losses.schedule import LinearSchedule, Schedule
from pyro_ext.structure import counts_in_guide, sample_sites
from pyro_ext.weights import LogWeights

__all__ = ["Annealed"]


class Annealed(BoundLoss):
    r"""An ELBO whose KL divergence is warmed up: KL annealing, or a constant β (β-VAE).

    .. math:: \mathcal{L}_\beta = \mathbb{E}_{q(z)} \big[ \log p(x \mid z)
        + \beta_t \, (\log p(z) - \log q(z)) \big]

    β multiplies log p(z) and log q(z) of every latent, global ones too, and never the likelihood:
    observed sites and ``pyro.factor`` keep their weight. With β < 1 the value is no bound on the
    evidence; ``px.fit`` records the plain ELBO beside it, ``run.elbo_per_datum``, and raises if
    the run is too short for the schedule to reach its end. In Pyro's SVI the step t counts the
    gradients that were asked of this object; in ``px.fit`` it is the fit's.

    Args:
        elbo: The ELBO to anneal, with its estimator and form.
        schedule: β as a function of the step, or a number for a constant β.

    Raises:
        TypeError: If another loss is given. A K-sample bound of tempered weights bounds nothing,
            and its gradient estimators assume that the weights are p / q.
        ValueError: If β is negative.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016) |
        https://arxiv.org/abs/1511.06349
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
        (Higgins et al., 2017) | https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(1.0, pyro.param("s", torch.tensor(1e-6))))
        >>> loss = Annealed(ELBO(), LinearSchedule(0.0, 1.0, num_steps=2))
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 3)  # β = 0: the likelihood alone
        0.919
        >>> _ = [loss.loss_and_grads(model, guide, torch.tensor(1.0)) for _ in range(2)]
        >>> loss.beta
        1.0
    """

    estimators: ClassVar[tuple[str, ...]] = ELBO.estimators
    _given: Tensor | None = None
    """β from outside, where the steps are counted there."""
    _linear = True

    def __init__(self, elbo: BoundLoss, schedule: Schedule | float) -> None:
        if not isinstance(elbo, ELBO):
            raise TypeError(
                f"Annealed: expected a px.ELBO; got {elbo!r}, which is not linear in the log "
                f"weights. Write: px.Annealed(px.ELBO(), {schedule!r})."
            )
        if not isinstance(schedule, Schedule):
            schedule = LinearSchedule(schedule, schedule, num_steps=1)
        super().__init__(elbo.num_particles, estimator=elbo.estimator, joint=elbo.joint)
        self.particles, self._sitewise = elbo.particles, elbo._sitewise
        self.elbo, self.schedule = elbo, schedule
        self.step = 0
        self.total: int | None = None

    @property
    def beta(self) -> float:
        """The weight of the KL divergence at this step."""
        return self.at(self.step)

    def at(self, step: int) -> float:
        """Return the weight of the KL divergence at a step.

        Args:
            step: The step, counted from 0.
        """
        return self.schedule(step, self.total)

    def start(self, num_steps: int) -> None:
        """Begin a run of known length, as ``px.fit`` does.

        Args:
            num_steps: Number of steps of the run.

        Raises:
            ValueError: If the schedule does not reach its end value within the run.
        """
        name, end = type(self.schedule).__name__, self.schedule.end
        last = self.schedule(num_steps - 1, num_steps)
        if last != end:
            raise ValueError(
                f"fit: expected a schedule that reaches its end value {end:g} within the "
                f"{num_steps} steps of the run; got {self.schedule!r}, which stands at "
                f"{last:.3g} there. Write: px.{name}({self.schedule.start:g}, {end:g}, "
                "num_steps=0.5), half of the run, or px.fit(..., "
                f"num_steps={int(self.schedule.num_steps) + 1})."
            )
        self.step, self.total = 0, num_steps

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Float[Tensor, ""]:
        """Return the loss at this step, and go on to the next where gradients are on.

        Args:
            model: The model.
            guide: Its guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Raises:
            ValueError: If a guide site does not suit the estimator, or model and guide do not
                match.
        """
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        if torch.is_grad_enabled():
            self.step += 1
        return loss

    def __repr__(self) -> str:
        """Return the expression that makes this loss."""
        made = f"Annealed({self.elbo!r}, {self.schedule!r})"
        return made if self._chunk_size is None else f"{made}.in_chunks({self._chunk_size})"

    def _options(self) -> dict[str, Any]:
        return {"elbo": self.elbo, "schedule": self.schedule}

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return self.elbo._bound(log_weights, log_strata=log_strata)

    def _check(self, log_weights: LogWeights) -> None:
        self.elbo._check(log_weights)

    def _check_replayable(self, guide: Callable[..., Any], instead: str) -> None:
        super()._check_replayable(guide, f"px.Annealed(px.ELBO(), {self.schedule!r})")

    def _adjust(self, model_trace: Trace, guide_trace: Trace) -> object:
        self.elbo._adjust(model_trace, guide_trace)
        beta = self.beta if self._given is None else self._given
        latents = [site for _, site in sample_sites(model_trace) if not site["is_observed"]]
        latents += [site for _, site in sample_sites(guide_trace) if counts_in_guide(site)]
        for site in latents:
            site["scale"] = site["scale"] * beta
        return None

    def _papers_in_use(self) -> Iterable[str]:
        constant = self.schedule.start == self.schedule.end
        warm_up = "higgins2017beta" if constant else "bowman2016generating"
        return (warm_up, *self.elbo.references)
