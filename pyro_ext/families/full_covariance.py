"""Normals with a full covariance S Sᵀ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.families.affine_family import AffineFamily
from pyro_ext.families.family import inverse_positive, positive
from pyro_ext.families.linear_map import Dense, LinearMap, LowerUpper, Triangle

__all__ = ["FullCovariance"]


@dataclass(frozen=True)
class FullCovariance(AffineFamily):
    r"""Normals with a full covariance, z = μ + S ε.

    .. math:: q(z; \pi) = \mathcal{N}(z \mid \mu, S S^\top)

    ================  =======================================================  ================
    ``factor``        S                                                        P
    ================  =======================================================  ================
    ``"triangular"``  diag(s) L, L a lower triangle of unit diagonal           2D + D(D-1)/2
    ``"dense"``       any non-singular matrix, its entries free; it costs      D + D²
                      one factorization per π
    ``"lu"``          diag(s) L U, triangles of unit diagonal: dense, with     D + D²
                      a determinant in O(D) and never singular
    ================  =======================================================  ================

    All three reach every covariance. A dense S has more ways to write one than the optimizer
    needs, but it turns freely where a triangle depends on the order of the coordinates.

    Args:
        factor: Form of S.

    Raises:
        ValueError: If the form is unknown, if a dense S is singular, or if S = L U does not exist.

    References:
        Automatic Differentiation Variational Inference (Kucukelbir et al., 2017) |
        https://arxiv.org/abs/1603.00788

    Example:
        >>> family = FullCovariance()
        >>> S = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
        >>> family.distribution(family.initial_params(torch.zeros(2), S), 2).covariance_matrix
        tensor([[1.0000, 0.8000],
                [0.8000, 1.0000]])
    """

    papers: ClassVar[tuple[str, ...]] = ("kucukelbir2017automatic",)

    factor: str = "triangular"

    def __post_init__(self) -> None:
        """Check the name of the form."""
        if self.factor not in _FORMS:
            raise ValueError(
                f"FullCovariance: expected factor to be one of {list(_FORMS)}; got "
                f"{self.factor!r}. Write: px.FullCovariance('triangular')."
            )

    def num_params(self, dim: int) -> int:
        """Return the number of entries of μ and S."""
        return dim + _FORMS[self.factor].size(dim)

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *rest"]
    ) -> Float[Tensor, " *batch params"]:
        """Return the π with mean ``loc`` and S = diag(``scale``), or S = ``scale``.

        Args:
            loc: Mean, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``, or the matrix S itself, shape
                ``(*batch, dim, dim)``.
        """
        factor = scale if scale.dim() == loc.dim() + 1 else torch.diag_embed(scale.expand_as(loc))
        return torch.cat([loc, _FORMS[self.factor].pack(factor)], dim=-1)

    def _affine(self, params: Tensor, dim: int) -> tuple[Tensor, LinearMap]:
        loc, entries = params[..., :dim], params[..., dim:]
        return loc, _FORMS[self.factor].build(entries, dim)


def _below_diagonal(matrix: Tensor) -> Tensor:
    dim = matrix.shape[-1]
    return matrix.flatten(-2)[..., _places_below_diagonal(dim, matrix.device)]


def _places_below_diagonal(dim: int, device: torch.device) -> Tensor:
    """Return the places of these entries in the flattened matrix."""
    row, col = torch.tril_indices(dim, dim, -1, device=device)
    return dim * row + col


def _from_below_diagonal(entries: Tensor, dim: int) -> Tensor:
    """Return the lower triangle of unit diagonal that has these entries."""
    eye = torch.eye(dim, dtype=entries.dtype, device=entries.device).flatten()
    # Not expanded: torch's compiler would copy all matrices into one.
    eyes = eye.repeat(*entries.shape[:-1], 1)
    matrix = eyes.index_copy(-1, _places_below_diagonal(dim, entries.device), entries)
    return matrix.unflatten(-1, (dim, dim))


def _pack_triangular(factor: Tensor) -> Tensor:
    sd = factor.diagonal(dim1=-2, dim2=-1)
    return torch.cat([inverse_positive(sd), _below_diagonal(factor / sd.unsqueeze(-1))], dim=-1)


def _build_triangular(entries: Tensor, dim: int) -> LinearMap:
    sd = positive(entries[..., :dim]).unsqueeze(-1)
    return Triangle(sd * _from_below_diagonal(entries[..., dim:], dim))


def _pack_lu(factor: Tensor) -> Tensor:
    """Eliminate without pivots: S = L diag(u) U = diag(u) (diag(u)⁻¹ L diag(u)) U."""
    lower, rest = [], factor
    upper = []
    for step in range(factor.shape[-1]):
        row = rest[..., step, :]
        pivot = row[..., step]
        if not bool((pivot > 0).all()):
            raise ValueError(
                "FullCovariance: expected a matrix S = L U with a positive diagonal; got one "
                f"whose leading minor of size {step + 1} is not positive. Write: "
                "px.FullCovariance('dense'), or give the Cholesky factor of S Sᵀ, which defines "
                "the same normal."
            )
        column = rest[..., :, step] / pivot.unsqueeze(-1)
        upper.append(row)
        lower.append(column)
        rest = rest - column.unsqueeze(-1) * row.unsqueeze(-2)
    u, low = torch.stack(upper, -2), torch.stack(lower, -1)
    scale = u.diagonal(dim1=-2, dim2=-1)
    low = low * scale.unsqueeze(-2) / scale.unsqueeze(-1)
    u = u / scale.unsqueeze(-1)
    parts = [inverse_positive(scale), _below_diagonal(low), _below_diagonal(u.mT)]
    return torch.cat(parts, dim=-1)


def _build_lu(entries: Tensor, dim: int) -> LinearMap:
    raw, low, up = entries.split([dim, dim * (dim - 1) // 2, dim * (dim - 1) // 2], dim=-1)
    lower, upper = _from_below_diagonal(low, dim), _from_below_diagonal(up, dim).mT
    return LowerUpper(positive(raw), lower, upper)


@dataclass(frozen=True)
class _Form:
    """How the entries of π behind μ stand for S: their number, and the way to S and back."""

    size: Callable[[int], int]
    pack: Callable[[Tensor], Tensor]
    build: Callable[[Tensor, int], LinearMap]


_FORMS: dict[str, _Form] = {
    "triangular": _Form(lambda d: d + d * (d - 1) // 2, _pack_triangular, _build_triangular),
    "dense": _Form(
        lambda d: d**2,
        lambda factor: factor.flatten(-2),
        lambda entries, dim: Dense(entries.unflatten(-1, (dim, dim))),
    ),
    "lu": _Form(lambda d: d**2, _pack_lu, _build_lu),
}
