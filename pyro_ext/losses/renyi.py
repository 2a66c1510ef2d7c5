"""The Rényi bound."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ext import bounds
from pyro_ext.losses.loss import BoundLoss

__all__ = ["Renyi"]


class Renyi(BoundLoss):
    r"""Rényi bound of order α with K particles, also known as the VR-IWAE bound.

    .. math::
        \mathcal{L}^{(\alpha)}_K = \frac{1}{1 - \alpha}
        \mathbb{E} \log \frac1K \sum_{k=1}^K \Big(\frac{p(x, z_k)}{q(z_k)}\Big)^{1 - \alpha}

    α = 0 is the importance-weighted bound, α → 1 the ELBO; between them it trades bias for the
    variance of its gradients. For α < 0 its limit in K lies above the log evidence.

    Args:
        num_particles: Number K of particles.
        alpha: Order α, any real number.
        estimator: ``"reparam"``, ``"dreg"`` or ``"stl"`` (biased); see ``IWAE``.
        num_outer: Number of independent sets of K particles, averaged outside the log.
        joint: Whether a model with global and local latents gets one joint weight instead of local
            ones inside each global draw.

    Raises:
        ValueError: If an argument is not in its range.

    References:
        Rényi Divergence Variational Inference (Li and Turner, 2016) |
        https://arxiv.org/abs/1602.02311
        Alpha-divergence Variational Inference Meets Importance Weighted Auto-Encoders
        (Daudel et al., 2023) | https://arxiv.org/abs/2210.06226

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = Renyi(num_particles=10, alpha=0.5, estimator="dreg")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("li2016renyi", "daudel2023alpha")

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "dreg", "stl", "vimco")

    def __init__(
        self,
        num_particles: int = 10,
        *,
        alpha: float = 0.5,
        estimator: str = "reparam",
        num_outer: int = 1,
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator=estimator, num_outer=num_outer, joint=joint)
        if not math.isfinite(alpha):
            raise ValueError(
                f"Renyi: expected a finite alpha; got {alpha}. Write: px.Renyi(alpha=0.5)."
            )
        self.alpha = alpha

    def _options(self) -> dict[str, Any]:
        return {
            "num_particles": self.num_particles,
            "alpha": self.alpha,
            "estimator": self.estimator,
        }

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.renyi(log_weights, self.alpha, log_strata=log_strata)

    def _path_factor(self, log_weights: Tensor) -> Tensor:
        weights = torch.softmax((1 - self.alpha) * log_weights, 0)
        return self.alpha + (1 - self.alpha) * weights
