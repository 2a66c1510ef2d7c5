r"""Binary causes of a real vector: discrete latents, few enough to enumerate.

.. math:: z_{id} \sim \mathrm{Bernoulli}(\rho), \quad x_i \mid z_i \sim N(W z_i, \sigma^2 I)

With D causes there are 2^D configurations, so that the evidence, the posterior, the ELBO of any
independent Bernoulli guide and the gradient of that are sums.

Example:
    >>> model = BinaryLatents()
    >>> x = data(5, model=model)
    >>> model.log_evidence_per_datum(x).shape
    torch.Size([5])
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["BinaryLatents", "data"]


class BinaryLatents(nn.Module):
    """The model, with its exact answers.

    Args:
        num_latents: Number D of causes.
        num_features: Size of a datum.
        rho: Probability of a cause.
        sigma: Standard deviation of the noise.
        seed: Seed of W, which is standard normal.
    """

    weight: Tensor

    def __init__(
        self,
        num_latents: int = 3,
        num_features: int = 4,
        *,
        rho: float = 0.4,
        sigma: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(num_features, num_latents, generator=generator)
        self.register_buffer("weight", weight)
        self.num_latents, self.rho, self.sigma = num_latents, rho, sigma

    def forward(self, x: Tensor) -> Tensor:
        """Sites ``z`` (binary vector) and ``x`` in the plate ``"data"``.

        Args:
            x: Data, shape ``(batch, num_features)``.
        """
        prior = dist.Bernoulli(x.new_full((self.num_latents,), self.rho)).to_event(1)
        with pyro.plate("data", len(x)):
            z: Tensor = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.sigma).to_event(1), obs=x)
        return z

    def configurations(self) -> Tensor:
        """Return all z, shape ``(2 ** D, D)``."""
        states = torch.tensor([0.0, 1.0]).to(self.weight)
        return torch.cartesian_prod(*self.num_latents * [states]).reshape(-1, self.num_latents)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x, z), which broadcasts.

        Args:
            x: Data, shape ``(*batch, num_features)``.
            z: Latents, shape ``(*batch, D)``.
        """
        prior = dist.Bernoulli(x.new_tensor(self.rho)).log_prob(z).sum(-1)
        noise = dist.Normal(z @ self.weight.T, self.sigma).log_prob(x).sum(-1)
        log_joint: Tensor = prior + noise
        return log_joint

    def log_evidence_per_datum(self, x: Tensor) -> Tensor:
        """Return log p(x_i), shape ``(batch,)``."""
        return self.log_joint(x.unsqueeze(1), self.configurations()).logsumexp(-1)

    def elbo_per_datum(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the ELBO of independent Bernoullis, a sum over all z: differentiable, exact.

        Args:
            x: Data, shape ``(batch, num_features)``.
            logits: Of q, shape ``(batch, D)``.
        """
        z = self.configurations()
        log_q = dist.Bernoulli(logits=logits.unsqueeze(1)).log_prob(z).sum(-1)
        log_w = self.log_joint(x.unsqueeze(1), z) - log_q
        elbo: Tensor = (log_q.exp() * log_w).sum(-1)
        return elbo


def data(num: int = 30, *, model: BinaryLatents | None = None, seed: int = 1) -> Tensor:
    """Draw data from the model with a generator of its own, shape ``(num, num_features)``.

    Args:
        num: Number of data.
        model: The model to draw from.
        seed: Seed of the draws.
    """
    model = BinaryLatents() if model is None else model
    generator = torch.Generator().manual_seed(seed)
    z = (torch.rand(num, model.num_latents, generator=generator) < model.rho).to(model.weight)
    noise = torch.randn(num, len(model.weight), generator=generator).to(model.weight)
    return z @ model.weight.T + model.sigma * noise
