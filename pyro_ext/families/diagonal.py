"""Mean field: independent normals."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext.families.affine_family import AffineFamily
from pyro_ext.families.family import inverse_positive, positive
from pyro_ext.families.linear_map import Scale
from pyro_ext.families.normal import Normal

__all__ = ["Diagonal"]


@dataclass(frozen=True)
class Diagonal(AffineFamily):
    r"""Independent normals, the classical mean-field family.

    .. math::
        q(z; \pi) = \prod_d \mathcal{N}(z_d \mid \mu_d, \sigma_d^2), \qquad
        z = \mu + \sigma \odot \varepsilon

    π holds the means and the scales before their softplus, so P = 2D.

    References:
        Automatic Differentiation Variational Inference (Kucukelbir et al., 2017) |
        https://arxiv.org/abs/1603.00788

    Example:
        >>> family = Diagonal()
        >>> params = family.initial_params(torch.zeros(3), torch.full((3,), 0.5))
        >>> q = family.distribution(params, 3)
        >>> q.event_shape, q.variance
        (torch.Size([3]), tensor([0.2500, 0.2500, 0.2500]))
    """

    papers: ClassVar[tuple[str, ...]] = ("kucukelbir2017automatic",)

    def num_params(self, dim: int) -> int:
        """Return 2D."""
        return 2 * dim

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *batch dim"]
    ) -> Float[Tensor, " *batch params"]:
        """Return the π of the normal with mean ``loc`` and standard deviations ``scale``.

        Args:
            loc: Mean, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``.
        """
        return torch.cat([loc, inverse_positive(scale.expand_as(loc))], dim=-1)

    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return the normal with parameters π.

        Args:
            params: π, shape ``(*batch, 2 * dim)``.
            dim: Dimension D of z.
            network: None.
        """
        loc, linear = self._affine(params, dim)
        return Normal(loc, linear.scale).to_event(1)

    def coordinates(self, posterior: Distribution) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each coordinate, shape ``(*batch, dim)``.

        Args:
            posterior: A distribution that this family made.
        """
        return posterior.mean, posterior.stddev

    def _affine(self, params: Tensor, dim: int) -> tuple[Tensor, Scale]:
        loc, raw = params.split([dim, dim], dim=-1)
        return loc, Scale(positive(raw))
