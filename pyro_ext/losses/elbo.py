"""The evidence lower bound."""

from typing import ClassVar

from torch import Tensor

from pyro_ext import bounds
from pyro_ext._checks import Pair
from pyro_ext._terms import Particles
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.weights import LogWeights, weigh

__all__ = ["ELBO"]


class ELBO(BoundLoss):
    r"""Evidence lower bound, by Monte Carlo with reparameterized draws.

    .. math:: \mathcal{L} = \mathbb{E}_{q(z)} [\log p(x, z) - \log q(z)] \le \log p(x)

    Estimators of its gradient:

    - ``"reparam"``: differentiates the draws and log q.
    - ``"stl"`` (sticking the landing): leaves out the score of q, whose mean is zero. Unbiased
    too, and
      free of noise where q is the exact posterior.

    Args:
        num_particles: Number of draws that are averaged.
        estimator: ``"reparam"`` or ``"stl"``.

    Raises:
        ValueError: If the estimator is unknown.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013) | https://arxiv.org/abs/1312.6114
        Sticking the Landing (Roeder, Wu and Duvenaud, 2017) | https://arxiv.org/abs/1703.09194

    Example:
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior: every draw gives -log p(x)
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> loss = ELBO(num_particles=10, estimator="stl")
        >>> round(loss.loss(model, guide, torch.tensor(1.0)), 4)
        1.5155
    """

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "stl")

    def __init__(self, num_particles: int = 1, *, estimator: str = "reparam") -> None:
        super().__init__(num_particles, estimator=estimator)

    def _weigh(self, pair: Pair, *, stop_guide: bool, scale_path: bool) -> LogWeights:
        # The ELBO is linear in log w: one joint weight serves, and any scale may stay inside.
        particles = Particles(1, self.num_particles)
        return weigh(pair, particles, joint=True, stop_guide=stop_guide, scale_path=scale_path)

    def _bound(self, log_weights: Tensor) -> Tensor:
        return bounds.elbo(log_weights)
