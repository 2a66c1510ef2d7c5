"""A global vector of latents with a full posterior covariance."""

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.testing.conjugate._base import (
    ConjugateModel,
    Posterior,
    data_plate,
    from_precision,
    observe,
    observed,
    randn,
)

__all__ = ["LinearRegression"]


@dataclass(frozen=True, eq=False)
class LinearRegression(ConjugateModel):
    r"""A global vector with a correlated posterior.

    .. math:: w \sim N(0, I_D), \quad y \sim N(X w, s^2 I)

    Args:
        inputs: X, shape ``(num, dim)``.
        y: Responses, shape ``(num,)``.
        scale: s.
        mask: Which responses count, boolean of shape ``(num,)``; None for all.
        subsample_size: Rows that the model's own plate draws in each call; None for all.

    Example:
        >>> import torch
        >>> exact = LinearRegression(torch.eye(2), torch.tensor([0.0, 2.0]))
        >>> print(f"{exact.log_evidence():.4f}")
        -3.5310
    """

    inputs: Float[Tensor, " num dim"]
    y: Float[Tensor, " num"]
    scale: float = 1.0
    mask: Tensor | None = None
    subsample_size: int | None = None

    @classmethod
    def simulate(
        cls, num: int, dim: int = 3, *, scale: float = 1.0, correlation: float = 0.8, seed: int = 0
    ) -> "LinearRegression":
        """Draw ``num`` data from the model, with inputs of unit variance and equal correlation."""
        noise = randn(num, dim + 2, seed=seed)
        inputs = (1 - correlation) ** 0.5 * noise[:, :dim] + correlation**0.5 * noise[:, dim:-1]
        w = randn(dim, seed=seed + 1)
        return cls(inputs, inputs @ w + scale * noise[:, -1], scale)

    @property
    def _data(self) -> tuple[Tensor, ...]:
        return self.inputs, self.y

    def model(
        self,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        subsample: Tensor | None = None,
    ) -> None:
        """Sites ``w`` (latent vector, global) and ``y`` in the plate ``"data"``."""
        prior = dist.Normal(inputs.new_zeros(inputs.shape[1:]), inputs.new_ones(()))
        w = pyro.sample("w", prior.to_event(1))
        with data_plate(len(y), self.subsample_size, subsample) as rows:
            mean = (inputs[rows] * w).sum(-1)
            observe("y", dist.Normal(mean, y.new_tensor(self.scale)), y, mask, rows)

    def guide(self, *args: Any, **kwargs: Any) -> None:
        """The posterior given all the data of this object, whichever rows are passed."""
        pyro.sample("w", dist.MultivariateNormal(*self.posterior()))

    def log_evidence(self) -> Float[Tensor, ""]:
        """By the determinant lemma on s² I + X Xᵀ."""
        mean, covariance = self.posterior()
        weight = observed(self.y, self.mask)
        noise: Tensor = dist.Normal(torch.zeros_like(self.y), self.scale).log_prob(self.y)
        shift = self.inputs.T @ (weight * self.y) / self.scale**2
        return (noise * weight).sum() + 0.5 * (mean @ shift + covariance.logdet())

    def posterior(self) -> Posterior:
        """Of ``w``: mean ``(dim,)``, covariance ``(dim, dim)``."""
        weighted = self.inputs * observed(self.y, self.mask)[:, None] / self.scale**2
        prior = torch.eye(self.inputs.shape[1]).to(self.inputs)
        return from_precision(prior + self.inputs.T @ weighted, weighted.T @ self.y)
