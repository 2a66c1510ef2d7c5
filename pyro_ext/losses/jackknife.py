"""The jackknife-corrected importance-weighted estimate."""

from typing import Any, ClassVar

from torch import Tensor

from pyro_ext import bounds
from pyro_ext.losses.loss import BoundLoss

__all__ = ["JackknifeIWAE"]


class JackknifeIWAE(BoundLoss):
    r"""Importance-weighted bound with its bias of order 1/K removed by the jackknife.

    .. math:: K \mathcal{L}_K - \frac{K - 1}{K} \sum_k \mathcal{L}_{K-1}(w_{-k})

    Closer to the log evidence than the bound that it corrects, and no lower bound: it can be made
    arbitrarily large by a bad guide. Train a model with it, and the guide with another loss.

    Args:
        num_particles: Number K of particles, at least 2.
        estimator: ``"reparam"``; see ``IWAE``.
        num_outer: Number of independent sets of K particles, averaged outside the log.
        joint: Whether a model with global and local latents gets one joint weight instead of local
            ones inside each global draw.

    Raises:
        ValueError: If an argument is not in its range, or a model with global and local latents is
            not weighed jointly.

    References:
        Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        Variational Inference (Nowozin, 2018) | https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = JackknifeIWAE(num_particles=10)
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("nowozin2018debiasing",)

    hierarchies: ClassVar[bool] = False
    estimators: ClassVar[tuple[str, ...]] = ("reparam",)
    stratified: ClassVar[tuple[str, ...]] = ()  # it leaves out one of independent draws

    def __init__(
        self,
        num_particles: int = 10,
        *,
        estimator: str = "reparam",
        num_outer: int = 1,
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator=estimator, num_outer=num_outer, joint=joint)
        if num_particles < 2:
            raise ValueError(
                f"JackknifeIWAE: expected num_particles >= 2; got {num_particles}. "
                "Write: px.JackknifeIWAE(num_particles=10)."
            )

    def _options(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "estimator": self.estimator}

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.jackknife(log_weights)
