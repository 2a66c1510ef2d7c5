"""The importance-weighted bound."""

from typing import Any, ClassVar

from torch import Tensor

from pyro_ext import bounds
from pyro_ext.losses.loss import BoundLoss

__all__ = ["IWAE"]


class IWAE(BoundLoss):
    r"""Importance-weighted bound with K particles.

    .. math::
        \mathcal{L}_K = \mathbb{E} \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k)} \le \log p(x)

    Each element of an independent plate has its own sum over particles; a mini-batch is scaled
    outside the logarithm, so that the bound holds whatever the batch. If there are global
    latents too, the K particles of the local ones are drawn inside one draw of the globals.

    Estimators of its gradient:

    - ``"reparam"``: differentiates the draws and log q. Its signal-to-noise ratio for the guide
      falls as K grows.
    - ``"dreg"`` (doubly reparameterized): unbiased, and its signal-to-noise ratio grows with K.
    - ``"stl"``: leaves out the score of q; biased for K > 1.
    - ``"vimco"``: for guide sites that are not reparameterized, the score function with a baseline
      made of the other particles; reparameterized sites as by ``"reparam"``.

    Args:
        num_particles: Number K of particles.
        estimator: ``"reparam"``, ``"dreg"``, ``"stl"`` or ``"vimco"``.
        num_outer: Number of independent sets of K particles, averaged outside the log.
        joint: Whether a model with global and local latents gets one joint weight instead of local
            ones inside each global draw.

    Raises:
        ValueError: If the estimator is unknown.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015) | https://arxiv.org/abs/1509.00519
        Doubly Reparameterized Gradient Estimators (Tucker et al., 2018) | https://arxiv.org/abs/1810.04152
        Variational Inference for Monte Carlo Objectives (Mnih and Rezende, 2016) |
        https://arxiv.org/abs/1602.06725
        Variational Inference with Locally Enhanced Bounds (Geffner and Domke, 2022) | https://arxiv.org/abs/2203.04432

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = IWAE(num_particles=10, estimator="dreg")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    papers: ClassVar[tuple[str, ...]] = ("burda2016importance",)

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "dreg", "stl", "vimco")

    def __init__(
        self,
        num_particles: int = 10,
        *,
        estimator: str = "reparam",
        num_outer: int = 1,
        joint: bool = False,
    ) -> None:
        super().__init__(num_particles, estimator=estimator, num_outer=num_outer, joint=joint)

    def _options(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "estimator": self.estimator}

    def _bound(self, log_weights: Tensor, *, log_strata: Tensor | None = None) -> Tensor:
        return bounds.iwae(log_weights, log_strata=log_strata)
