"""The combination of ELBO and importance-weighted bound."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ext import bounds
from pyro_ext.losses.loss import BoundLoss

__all__ = ["CIWAE"]


class CIWAE(BoundLoss):
    r"""Convex combination of the ELBO and the importance-weighted bound.

    .. math:: \beta\,\mathcal{L} + (1 - \beta)\,\mathcal{L}_K

    Args:
        num_particles: Number K of particles.
        beta: Share of the ELBO, in [0, 1].
        estimator: ``"reparam"``, ``"dreg"`` or ``"stl"`` (biased); see ``IWAE``.
        num_outer: Number of independent sets of K particles, averaged outside the log.
        joint: Whether a model with global and local latents gets one joint weight instead of local
            ones inside each global draw.

    Raises:
        ValueError: If an argument is not in its range.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018) |
        https://arxiv.org/abs/1802.04537

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = CIWAE(num_particles=10, beta=0.5, estimator="dreg")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("rainforth2018tighter",)

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "dreg", "stl", "vimco")

    def __init__(
        self,
        num_particles: int = 10,
        *,
        beta: float = 0.5,
        estimator: str = "reparam",
        num_outer: int = 1,
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator=estimator, num_outer=num_outer, joint=joint)
        if not 0 <= beta <= 1:
            raise ValueError(
                f"CIWAE: expected beta in [0, 1]; got {beta}. Write: px.CIWAE(beta=0.5)."
            )
        self.beta = beta

    def _options(self) -> dict[str, Any]:
        return {
            "num_particles": self.num_particles,
            "beta": self.beta,
            "estimator": self.estimator,
        }

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.ciwae(log_weights, self.beta, log_strata=log_strata)

    def _path_factor(self, log_weights: Tensor) -> Tensor:
        weights = torch.softmax(log_weights, 0)
        share = self.beta / log_weights.shape[0]
        if share == 0:
            return weights
        total = share + (1 - self.beta) * weights
        return (share + (1 - self.beta) * weights.square()) / total
