r"""Four points: the smallest data set on which a Gaussian guide holds the model back.

.. math:: z \sim N(0, I_2), \quad x \mid z \sim \mathrm{Bernoulli}(\mathrm{logits}(z)),
          \quad x \in \{e_1, e_2, e_3, e_4\}

log p(x) is exact, by quadrature over z, and at most -log 4: then the four posteriors tile the
prior, as quarters that no Gaussian fits.

References:
    Adversarial Variational Bayes (Mescheder, Nowozin and Geiger, 2017) |
    https://arxiv.org/abs/1701.04722

Example:
    >>> model = FourPoints()
    >>> bool(model.log_evidence().mean() < OPTIMUM)
    True
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext.nn import MLP

__all__ = ["OPTIMUM", "FourPoints", "data"]

OPTIMUM = -math.log(4)


def data() -> Tensor:
    """Return the four one-hot vectors, shape ``(4, 4)``."""
    return torch.eye(4)


class FourPoints(nn.Module):
    """The model: a decoder from two latents to four binary pixels.

    Args:
        hidden: Width of its two layers.
    """

    def __init__(self, *, hidden: int = 64) -> None:
        super().__init__()
        self.net = MLP(2, (hidden, hidden), 4)

    def forward(self, x: Tensor) -> Tensor:
        """Sites ``z`` (vector latent) and ``x`` in the plate ``"data"``.

        Args:
            x: Data, shape ``(batch, 4)``.
        """
        with pyro.plate("data", len(x)):
            z: Tensor = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)
        return z

    def log_evidence(self) -> Tensor:
        """Return log p(x) of the four points, shape ``(4,)``, by quadrature."""
        at = torch.linspace(-6, 6, 401)
        z = torch.cartesian_prod(at, at)
        with torch.no_grad():
            log_z = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
            logits = self.net(z)
            log_x = dist.Bernoulli(logits=logits.unsqueeze(1)).log_prob(data()).sum(-1)
            log_joint: Tensor = log_x + log_z.unsqueeze(1)
        return log_joint.logsumexp(0) + 2 * math.log(12 / 400)
