"""Distributions that are a network on noise: draws without a density."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NoReturn

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_ext._whole import whole
from pyro_ext.families._context import check_context, initial_context, join_context, zero_last
from pyro_ext.families.family import Family, inverse_positive, positive
from pyro_ext.nn import MLP
from pyro_ext.nn.mlp import check_widths

__all__ = ["Implicit"]


@dataclass(frozen=True)
class Implicit(Family):
    r"""A network on noise: a sampler without a density.

    .. math::
        z = \mu + s \odot (A \varepsilon + g(\varepsilon, c)), \qquad
        \varepsilon \sim \mathcal{N}(0, I_n)

    π = (μ, s before its softplus, c), so P = 2D + ``context``; all π share the network g, which
    starts at zero. A repeats the coordinates of ε to size D, so that q starts with mean μ and
    standard deviations s, and normal where n ≥ D. There is no log q: train it by a loss that
    estimates a density ratio.

    Args:
        noise_dim: Size n of the noise; by default D.
        context: Size of c.
        hidden: Widths of g's hidden layers.

    Raises:
        ValueError: If a size is out of range, or when a density is asked for.

    References:
        Variational inference using implicit distributions (Huszár, 2017)
        | https://arxiv.org/abs/1702.08235

    Example:
        >>> family = Implicit()
        >>> params = family.initial_params(torch.zeros(3), torch.ones(3))
        >>> family.distribution(params, 3, family.network(3)).rsample((5,)).shape
        torch.Size([5, 3])
    """

    papers: ClassVar[tuple[str, ...]] = ("huszar2017variational",)

    noise_dim: int | None = None
    _: KW_ONLY
    context: int = 0
    hidden: Sequence[int] = (64, 64)

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_widths("Implicit", "hidden", self.hidden)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "context", check_context("Implicit", self.context))
        if self.noise_dim is not None:
            noise_dim = whole(self.noise_dim, "noise_dim", write="px.Implicit()", owner="Implicit")
            object.__setattr__(self, "noise_dim", noise_dim)
        if self.noise_dim is not None and self.noise_dim < 1:
            raise ValueError(
                f"Implicit: expected noise_dim >= 1; got {self.noise_dim}. Write: px.Implicit(), "
                "whose noise has the size of z."
            )

    @property
    def density(self) -> Literal["any", "own", "none"]:
        """It scores no z."""
        return "none"

    def network(self, dim: int) -> nn.Module:
        """Return a new g, which is zero.

        Args:
            dim: Dimension D of z.
        """
        network = MLP((self.noise_dim or dim) + self.context, self.hidden, dim)
        zero_last(network.layers)
        return network

    def num_params(self, dim: int) -> int:
        """Return 2D and the size of the context."""
        return 2 * dim + self.context

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *batch dim"]
    ) -> Float[Tensor, " *batch params"]:
        """Return a π that starts with mean ``loc`` and standard deviations ``scale``.

        Args:
            loc: Mean, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``.
        """
        raw = inverse_positive(scale.expand_as(loc))
        return torch.cat([loc, raw, initial_context(self.context, loc)], dim=-1)

    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return the sampler with parameters π.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: What ``network(dim)`` returned.
        """
        if network is None:
            raise ValueError(
                "Implicit: expected the network that all π share; got None. Write: "
                "family.distribution(params, dim, family.network(dim))."
            )
        loc, raw, context = params.split([dim, dim, self.context], dim=-1)
        noise_dim = self.noise_dim or dim
        return _Sampler(loc, positive(raw), context, noise_dim, network)


class _Sampler(TorchDistribution):
    """Draws of ``Implicit``."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, context: Tensor, noise_dim: int, network: nn.Module
    ) -> None:
        self.loc, self.scale, self.context = loc, scale, context
        self.noise_dim, self.network = noise_dim, network
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Sampler":
        """Return the same sampler with a larger batch shape."""
        new = self._get_checked_instance(_Sampler, _instance)
        new.loc, new.scale, new.context = self.loc, self.scale, self.context
        new.noise_dim, new.network = self.noise_dim, self.network
        super(_Sampler, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z."""
        shape = (*sample_shape, *self.batch_shape, self.noise_dim)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        linear = noise[..., torch.arange(self.event_shape[0], device=noise.device) % shape[-1]]
        return self.loc + self.scale * (linear + self.network(join_context(noise, self.context)))

    def log_prob(self, value: Tensor) -> NoReturn:
        """Raise: there is no density."""
        raise ValueError(
            "Implicit: expected a loss that needs no density of the guide, as one by density "
            "ratios; got one that asks for log q(z), and a network on noise is a sampler without "
            "a density. Write: px.Flow('nsf'), a network on noise with one; for its draws alone "
            "px.from_draws(run.sample(1000))."
        )
