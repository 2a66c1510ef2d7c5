r"""Probabilistic PCA: a linear Gaussian model with one latent vector per datum.

.. math:: z_i \sim N(0, I_D), \quad x_i \mid z_i \sim N(W z_i + b, \sigma^2 I_F)

Everything about it is known: the evidence, the posterior (a full covariance, the same for every
datum, around a mean that is linear in the datum) and the best mean-field answer with its gap.

References:
    Probabilistic principal component analysis (Tipping and Bishop, 1999) |
    https://doi.org/10.1111/1467-9868.00196

Example:
    >>> model = LinearGaussian.random(num_features=8, latent_dim=2)
    >>> x = data(100, model=model)
    >>> mean, covariance = model.posterior(x)
    >>> x.shape, mean.shape, covariance.shape
    (torch.Size([100, 8]), torch.Size([100, 2]), torch.Size([2, 2]))
"""

from typing import NamedTuple, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from models._names import unique_name

__all__ = ["LinearGaussian", "MeanField", "Posterior", "data"]


class Posterior(NamedTuple):
    """The exact posterior.

    Attributes:
        mean: One per datum, shape ``(batch, latent_dim)``.
        covariance: The same for all data, shape ``(latent_dim, latent_dim)``.
    """

    mean: Tensor
    covariance: Tensor


class MeanField(NamedTuple):
    """The independent normals that maximise the ELBO.

    Attributes:
        mean: The exact posterior mean, shape ``(batch, latent_dim)``.
        variance: The inverse of the precision's diagonal, shape ``(latent_dim,)``.
    """

    mean: Tensor
    variance: Tensor


class LinearGaussian(PyroModule):
    """Probabilistic PCA as a Pyro model, with its exact answers.

    Args:
        weight: W, shape ``(num_features, latent_dim)``.
        bias: b, shape ``(num_features,)``; zero if None.
        sigma: Standard deviation of the noise.
        trainable: Whether W, b and sigma are parameters to learn.

    Raises:
        ValueError: If a shape does not fit, or sigma is not positive.
    """

    weight: Tensor
    bias: Tensor
    sigma: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        sigma: float = 0.5,
        trainable: bool = False,
    ) -> None:
        super().__init__(unique_name("linear_gaussian"))
        if weight.ndim != 2:
            raise ValueError(
                f"LinearGaussian: expected weight of shape (num_features, latent_dim), "
                f"got {tuple(weight.shape)}."
            )
        self.num_features, self.latent_dim = weight.shape
        bias = weight.new_zeros(self.num_features) if bias is None else bias
        if bias.shape != (self.num_features,):
            raise ValueError(
                f"LinearGaussian: expected bias of shape ({self.num_features},), "
                f"got {tuple(bias.shape)}."
            )
        if sigma <= 0:
            raise ValueError(f"LinearGaussian: expected sigma > 0, got {sigma}.")
        if trainable:
            self.weight = nn.Parameter(weight.detach().clone())
            self.bias = nn.Parameter(bias.detach().clone())
            scale = PyroParam(weight.new_tensor(sigma), constraint=constraints.positive)
            self.sigma = cast(Tensor, scale)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)
            self.register_buffer("sigma", weight.new_tensor(sigma))

    @classmethod
    def random(
        cls,
        num_features: int = 8,
        latent_dim: int = 2,
        *,
        sigma: float = 0.5,
        trainable: bool = False,
        seed: int = 0,
    ) -> "LinearGaussian":
        """Build a model with normal W and b, drawn by a generator of its own."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(num_features, latent_dim, generator=generator)
        bias = torch.randn(num_features, generator=generator)
        return cls(weight / latent_dim**0.5, bias, sigma=sigma, trainable=trainable)

    def forward(self, x: Tensor) -> Tensor:
        """Sites ``z`` (vector latent) and ``x`` in the plate ``"data"``.

        Args:
            x: Data, shape ``(batch, num_features)``.

        Returns:
            The latents, shape ``(*particles, batch, latent_dim)``.
        """
        weight, bias, sigma = self.weight, self.bias, self.sigma
        prior = dist.Normal(weight.new_zeros(self.latent_dim), weight.new_ones(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, sigma).to_event(1), obs=x)
        return z

    def log_evidence_per_datum(self, x: Tensor) -> Tensor:
        r"""Return log p(x_i), shape ``(batch,)``.

        .. math:: p(x_i) = N(x_i \mid b,\ W W^\top + \sigma^2 I)
        """
        mean, covariance = self.posterior(x)
        noise: Tensor = dist.Normal(self.bias, self.sigma).log_prob(x).sum(-1)
        shift = (x - self.bias) @ self.weight / self.sigma**2
        return noise + 0.5 * ((mean * shift).sum(-1) + covariance.logdet())

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of all the data, a scalar."""
        return self.log_evidence_per_datum(x).sum()

    def posterior(self, x: Tensor) -> Posterior:
        r"""Return the exact posterior.

        .. math:: p(z_i \mid x_i) = N(\Sigma W^\top (x_i - b) / \sigma^2,\ \Sigma),
                  \quad \Sigma^{-1} = I + W^\top W / \sigma^2
        """
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(self._precision()))
        mean = (x - self.bias) @ self.weight @ covariance / self.sigma**2
        return Posterior(mean, covariance)

    def mean_field(self, x: Tensor) -> MeanField:
        """Return the independent normals that are closest to the posterior in KL(q || p)."""
        return MeanField(self.posterior(x).mean, 1 / self._precision().diagonal())

    def mean_field_gap(self) -> Tensor:
        r"""Return log p(x_i) minus the best mean-field ELBO, the same for every datum.

        .. math:: \tfrac12 \Big(\sum_d \log \Lambda_{dd} - \log\det \Lambda\Big),
                  \quad \Lambda = \Sigma^{-1}
        """
        precision = self._precision()
        gap: Tensor = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
        return gap

    def _precision(self) -> Tensor:
        identity = torch.eye(self.latent_dim).to(self.weight)
        return identity + self.weight.T @ self.weight / self.sigma**2


def data(num: int = 1000, *, model: LinearGaussian | None = None, seed: int = 1) -> Tensor:
    """Draw data from the model with a generator of its own.

    Args:
        num: Number of data.
        model: The model to draw from; ``LinearGaussian.random()`` if None.
        seed: Seed of the draws.

    Returns:
        Shape ``(num, num_features)``.
    """
    model = LinearGaussian.random() if model is None else model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        noise = torch.randn(
            num,
            model.latent_dim + model.num_features,
            generator=generator,
            dtype=model.weight.dtype,
        ).to(model.weight)
        z, epsilon = noise.split([model.latent_dim, model.num_features], -1)
        x: Tensor = z @ model.weight.T + model.bias + model.sigma * epsilon
        return x
