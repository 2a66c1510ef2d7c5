"""Normal likelihoods: local latents, a global latent, and both."""

import math
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
    mask_rows,
    observe,
    observed,
    randn,
)

__all__ = ["NormalGlobal", "NormalHierarchy", "NormalLocal"]


@dataclass(frozen=True, eq=False)
class NormalLocal(ConjugateModel):
    r"""Local latents only: one scalar per datum.

    .. math:: z_i \sim N(0, 1), \quad x_i \sim N(z_i, s^2)

    Args:
        x: Data, shape ``(num,)``.
        scale: s.
        mask: Which observations count, boolean of shape ``(num,)``; None for all.
        subsample_size: Rows that the model's own plate draws in each call; None for all.

    Example:
        >>> import torch
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> print(f"{exact.log_evidence():.4f}")
        -3.5310
        >>> exact.posterior().mean.squeeze(-1)
        tensor([0., 1.])
    """

    x: Float[Tensor, " num"]
    scale: float = 1.0
    mask: Tensor | None = None
    subsample_size: int | None = None

    @classmethod
    def simulate(cls, num: int, *, scale: float = 1.0, seed: int = 0) -> "NormalLocal":
        """Draw ``num`` data from the model."""
        return cls(math.hypot(1.0, scale) * randn(num, seed=seed), scale)

    @property
    def _data(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def model(
        self, x: Tensor, mask: Tensor | None = None, *, subsample: Tensor | None = None
    ) -> None:
        """Sites ``z`` (latent) and ``x`` in the plate ``"data"``."""
        zero, one = x.new_zeros(()), x.new_ones(())
        with data_plate(len(x), self.subsample_size, subsample) as rows:
            z = pyro.sample("z", dist.Normal(zero, one))
            observe("x", dist.Normal(z, one * self.scale), x, mask, rows)

    def guide(
        self, x: Tensor, mask: Tensor | None = None, *, subsample: Tensor | None = None
    ) -> None:
        """Normal per datum."""
        with data_plate(len(x), self.subsample_size, subsample) as rows:
            mean, variance = self._local_posterior(x[rows], mask_rows(mask, rows))
            pyro.sample("z", dist.Normal(mean, variance.sqrt()))

    def log_evidence_per_datum(self) -> Float[Tensor, " num"]:
        """Log p(x_i), zero where masked."""
        marginal = dist.Normal(torch.zeros_like(self.x), math.hypot(1.0, self.scale))
        log_prob: Tensor = marginal.log_prob(self.x)
        return log_prob * observed(self.x, self.mask)

    def log_evidence(self) -> Float[Tensor, ""]:
        """Sum over data."""
        return self.log_evidence_per_datum().sum()

    def posterior(self) -> Posterior:
        """Of ``z``: mean ``(num, 1)``, covariance ``(num, 1, 1)``."""
        mean, variance = self._local_posterior(self.x, self.mask)
        return Posterior(mean[:, None], variance[:, None, None])

    def _local_posterior(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        information = observed(x, mask) / self.scale**2
        variance = 1 / (1 + information)
        return variance * information * x, variance


@dataclass(frozen=True, eq=False)
class NormalGlobal(ConjugateModel):
    r"""One global latent only.

    .. math:: \mu \sim N(0, t^2), \quad x_i \sim N(\mu, s^2)

    Args:
        x: Data, shape ``(num,)``.
        scale: s.
        prior_scale: t.
        mask: Which observations count, boolean of shape ``(num,)``; None for all.
        subsample_size: Rows that the model's own plate draws in each call; None for all.

    Example:
        >>> import torch
        >>> exact = NormalGlobal(torch.tensor([0.0, 2.0]))
        >>> print(f"{exact.log_evidence():.4f}")
        -3.7205
    """

    x: Float[Tensor, " num"]
    scale: float = 1.0
    prior_scale: float = 1.0
    mask: Tensor | None = None
    subsample_size: int | None = None

    @classmethod
    def simulate(
        cls, num: int, *, scale: float = 1.0, prior_scale: float = 1.0, seed: int = 0
    ) -> "NormalGlobal":
        """Draw ``num`` data from the model."""
        noise = randn(num + 1, seed=seed)
        return cls(prior_scale * noise[0] + scale * noise[1:], scale, prior_scale)

    @property
    def _data(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def model(
        self, x: Tensor, mask: Tensor | None = None, *, subsample: Tensor | None = None
    ) -> None:
        """Sites ``mu`` (latent, global) and ``x`` in the plate ``"data"``."""
        one = x.new_ones(())
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), one * self.prior_scale))
        with data_plate(len(x), self.subsample_size, subsample) as rows:
            observe("x", dist.Normal(mu, one * self.scale), x, mask, rows)

    def guide(self, *args: Any, **kwargs: Any) -> None:
        """The posterior given all the data of this object, whichever rows are passed."""
        mean, covariance = self.posterior()
        pyro.sample("mu", dist.Normal(mean[0], covariance[0, 0].sqrt()))

    def log_evidence(self) -> Float[Tensor, ""]:
        """By the determinant lemma on s² I + t² 1 1ᵀ."""
        mean, covariance = self.posterior()
        noise: Tensor = dist.Normal(torch.zeros_like(self.x), self.scale).log_prob(self.x)
        fit = mean[0] ** 2 / covariance[0, 0] + (covariance[0, 0] / self.prior_scale**2).log()
        return (noise * observed(self.x, self.mask)).sum() + 0.5 * fit

    def posterior(self) -> Posterior:
        """Of ``mu``: mean ``(1,)``, covariance ``(1, 1)``."""
        weight = observed(self.x, self.mask)
        variance = 1 / (1 / self.prior_scale**2 + weight.sum() / self.scale**2)
        mean = variance * (weight * self.x).sum() / self.scale**2
        return Posterior(mean.reshape(1), variance.reshape(1, 1))


