"""Reweighted wake-sleep."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ext import bounds
from pyro_ext._checks import Pair
from pyro_ext._terms import Particles
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.weights import LogWeights, Mode

__all__ = ["WakeSleep"]


class WakeSleep(BoundLoss):
    r"""Reweighted wake-sleep: the guide follows the forward KL to the posterior.

    .. math::
        \nabla_\theta \log \frac1K \sum_k w_k, \qquad
        \nabla_\phi \sum_k \tilde w_k \log q_\phi(z_k), \qquad \tilde w_k = w_k / \sum_j w_j

    Draws are never differentiated, so that discrete sites need nothing special. The value is minus
    the importance-weighted bound, which the model climbs. Mini-batches are scaled outside.

    Args:
        num_particles: Number K >= 2 of particles: with one, the guide's gradient has mean zero.
        estimator: ``"wake"``, the self-normalized weights above (biased, by an order of 1/K).
        joint: Whether a model with global and local latents gets one joint weight.

    Raises:
        ValueError: If an argument is not in its range, or a model with global and local latents is
            not weighed jointly.

    References:
        Reweighted Wake-Sleep (Bornschein and Bengio, 2015) | https://arxiv.org/abs/1406.2751
        Revisiting Reweighted Wake-Sleep (Le et al., 2019) | https://arxiv.org/abs/1805.10469

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> round(WakeSleep(num_particles=10).loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("bornschein2015reweighted", "le2019revisiting")

    hierarchies: ClassVar[bool] = False
    estimators: ClassVar[tuple[str, ...]] = ("wake",)

    def __init__(
        self, num_particles: int = 10, *, estimator: str = "wake", joint: bool = False
    ) -> None:
        super().__init__(num_particles, estimator=estimator, joint=joint)
        if num_particles < 2:
            raise ValueError(
                "WakeSleep: expected num_particles >= 2, as a lone particle's share is 1 whatever "
                f"its weight, and the guide's gradient is noise about zero; got {num_particles}. "
                "Write: px.WakeSleep(num_particles=10), px.Sleep(...) for a guide that learns "
                "from dreams, or px.ELBO() for the model alone."
            )

    def _options(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "estimator": self.estimator}

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.iwae(log_weights, log_strata=log_strata)

    def _mode(self) -> Mode:
        return Mode("detached")

    def _weigh(self, pair: Pair, particles: Particles) -> LogWeights:
        self._check_replayable(pair.guide, "px.AutoJoint(model), or a guide that is a function")
        return super()._weigh(pair, particles)

    def _value(self, log_weights: LogWeights) -> Tensor:
        parts = []
        for term in log_weights.terms:
            climbed = bounds.iwae(term.log_p - term.log_q.detach())
            shares = torch.softmax(term.log_w.detach(), 0)
            followed = (shares * term.log_q).sum(0)
            parts.append(term.scaled_sum(climbed + followed - followed.detach()))
        return -torch.stack(parts).sum()
