"""The matrix S of z = μ + S ε, in forms whose inverse and determinant are cheap."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.distributions import Distribution

__all__ = ["Dense", "LinearMap", "LowerUpper", "Scale", "Triangle"]


class LinearMap(ABC):
    """A non-singular S, shape ``(*batch, dim, dim)``, which may never be formed.

    Rows may have sample dims in front of the batch dims: these share one factorization.
    """

    @property
    @abstractmethod
    def batch_shape(self) -> Size:
        """Batch shape of S."""

    @abstractmethod
    def apply(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S ε for each row ε."""

    @abstractmethod
    def solve(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S⁻¹ z for each row z."""

    @abstractmethod
    def log_abs_det(self) -> Tensor:
        """Return log |det S|, shape ``batch``."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return S, shape ``(*batch, dim, dim)``."""


def _by_column(op: Callable[[Tensor, Tensor], Tensor], matrix: Tensor, rows: Tensor) -> Tensor:
    """Apply a matrix operation to row vectors; sample dims become columns of one matrix.

    The rows come back contiguous: a model's product of a strided z with a matrix is slow.
    """
    samples = max(rows.dim() + 1 - matrix.dim(), 0)
    lead = rows.shape[:samples]
    columns = rows.reshape(-1, *rows.shape[samples:]).movedim(0, -1)
    out = op(matrix, columns).movedim(-1, 0).contiguous()
    return out.reshape(*lead, *out.shape[1:])


def _solve_lower(matrix: Tensor, columns: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(matrix, columns, upper=False)


class Scale(LinearMap):
    """A diagonal S.

    Args:
        scale: Diagonal of S, positive, shape ``(*batch, dim)``.
    """

    def __init__(self, scale: Float[Tensor, " *batch dim"]) -> None:
        self.scale = scale

    @property
    def batch_shape(self) -> Size:
        """Batch shape of S."""
        return self.scale.shape[:-1]

    def apply(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S ε for each row ε."""
        return self.scale * rows

    def solve(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S⁻¹ z for each row z."""
        return rows / self.scale

    def log_abs_det(self) -> Tensor:
        """Return log |det S|, shape ``batch``."""
        return self.scale.log().sum(-1)

    def matrix(self) -> Tensor:
        """Return S, shape ``(*batch, dim, dim)``."""
        return torch.diag_embed(self.scale)


class Triangle(LinearMap):
    """A lower triangle.

    Args:
        factor: S with positive diagonal, shape ``(*batch, dim, dim)``.
    """

    def __init__(self, factor: Float[Tensor, " *batch dim dim"]) -> None:
        self.factor = factor

    @property
    def batch_shape(self) -> Size:
        """Batch shape of S."""
        return self.factor.shape[:-2]

    def apply(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S ε for each row ε."""
        return _by_column(torch.matmul, self.factor, rows)

    def solve(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S⁻¹ z for each row z."""
        return _by_column(_solve_lower, self.factor, rows)

    def log_abs_det(self) -> Tensor:
        """Return log |det S|, shape ``batch``."""
        return self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def matrix(self) -> Tensor:
        """Return S, shape ``(*batch, dim, dim)``."""
        return self.factor


class Dense(LinearMap):
    """Any non-singular matrix, factorized once, when its inverse or determinant is first needed.

    Args:
        factor: S, shape ``(*batch, dim, dim)``.

    Raises:
        ValueError: If S is singular, when that is first needed and arguments are validated.
    """

    def __init__(self, factor: Float[Tensor, " *batch dim dim"]) -> None:
        self.factor = factor
        self._lu: tuple[Tensor, Tensor] | None = None

    @property
    def batch_shape(self) -> Size:
        """Batch shape of S."""
        return self.factor.shape[:-2]

    def apply(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S ε for each row ε."""
        return _by_column(torch.matmul, self.factor, rows)

    def solve(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S⁻¹ z for each row z."""
        lu, pivots = self._factorize()
        return _by_column(lambda _, z: torch.linalg.lu_solve(lu, pivots, z), self.factor, rows)

    def log_abs_det(self) -> Tensor:
        """Return log |det S|, shape ``batch``."""
        return self._factorize()[0].diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def matrix(self) -> Tensor:
        """Return S, shape ``(*batch, dim, dim)``."""
        return self.factor

    def _factorize(self) -> tuple[Tensor, Tensor]:
        if self._lu is None:
            lu, pivots, info = torch.linalg.lu_factor_ex(self.factor)
            if Distribution._validate_args and bool((info > 0).any()):
                where = torch.nonzero(info > 0)[0].tolist() if info.dim() else "()"
                raise ValueError(
                    "FullCovariance: expected a non-singular S of shape "
                    f"{tuple(self.factor.shape[-2:])}; got a singular one at batch index {where}. "
                    "Write: px.FullCovariance('lu'), whose S cannot become singular, or start "
                    "from a non-singular S."
                )
            self._lu = (lu, pivots)
        return self._lu


class LowerUpper(LinearMap):
    """S = diag(s) L U, a dense matrix that is never factorized.

    Args:
        scale: s, positive, shape ``(*batch, dim)``.
        lower: L, a lower triangle of unit diagonal, shape ``(*batch, dim, dim)``.
        upper: U, an upper triangle of unit diagonal, shape ``(*batch, dim, dim)``.
    """

    def __init__(
        self,
        scale: Float[Tensor, " *batch dim"],
        lower: Float[Tensor, " *batch dim dim"],
        upper: Float[Tensor, " *batch dim dim"],
    ) -> None:
        self.scale, self.lower, self.upper = scale, lower, upper

    @property
    def batch_shape(self) -> Size:
        """Batch shape of S."""
        return self.scale.shape[:-1]

    def apply(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S ε for each row ε."""
        lower = self.scale.unsqueeze(-1) * self.lower
        return _by_column(lambda u, x: lower @ (u @ x), self.upper, rows)

    def solve(self, rows: Float[Tensor, "*_ dim"]) -> Float[Tensor, "*_ dim"]:
        """Return S⁻¹ z for each row z."""

        def solve(upper: Tensor, columns: Tensor) -> Tensor:
            half = torch.linalg.solve_triangular(
                self.lower, columns, upper=False, unitriangular=True
            )
            return torch.linalg.solve_triangular(upper, half, upper=True, unitriangular=True)

        return _by_column(solve, self.upper, rows / self.scale)

    def log_abs_det(self) -> Tensor:
        """Return log |det S|, shape ``batch``."""
        return self.scale.log().sum(-1)

    def matrix(self) -> Tensor:
        """Return S, shape ``(*batch, dim, dim)``."""
        return self.scale.unsqueeze(-1) * (self.lower @ self.upper)