@dataclass(frozen=True, eq=False)
class NormalHierarchy(ConjugateModel):
    r"""One global latent and a local one per datum.

    .. math:: \mu \sim N(0, m^2), \quad z_i \sim N(\mu, t^2), \quad x_i \sim N(z_i, s^2)

    Args:
        x: Data, shape ``(num,)``.
        scale: s.
        local_scale: t.
        prior_scale: m.
        mask: Which observations count, boolean of shape ``(num,)``; None for all.
        subsample_size: Rows that the model's own plate draws in each call; None for all.

    Example:
        >>> import torch
        >>> exact = NormalHierarchy(torch.tensor([0.0, 2.0]))
        >>> print(f"{exact.log_evidence():.4f}")
        -3.6276
    """

    x: Float[Tensor, " num"]
    scale: float = 1.0
    local_scale: float = 1.0
    prior_scale: float = 1.0
    mask: Tensor | None = None
    subsample_size: int | None = None

    @classmethod
    def simulate(
        cls,
        num: int,
        *,
        scale: float = 1.0,
        local_scale: float = 1.0,
        prior_scale: float = 1.0,
        seed: int = 0,
    ) -> "NormalHierarchy":
        """Draw ``num`` data from the model."""
        noise = randn(num + 1, seed=seed)
        x = prior_scale * noise[0] + math.hypot(scale, local_scale) * noise[1:]
        return cls(x, scale, local_scale, prior_scale)

    @property
    def _data(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def model(
        self, x: Tensor, mask: Tensor | None = None, *, subsample: Tensor | None = None
    ) -> None:
        """Sites ``mu`` (global), ``z`` (local) and ``x``; the last two in the plate ``"data"``."""
        one = x.new_ones(())
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), one * self.prior_scale))
        with data_plate(len(x), self.subsample_size, subsample) as rows:
            z = pyro.sample("z", dist.Normal(mu, one * self.local_scale))
            observe("x", dist.Normal(z, one * self.scale), x, mask, rows)

    def guide(
        self, x: Tensor, mask: Tensor | None = None, *, subsample: Tensor | None = None
    ) -> None:
        """p(mu | all the data of this object), then p(z_i | mu, x_i) for the rows passed."""
        mean, variance = self._global().posterior()
        mu = pyro.sample("mu", dist.Normal(mean[0], variance[0, 0].sqrt()))
        with data_plate(len(x), self.subsample_size, subsample) as rows:
            information = observed(x[rows], mask_rows(mask, rows)) / self.scale**2
            local_variance = 1 / (1 / self.local_scale**2 + information)
            loc = local_variance * (mu / self.local_scale**2 + information * x[rows])
            pyro.sample("z", dist.Normal(loc, local_variance.sqrt()))

    def log_evidence(self) -> Float[Tensor, ""]:
        """With z integrated out, x_i ~ N(mu, s² + t²)."""
        return self._global().log_evidence()

    def posterior(self) -> Posterior:
        """Of ``(mu, z_1, ..., z_num)``: mean ``(1 + num,)``, covariance ``(1 + num, 1 + num)``."""
        information = observed(self.x, self.mask) / self.scale**2
        coupling = 1 / self.local_scale**2
        total = self.x.new_tensor([1 / self.prior_scale**2 + len(self.x) * coupling])
        precision = torch.cat([total, coupling + information]).diag()
        precision[0, 1:] = precision[1:, 0] = -coupling
        shift = torch.cat([self.x.new_zeros(1), information * self.x])
        return from_precision(precision, shift)

    def _global(self) -> NormalGlobal:
        marginal_scale = math.hypot(self.scale, self.local_scale)
        return NormalGlobal(self.x, marginal_scale, self.prior_scale, self.mask)
