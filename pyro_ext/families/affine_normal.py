"""The normal distribution of z = μ + S ε."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_ext.families.affine import Affine
from pyro_ext.families.linear_map import LinearMap
from pyro_ext.families.own_draw import OwnDraw

__all__ = ["AffineNormal", "standard_normal_log_prob"]


def standard_normal_log_prob(noise: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Return log N(ε | 0, I) of each row."""
    return -0.5 * noise.square().sum(-1) - 0.5 * math.log(2 * math.pi) * noise.shape[-1]


class AffineNormal(TorchDistribution):
    r"""Normal distribution given by a factor S of its covariance.

    .. math::
        z = \mu + S \varepsilon, \qquad
        \log q(z) = -\tfrac12 \lVert S^{-1}(z - \mu) \rVert^2 - \log\lvert\det S\rvert
        - \tfrac{D}{2} \log 2\pi

    The covariance S Sᵀ is never formed or factorized. μ and S keep their own batch shape when the
    distribution is expanded, so that K particles share one factorization. The latest draw is
    scored by its own noise; any other value, also a detached copy of that draw, by S⁻¹.

    Args:
        loc: Mean μ, shape ``(*batch, dim)``.
        linear: S.

    Raises:
        ValueError: If a dense S is singular (when the density is first needed).

    Example:
        >>> from pyro_ext.families.linear_map import Dense
        >>> q = AffineNormal(torch.zeros(2), Dense(torch.tensor([[0.0, 2.0], [1.0, 0.0]])))
        >>> q.log_prob(torch.tensor([2.0, 0.0]))
        tensor(-3.0310)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"loc": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, " *batch dim"],
        linear: LinearMap,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.linear = loc, linear
        self.transform = Affine(loc, linear)
        self._own: OwnDraw | None = None
        batch_shape = Size(broadcast_shape(loc.shape[:-1], linear.batch_shape))
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AffineNormal":
        """Return the same distribution with a larger batch shape, without copying S."""
        new = self._get_checked_instance(AffineNormal, _instance)
        new.loc, new.linear, new.transform = self.loc, self.linear, self.transform
        new._own = None
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
        variance = self.linear.matrix().square().sum(-1)
        return variance.expand(self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Tensor:
        """S Sᵀ, shape ``(*batch, dim, dim)``."""
        factor = self.linear.matrix()
        return (factor @ factor.mT).expand(self.batch_shape + self.event_shape * 2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z = μ + S ε."""
        shape = self._extended_shape(Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        value: Tensor = self.transform(noise)
        self._own = OwnDraw(value, standard_normal_log_prob(noise), torch.is_grad_enabled())
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value), shape ``(*sample, *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        own = self._own
        if own is not None and own.scores(value):
            return own.log_prob - self.linear.log_abs_det()
        return standard_normal_log_prob(self.transform.inv(value)) - self.linear.log_abs_det()

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, shape ``batch``."""
        constant = 0.5 * (1 + math.log(2 * math.pi)) * self.event_shape[0]
        return (self.linear.log_abs_det() + constant).expand(self.batch_shape)
