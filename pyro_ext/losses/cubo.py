"""The χ upper bound."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ext import bounds
from pyro_ext.losses.loss import BoundLoss

__all__ = ["CUBO"]


class CUBO(BoundLoss):
    r"""Upper bound on the log evidence; together with a lower bound it encloses it.

    .. math::
        \mathcal{U}_n = \frac1n \log \mathbb{E}_q \Big(\frac{p(x, z)}{q(z)}\Big)^n \ge \log p(x)

    Its estimate from K particles is biased downwards, and comes to the bound as K grows. Minimise
    it by the guide alone, as a model would lower the evidence, and with K > n / (n - 1): with
    fewer particles its minimum is not at the posterior.

    Args:
        num_particles: Number K of particles.
        order: Order n, at least 1.
        estimator: ``"reparam"`` or ``"dreg"``; see ``IWAE``.
        num_outer: Number of independent sets of K particles, averaged outside the log.
        joint: Whether a model with global and local latents gets one joint weight instead of local
            ones inside each global draw.

    Raises:
        ValueError: If an argument is not in its range, or a model with global and local latents is
            not weighed jointly.

    References:
        Variational Inference via χ Upper Bound Minimization (Dieng et al., 2017) |
        https://arxiv.org/abs/1611.00328

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = CUBO(num_particles=10, estimator="dreg")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        -1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("dieng2017variational",)

    upper: ClassVar[bool] = True
    hierarchies: ClassVar[bool] = False
    estimators: ClassVar[tuple[str, ...]] = ("reparam", "dreg")

    def __init__(
        self,
        num_particles: int = 10,
        *,
        order: float = 2.0,
        estimator: str = "reparam",
        num_outer: int = 1,
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator=estimator, num_outer=num_outer, joint=joint)
        if not 1 <= order < math.inf:
            raise ValueError(
                f"CUBO: expected a finite order >= 1; got {order}. Write: px.CUBO(order=2)."
            )
        self.order = order

    def _options(self) -> dict[str, Any]:
        return {
            "num_particles": self.num_particles,
            "order": self.order,
            "estimator": self.estimator,
        }

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.cubo(log_weights, self.order, log_strata=log_strata)

    def _path_factor(self, log_weights: Tensor) -> Tensor:
        weights = torch.softmax(self.order * log_weights, 0)
        return 1 - self.order + self.order * weights
