"""The importance-weighted bound."""

from typing import ClassVar

from torch import Tensor

from pyro_ext import bounds
from pyro_ext._checks import Pair
from pyro_ext._terms import Particles
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.weights import LogWeights, weigh

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
    falls
      as K grows.
    - ``"dreg"`` (doubly reparameterized): unbiased, and its signal-to-noise ratio grows with K.
    - ``"stl"``: leaves out the score of q; biased for K > 1.

    Args:
        num_particles: Number K of particles.
        estimator: ``"reparam"``, ``"dreg"`` or ``"stl"``.

    Raises:
        ValueError: If the estimator is unknown.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015) | https://arxiv.org/abs/1509.00519
        Doubly Reparameterized Gradient Estimators (Tucker et al., 2018) | https://arxiv.org/abs/1810.04152
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

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "dreg", "stl")

    def __init__(self, num_particles: int = 10, *, estimator: str = "reparam") -> None:
        super().__init__(num_particles, estimator=estimator)

    def _weigh(self, pair: Pair, *, stop_guide: bool, scale_path: bool) -> LogWeights:
        particles = Particles(self.num_particles, 1)
        return weigh(pair, particles, joint=False, stop_guide=stop_guide, scale_path=scale_path)

    def _bound(self, log_weights: Tensor) -> Tensor:
        return bounds.iwae(log_weights)
