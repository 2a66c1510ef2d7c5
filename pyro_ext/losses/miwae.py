"""The mean of several importance-weighted bounds."""

from typing import Any, ClassVar

from torch import Tensor

from pyro_ext import bounds
from pyro_ext.losses.loss import BoundLoss

__all__ = ["MIWAE"]


class MIWAE(BoundLoss):
    r"""Mean of M importance-weighted bounds with K particles each.

    .. math::
        \mathcal{L}_{M,K} = \frac1M \sum_{m=1}^M \log \frac1K \sum_{k=1}^K w_{m,k}

    ``MIWAE(num_outer=M, num_particles=1)`` is the ELBO with M draws.

    Args:
        num_outer: Number M of bounds.
        num_particles: Number K of particles of each.
        estimator: ``"reparam"``, ``"dreg"`` or ``"stl"`` (biased for K > 1); see ``IWAE``.
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
        >>> loss = MIWAE(num_outer=4, num_particles=10, estimator="dreg")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("rainforth2018tighter",)

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "dreg", "stl", "vimco")

    def __init__(
        self,
        num_outer: int = 8,
        num_particles: int = 8,
        *,
        estimator: str = "reparam",
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator=estimator, num_outer=num_outer, joint=joint)

    def _options(self) -> dict[str, Any]:
        return {
            "num_outer": self.particles.outer,
            "num_particles": self.num_particles,
            "estimator": self.estimator,
        }

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.iwae(log_weights, log_strata=log_strata)
