"""The normal distribution of z = μ + S ε, for a triangular or a dense non-singular S."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["AffineNormal"]


class AffineNormal(TorchDistribution):
    r"""Normal distribution given by a factor S of its covariance.

    .. math::
        z = \mu + S \varepsilon, \qquad
        \log q(z) = -\tfrac12 \lVert S^{-1}(z - \mu) \rVert^2 - \log\lvert\det S\rvert
        - \tfrac{D}{2} \log 2\pi

    The covariance S Sᵀ is never formed or factorized. ``loc`` and ``factor`` keep their own batch
    shape when the distribution is expanded, so that K particles share one factorization.

    Args:
        loc: Mean μ, shape ``(*batch, dim)``.
        factor: S, shape ``(*batch, dim, dim)``.
        triangular: Whether S is a lower triangle with positive diagonal.

    Raises:
        ValueError: If a dense S is singular (when the density is first needed).

    Example:
        >>> factor = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> q = AffineNormal(torch.zeros(2), factor, triangular=False)
        >>> q.log_prob(torch.tensor([2.0, 0.0]))
        tensor(-3.0310)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "factor": constraints.independent(constraints.real, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, " *batch dim"],
        factor: Float[Tensor, " *batch2 dim dim"],
        *,
        triangular: bool,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.factor, self.triangular = loc, factor, triangular
        self._lu: tuple[Tensor, Tensor] | None = None
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2])
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AffineNormal":
        """Return the same distribution with a larger batch shape, without copying S."""
        new = self._get_checked_instance(AffineNormal, _instance)
        new.loc, new.factor, new.triangular = self.loc, self.factor, self.triangular
        new._lu = self._lu
        super(AffineNormal, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """μ, shape ``(*batch, dim)``."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Diagonal of S Sᵀ, shape ``(*batch, dim)``."""
        return self.factor.square().sum(-1).expand(self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Tensor:
        """S Sᵀ, shape ``(*batch, dim, dim)``."""
        covariance = self.factor @ self.factor.mT
        return covariance.expand(self.batch_shape + self.event_shape * 2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z = μ + S ε."""
        noise = torch.randn(
            self._extended_shape(Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device
        )
        return self.loc + self._by_column(torch.matmul, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value), shape ``(*sample, *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        noise = self._by_column(self._solve, value - self.loc)
        constant = 0.5 * math.log(2 * math.pi) * self.event_shape[0]
        return -0.5 * noise.square().sum(-1) - self._log_abs_det() - constant

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, shape ``batch``."""
        constant = 0.5 * (1 + math.log(2 * math.pi)) * self.event_shape[0]
        return (self._log_abs_det() + constant).expand(self.batch_shape)

    def _by_column(self, op: Any, rows: Tensor) -> Tensor:
        """Apply a matrix operation to row vectors; sample dims become columns of one matrix."""
        samples = max(rows.dim() + 1 - self.factor.dim(), 0)
        lead = rows.shape[:samples]
        columns = rows.reshape(-1, *rows.shape[samples:]).movedim(0, -1)
        out = op(self.factor, columns).movedim(-1, 0)
        return out.reshape(*lead, *out.shape[1:])

    def _solve(self, factor: Tensor, columns: Tensor) -> Tensor:
        if self.triangular:
            return torch.linalg.solve_triangular(factor, columns, upper=False)
        lu, pivots = self._factorize()
        return torch.linalg.lu_solve(lu, pivots, columns)

    def _log_abs_det(self) -> Tensor:
        matrix = self.factor if self.triangular else self._factorize()[0]
        return matrix.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def _factorize(self) -> tuple[Tensor, Tensor]:
        if self._lu is None:
            lu, pivots, info = torch.linalg.lu_factor_ex(self.factor)
            if self._validate_args and bool((info > 0).any()):
                where = torch.nonzero(info > 0)[0].tolist() if info.dim() else "()"
                raise ValueError(
                    "FullCovariance: expected a non-singular S of shape "
                    f"{tuple(self.factor.shape[-2:])}; got a singular one at batch index "
                    f"{where}. Start from a non-singular S, or use FullCovariance(dense=False), "
                    "whose S cannot become singular."
                )
            self._lu = (lu, pivots)
        return self._lu
