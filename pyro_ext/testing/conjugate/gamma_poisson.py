"""Counts: a latent with a positive support."""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.testing.conjugate._base import (
    ConjugateModel,
    Posterior,
    data_plate,
    mask_rows,
    observe,
    observed,
)

__all__ = ["GammaPoisson"]


@dataclass(frozen=True, eq=False)
class GammaPoisson(ConjugateModel):
    r"""A positive latent: counts with a Gamma rate, one rate per datum or one for all.

    .. math:: \lambda_i \sim \mathrm{Gamma}(a, b), \quad x_i \sim \mathrm{Poisson}(\lambda_i)

    Args:
        x: Counts in a floating dtype, shape ``(num,)``.
        concentration: a.
        rate: b.
        local: One latent per datum if True, else one global latent.
        mask: Which observations count, boolean of shape ``(num,)``; None for all.
        subsample_size: Rows that the model's own plate draws in each call; None for all.

    Example:
        >>> import torch
        >>> exact = GammaPoisson(torch.tensor([0.0, 2.0]))
        >>> print(f"{exact.log_evidence():.4f}")
        -2.8383
    """

    x: Float[Tensor, " num"]
    concentration: float = 3.0
    rate: float = 2.0
    local: bool = True
    mask: Tensor | None = None
    subsample_size: int | None = None

    @classmethod
    def simulate(
        cls,
        num: int,
        *,
        concentration: float = 3.0,
        rate: float = 2.0,
        local: bool = True,
        seed: int = 0,
    ) -> "GammaPoisson":
        """Draw ``num`` data from the model."""
        prior = dist.Gamma(torch.tensor(concentration), torch.tensor(rate))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            x = torch.poisson(prior.sample((num if local else 1,)).expand(num))
        return cls(x, concentration, rate, local)

    @property
    def _data(self) -> tuple[Tensor, ...]:
        return (self.x,)

    def model(
        self, x: Tensor, mask: Tensor | None = None, *, subsample: Tensor | None = None
    ) -> None:
        """Sites ``rate`` (latent, positive; in the plate if local) and ``x`` in the plate."""
        one = x.new_ones(())
        prior = dist.Gamma(one * self.concentration, one * self.rate)
        shared = None if self.local else pyro.sample("rate", prior)
        with data_plate(len(x), self.subsample_size, subsample) as rows:
            rate = pyro.sample("rate", prior) if shared is None else shared
            observe("x", dist.Poisson(rate), x, mask, rows)

    def guide(
        self, x: Tensor, mask: Tensor | None = None, *, subsample: Tensor | None = None
    ) -> None:
        """Gamma; a global one is given all the data of this object, whichever rows are passed."""
        if not self.local:
            pyro.sample("rate", dist.Gamma(*self._posterior_parameters(self.x, self.mask)))
            return
        with data_plate(len(x), self.subsample_size, subsample) as rows:
            parameters = self._posterior_parameters(x[rows], mask_rows(mask, rows))
            pyro.sample("rate", dist.Gamma(*parameters))

    def log_evidence_per_datum(self) -> Float[Tensor, " num"]:
        """Log density of the negative binomial, zero where masked; local latents only."""
        if not self.local:
            raise ValueError(
                "GammaPoisson: expected a rate for each datum, local=True; got one global rate, "
                "with which the data are dependent. Write: log_evidence()."
            )
        return self._log_normaliser() - observed(self.x, self.mask) * (self.x + 1).lgamma()

    def log_evidence(self) -> Float[Tensor, ""]:
        """Negative binomial, or its multivariate form with one global rate."""
        if self.local:
            return self.log_evidence_per_datum().sum()
        factorials = observed(self.x, self.mask) * (self.x + 1).lgamma()
        return self._log_normaliser() - factorials.sum()

    def posterior(self) -> Posterior:
        """Of ``rate``: mean ``(num, 1)``, covariance ``(num, 1, 1)``; no ``num`` if global."""
        concentration, rate = self._posterior_parameters(self.x, self.mask)
        return Posterior(
            (concentration / rate)[..., None], (concentration / rate**2)[..., None, None]
        )

    def _posterior_parameters(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        weight = observed(x, mask)
        counts = weight * x
        if not self.local:
            weight, counts = weight.sum(), counts.sum()
        return self.concentration + counts, self.rate + weight

    def _log_normaliser(self) -> Tensor:
        concentration, rate = self._posterior_parameters(self.x, self.mask)
        prior = self.concentration * math.log(self.rate) - math.lgamma(self.concentration)
        return prior + concentration.lgamma() - concentration * rate.log()
