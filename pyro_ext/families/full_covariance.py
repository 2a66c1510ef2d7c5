"""Normals with a full covariance S Sᵀ."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.utils import vec_to_tril_matrix

from pyro_ext.families.affine_normal import AffineNormal
from pyro_ext.families.diagonal import normal_quantile
from pyro_ext.families.family import Family, inverse_positive, positive

__all__ = ["FullCovariance"]


@dataclass(frozen=True)
class FullCovariance(Family):
    r"""Normals with a full covariance, z = μ + S ε.

    .. math:: q(z; \pi) = \mathcal{N}(z \mid \mu, S S^\top)

    By default S = diag(s) U, with U a lower triangle of unit diagonal: P = 2D + D(D-1)/2. With
    ``dense=True`` S is any non-singular matrix and its entries are free: P = D + D².

    Args:
        dense: Whether S is a dense matrix instead of a triangle.

    Raises:
        ValueError: If a dense S is singular.

    Example:
        >>> family = FullCovariance()
        >>> S = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
        >>> family.distribution(family.initial_params(torch.zeros(2), S), 2).covariance_matrix
        tensor([[1.0000, 0.8000],
                [0.8000, 1.0000]])
    """

    dense: bool = False

    def num_params(self, dim: int) -> int:
        """Return the number of entries of μ and S."""
        return dim + dim**2 if self.dense else 2 * dim + dim * (dim - 1) // 2

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *rest"]
    ) -> Float[Tensor, " *batch params"]:
        """Return the π with mean ``loc`` and S = diag(``scale``), or S = ``scale``.

        Args:
            loc: Mean, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``, or the matrix S itself, shape
                ``(*batch, dim, dim)``.
        """
        dim = loc.shape[-1]
        factor = scale if scale.dim() == loc.dim() + 1 else torch.diag_embed(scale.expand_as(loc))
        if self.dense:
            return torch.cat([loc, factor.flatten(-2)], dim=-1)
        sd = factor.diagonal(dim1=-2, dim2=-1)
        row, col = torch.tril_indices(dim, dim, -1, device=loc.device)
        unit = (factor / sd.unsqueeze(-1))[..., row, col]
        return torch.cat([loc, inverse_positive(sd), unit], dim=-1)

    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return the normal with parameters π.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: None.
        """
        if self.dense:
            loc, entries = params.split([dim, dim**2], dim=-1)
            return AffineNormal(loc, entries.unflatten(-1, (dim, dim)), triangular=False)
        loc, raw, unit = params.split([dim, dim, dim * (dim - 1) // 2], dim=-1)
        sd = positive(raw)
        factor = torch.diag_embed(sd)
        if dim > 1:
            factor = factor + sd.unsqueeze(-1) * vec_to_tril_matrix(unit, diag=-1)
        return AffineNormal(loc, factor, triangular=True)

    def quantile(self, posterior: Distribution, prob: float) -> Float[Tensor, " *batch dim"]:
        """Return the marginal quantile of each coordinate, exactly.

        Args:
            posterior: A distribution that this family made.
            prob: Probability in (0, 1).
        """
        return normal_quantile(posterior, prob)
