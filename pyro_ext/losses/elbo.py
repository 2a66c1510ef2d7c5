"""The evidence lower bound."""

from typing import Any, ClassVar

from torch import Tensor

from pyro_ext import bounds
from pyro_ext._terms import Particles
from pyro_ext.losses.loss import BoundLoss

__all__ = ["ELBO"]


class ELBO(BoundLoss):
    r"""Evidence lower bound, by Monte Carlo with reparameterized draws.

    .. math:: \mathcal{L} = \mathbb{E}_{q(z)} [\log p(x, z) - \log q(z)] \le \log p(x)

    Estimators of its gradient:

    - ``"reparam"``: differentiates the draws and log q.
    - ``"stl"`` (sticking the landing): leaves out the score of q, whose mean is zero. Unbiased
    too, and
      free of noise where q is the exact posterior.
    - ``"score"`` (REINFORCE): for guide sites that are not reparameterized, discrete ones say, the
      score function, with the mean of the other draws as baseline; reparameterized sites in the
      same guide are differentiated as by ``"reparam"``.

    Args:
        num_particles: Number of draws that are averaged.
        estimator: ``"reparam"``, ``"stl"`` or ``"score"``.

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

    estimators: ClassVar[tuple[str, ...]] = ("reparam", "stl", "score")

    def __init__(self, num_particles: int = 1, *, estimator: str = "reparam") -> None:
        # The ELBO is linear in log w: one joint weight serves, and any scale may stay inside. Only
        # the score function wants the cost of each element apart.
        super().__init__(num_particles, estimator=estimator, joint=estimator != "score")
        self.particles = Particles(1, num_particles)

    def _options(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles, "estimator": self.estimator}

    def _bound(self, log_weights: Tensor) -> Tensor:
        return bounds.elbo(log_weights)
