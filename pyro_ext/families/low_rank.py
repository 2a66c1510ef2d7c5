"""Normals whose covariance is diagonal plus low rank."""

from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext._whole import whole
from pyro_ext.families._fixed import fixed_normal
from pyro_ext.families.affine_family import normal_quantile
from pyro_ext.families.family import Family, inverse_positive, positive

__all__ = ["LowRank"]

_INITIAL_SCALE = 0.1  # at exactly zero the factor's expected gradient vanishes


@dataclass(frozen=True)
class LowRank(Family):
    r"""Normals with a covariance of low rank plus a diagonal.

    .. math::
        q(z; \pi) = \mathcal{N}(z \mid \mu, \mathrm{diag}(s)(F F^\top + I)\,\mathrm{diag}(s)),
        \qquad z = \mu + s \odot (F \varepsilon_1 + \varepsilon_2)

    F has r columns, so that P = (2 + r) D; density and draws cost O(D r²). For latents of many
    dimensions with a few directions of strong correlation.

    Args:
        rank: Number r of columns of F.

    Raises:
        ValueError: If the rank is not positive.

    References:
        Gaussian Variational Approximation with a Factor Covariance Structure (Ong, Nott and Smith,
        2018) | https://arxiv.org/abs/1701.03208

    Example:
        >>> family = LowRank(rank=2)
        >>> family.num_params(100)
        400
        >>> q = family.distribution(family.initial_params(torch.zeros(100), torch.ones(100)), 100)
        >>> bool(torch.allclose(q.variance, torch.ones(100)))
        True
    """

    papers: ClassVar[tuple[str, ...]] = ("ong2018gaussian",)

    rank: int = 1

    def __post_init__(self) -> None:
        """Check the rank."""
        rank = whole(self.rank, "rank", write="px.LowRank(rank=2)", owner="LowRank")
        object.__setattr__(self, "rank", rank)
        if rank < 1:
            raise ValueError(
                f"LowRank: expected rank >= 1; got {self.rank}. Write: px.LowRank(rank=2), or "
                "px.Diagonal() for independent latents."
            )

    def num_params(self, dim: int) -> int:
        """Return (2 + r) D."""
        return (2 + self.rank) * dim

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *batch dim"]
    ) -> Float[Tensor, " *batch params"]:
        """Return a π with mean ``loc``, standard deviations ``scale`` and a small fixed F.

        Args:
            loc: Mean, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``.
        """
        factor = fixed_normal(loc.shape[-1], self.rank)
        factor = (_INITIAL_SCALE * factor / self.rank**0.5).to(loc)
        spread = (1 + factor.square().sum(-1)).sqrt()
        raw = inverse_positive(scale.expand_as(loc) / spread)
        return torch.cat([loc, raw, factor.flatten().expand(*loc.shape[:-1], -1)], dim=-1)

    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return the normal with parameters π.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: None.
        """
        loc, raw, entries = params.split([dim, dim, dim * self.rank], dim=-1)
        sd = positive(raw)
        factor = sd.unsqueeze(-1) * entries.unflatten(-1, (dim, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, sd.square())

    def quantile(self, posterior: Distribution, prob: float) -> Float[Tensor, " *batch dim"]:
        """Return the marginal quantile of each coordinate, exactly.

        Args:
            posterior: A distribution that this family made.
            prob: Probability in (0, 1).
        """
        return normal_quantile(posterior, prob)
