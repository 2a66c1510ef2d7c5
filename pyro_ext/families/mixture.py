"""Mixtures of any family."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_ext._strata import Stratified
from pyro_ext._whole import whole
from pyro_ext.families._fixed import fixed_normal
from pyro_ext.families.affine_normal import AffineNormal
from pyro_ext.families.family import Family, check_family

__all__ = ["Mixture", "MixtureDistribution"]

_SPREAD = 0.5  # share of the standard deviation that lies between the components at the start
_HALVINGS = 64


class MixtureDistribution(Stratified):
    r"""Mixture of the distributions of one family.

    .. math:: q(z) = \sum_{c=1}^C \alpha_c \, q_c(z)

    Its draws are independent and pass no gradient on. In the losses whose gradient goes through
    the draws they are stratified, and each is differentiated within its component.

    Args:
        logits: Logits of α, shape ``(*batch, C)``.
        components: The q_c, batch shape ``(*batch, C)``.

    References:
        Automatic Differentiation Variational Inference with Mixtures (Morningstar et al., 2021) |
        https://arxiv.org/abs/2003.01687

    Example:
        >>> components = dist.Normal(torch.tensor([[-1.0], [1.0]]), 0.5).to_event(1)
        >>> q = MixtureDistribution(torch.zeros(2), components)
        >>> q.mean, q.variance
        (tensor([0.]), tensor([1.2500]))
        >>> q.log_prob(torch.tensor([1.0]))
        tensor(-0.9186)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        logits: Float[Tensor, " *batch components"],
        components: Any,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.components = components
        batch_shape = torch.broadcast_shapes(logits.shape, components.batch_shape)[:-1]
        super().__init__(
            torch.log_softmax(logits, -1),
            batch_shape,
            components.event_shape,
            validate_args=validate_args,
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MixtureDistribution":
        """Return the same distribution with a larger batch shape, without copying parameters."""
        new: MixtureDistribution = self._get_checked_instance(MixtureDistribution, _instance)
        new.components = self.components
        self._expanded(new, batch_shape)
        return new

    @property
    def mean(self) -> Tensor:
        """Mean of z, shape ``(*batch, dim)``."""
        mean = (self._share * self.components.mean).sum(-2)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances of the coordinates, shape ``(*batch, dim)``."""
        means = self.components.mean
        between = (means - (self._share * means).sum(-2, keepdim=True)).square()
        variance = (self._share * (self.components.variance + between)).sum(-2)
        return variance.expand(self.batch_shape + self.event_shape)

    @property
    def _share(self) -> Tensor:
        return self.log_share.exp().unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value), shape ``(*sample, *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        each = self.components.log_prob(value.unsqueeze(-2))
        return torch.logsumexp(self.log_share + each, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw independently: a component by its share, then from that component."""
        with torch.no_grad():
            shape = Size(sample_shape) + self.batch_shape
            share = self.log_share.exp().expand(*shape, self.num_strata)
            chosen = dist.Categorical(share).sample()
            return self._pick(chosen, self._each.sample(sample_shape))

    def _from(self, chosen: Tensor, sample_shape: Size) -> Tensor:
        return self._pick(chosen, self._each.rsample(sample_shape))

    @property
    def _each(self) -> Any:
        return self.components.expand((*self.batch_shape, self.num_strata))

    def _pick(self, chosen: Tensor, each: Tensor) -> Tensor:
        """Return the draw of the chosen component, out of one of each."""
        index = chosen[..., None, None].expand(*chosen.shape, 1, each.shape[-1])
        return each.gather(-2, index).squeeze(-2)


@dataclass(frozen=True)
class Mixture(Family):
    r"""Mixtures of C distributions of one family: several modes, skewed or heavy tails.

    .. math:: q(z; \pi) = \sum_{c=1}^C \alpha_c \, q(z; \pi_c),
        \qquad \pi = (\operatorname{logits} \alpha, \pi_1, \dots, \pi_C)

    The estimators ``reparam`` and ``stl`` share out the particles of a loss among the components:
    their number must be a multiple of C. Particle k, drawn from component c(k), then counts
    :math:`C \alpha_{c(k)}` in the bound, whose gradient by α is exact in the strata:

    .. math::
        \mathcal{L} = \sum_c \alpha_c \mathbb{E}_{q_c} \log w, \qquad
        \mathcal{L}_K = \mathbb{E} \log \frac1K \sum_k C \alpha_{c(k)} w_k

    Elsewhere (weights, diagnostics, Pyro's losses, ``score``, ``vimco``) draws are independent.
    The components start at different places about the initial one.

    Args:
        base: Family of the components; it must score any z.
        num_components: Number C of components.

    Raises:
        ValueError: If ``num_components`` is not positive, or ``base`` is a mixture or cannot score
            any z.

    References:
        Automatic Differentiation Variational Inference with Mixtures (Morningstar et al., 2021) |
        https://arxiv.org/abs/2003.01687
        Sticking the Landing (Roeder, Wu and Duvenaud, 2017) | https://arxiv.org/abs/1703.09194

    Example:
        >>> from pyro_ext.families import Diagonal
        >>> family = Mixture(Diagonal(), num_components=3)
        >>> family.num_params(2)
        15
        >>> q = family.distribution(family.initial_params(torch.zeros(2), torch.ones(2)), 2)
        >>> q.sample((5,)).shape
        torch.Size([5, 2])
    """

    papers: ClassVar[tuple[str, ...]] = ("morningstar2021automatic",)

    base: Family
    num_components: int = 2

    def __post_init__(self) -> None:
        """Check base and number."""
        check_family("Mixture", "base", self.base)
        write = f"px.Mixture({self.base!r}, num_components=2)"
        count = whole(self.num_components, "num_components", write=write, owner="Mixture")
        object.__setattr__(self, "num_components", count)
        if isinstance(self.base, Mixture):
            raise ValueError(
                f"Mixture: expected components that are no mixtures; got {self.base!r}. Write: "
                f"px.Mixture({self.base.base!r}, "
                f"num_components={count * self.base.num_components})."
            )
        if self.base.density != "any":
            raise ValueError(
                f"Mixture: expected a family that scores any z, as each component must score the "
                f"draws of the others; got {self.base!r}. Write: "
                f"px.Mixture(px.FullCovariance(), num_components={count})."
            )
        if count < 1:
            raise ValueError(
                f"Mixture: expected num_components >= 1; got {count}. Write: "
                f"px.Mixture({self.base!r}, num_components=2)."
            )

    def network(self, dim: int) -> nn.Module | None:
        """Return the networks of the base, which all components share, or None.

        Args:
            dim: Dimension D of z.
        """
        return self.base.network(dim)

    def num_params(self, dim: int) -> int:
        """Return C (1 + P) for a base with P parameters."""
        return self.num_components * (1 + self.base.num_params(dim))

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *batch dim"]
    ) -> Float[Tensor, " *batch params"]:
        """Return a π of equal shares, with mean ``loc`` and standard deviations ``scale``.

        Args:
            loc: Mean, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``.
        """
        count = self.num_components
        place = fixed_normal(count, loc.shape[-1])
        place = place - place.mean(0)
        spread = _SPREAD if count > 1 else 0.0
        place = (spread * place / place.square().mean(0).sqrt().clamp(min=1e-12)).to(loc)
        scale = scale.expand_as(loc).unsqueeze(-2)
        within = (scale * (1 - spread**2) ** 0.5).expand(*loc.shape[:-1], count, loc.shape[-1])
        each = self.base.initial_params(loc.unsqueeze(-2) + scale * place, within)
        return torch.cat([each.new_zeros(*loc.shape[:-1], count), each.flatten(-2)], dim=-1)

    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return the mixture with parameters π.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: What ``network(dim)`` returned.
        """
        count = self.num_components
        logits, each = params.split([count, params.shape[-1] - count], dim=-1)
        each = each.unflatten(-1, (count, self.base.num_params(dim)))
        return MixtureDistribution(logits, self.base.distribution(each, dim, network))

    def quantile(self, posterior: Distribution, prob: float) -> Float[Tensor, " *batch dim"]:
        """Return the marginal quantile of each coordinate; exactly if the components are normal.

        Args:
            posterior: A distribution that this family made.
            prob: Probability in (0, 1).
        """
        mixture: Any = posterior
        components = mixture.components
        if not _normal(components):
            return super().quantile(posterior, prob)
        each = self.base.quantile(components, prob)
        low, high = each.amin(-2), each.amax(-2)
        mean, sd = components.mean, components.variance.sqrt()
        share = mixture.log_share.exp().unsqueeze(-1)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = (share * torch.special.ndtr((middle.unsqueeze(-2) - mean) / sd)).sum(-2)
            low, high = (
                torch.where(below < prob, middle, low),
                torch.where(below < prob, high, middle),
            )
        return ((low + high) / 2).expand(posterior.batch_shape + posterior.event_shape)

    def _papers_in_use(self) -> Iterable[str]:
        return self.base.references


def _normal(components: Any) -> bool:
    """Tell whether the coordinates of distributions have normal marginals."""
    while isinstance(components, dist.Independent):
        components = components.base_dist
    normals = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal, AffineNormal)
    return isinstance(components, normals)
