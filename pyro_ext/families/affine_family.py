"""What the families of normals with a square S share."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext.families.affine import Affine
from pyro_ext.families.affine_normal import AffineNormal
from pyro_ext.families.family import Family
from pyro_ext.families.linear_map import LinearMap

__all__ = ["AffineFamily", "normal_quantile"]


def normal_quantile(posterior: Distribution, prob: float) -> Tensor:
    """Return the marginal quantiles of a normal distribution from its mean and variance."""
    z = torch.special.ndtri(torch.as_tensor(prob, dtype=posterior.mean.dtype))
    return posterior.mean + posterior.variance.sqrt() * z.to(posterior.mean.device)


class AffineFamily(Family):
    """Base of the families of normals, z = μ + S ε, that differ in how π writes S."""

    @abstractmethod
    def _affine(self, params: Tensor, dim: int) -> tuple[Tensor, LinearMap]:
        """Return μ and S."""

    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return the normal with parameters π.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: None.
        """
        return AffineNormal(*self._affine(params, dim))

    def transform(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Affine:
        """Return ε ↦ μ + S ε.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: None.
        """
        return Affine(*self._affine(params, dim))

    def quantile(self, posterior: Distribution, prob: float) -> Float[Tensor, " *batch dim"]:
        """Return the marginal quantile of each coordinate, exactly.

        Args:
            posterior: A distribution that this family made.
            prob: Probability in (0, 1).
        """
        return normal_quantile(posterior, prob)
