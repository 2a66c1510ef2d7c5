"""What a family is: π ↦ q(z; π)."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.functional import softplus

from pyro_ext._cited import Cited
from pyro_ext.families._quantile import quantile_by_draws

__all__ = ["Family", "check_family", "inverse_positive", "positive"]


def positive(raw: Tensor) -> Tensor:
    """Softplus with a floor of one machine epsilon, so that a scale never underflows to zero."""
    return softplus(raw) + torch.finfo(raw.dtype).eps


def inverse_positive(value: Tensor) -> Tensor:
    """Return the ``raw`` for which ``positive(raw) == value``.

    Raises:
        ValueError: If a value is not above the floor.
    """
    least = torch.finfo(value.dtype).eps
    excess = value - least
    if (excess <= 0).any():
        raise ValueError(
            f"family: expected standard deviations above {least:.2g}, the least in {value.dtype}; "
            f"got {value.min().item():.2g}. Write: init_scale=0.1, data and priors in "
            "torch.float64, or latents in units in which they are of the order of one."
        )
    return excess + torch.log(-torch.expm1(-excess))


class Family(Cited, ABC):
    r"""A set of distributions :math:`\{q(z; \pi)\}` over :math:`\mathbb{R}^D`.

    A family holds no parameters: a guide stores π, or computes it from data, and asks the family
    for the distribution. A family of flows has networks too, which all π share: it builds them and
    the guide keeps them. To add a family, write its three abstract
    methods, and the others where it can; ``papers`` says what to cite for it.

    Example:
        >>> class Laplace(px.Family):
        ...     def num_params(self, dim):
        ...         return 2 * dim
        ...     def initial_params(self, loc, scale):
        ...         return torch.cat([loc, (scale.expand_as(loc) / 2**0.5).log()], -1)
        ...     def distribution(self, params, dim, network=None):
        ...         loc, log_scale = params.split(dim, -1)
        ...         return dist.Laplace(loc, log_scale.exp()).to_event(1)
        >>> def model():
        ...     pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        >>> px.AutoJoint(model, family=Laplace()).sample_posterior(10)["mu"].shape
        torch.Size([10, 2])
    """

    @property
    def density(self) -> Literal["any", "own", "none"]:
        """Which z it can score: any, its own draws (a flow without an inverse), or none."""
        return "any"

    def network(self, dim: int) -> nn.Module | None:
        """Return new networks for latents of dimension ``dim``, or None if π is all there is.

        Args:
            dim: Dimension D of z.
        """
        return None

    @abstractmethod
    def num_params(self, dim: int) -> int:
        """Return P, the size of π for latents of dimension ``dim``."""

    @abstractmethod
    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *rest"]
    ) -> Float[Tensor, " *batch params"]:
        """Return a π whose distribution is centred at ``loc`` with standard deviations ``scale``.

        Args:
            loc: Centre, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``.
        """

    @abstractmethod
    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return q(z; π), with batch shape ``batch`` and event shape ``(dim,)``.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: What ``network(dim)`` returned.
        """

    def transform(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Transform | None:
        """Return the map ε ↦ z that makes q(z; π) of ε ~ N(0, I), of the same dimension.

        It has no cache, and batch dims in π broadcast against those of ε. A family without such a
        map keeps this default.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: What ``network(dim)`` returned.

        Returns:
            The map, or None.
        """
        return None

    def quantile(self, posterior: Distribution, prob: float) -> Float[Tensor, " *batch dim"]:
        """Return the marginal quantile of each coordinate of z.

        By default that of 4096 draws, always the same ones, so that quantiles never cross; the
        random numbers of the caller are left alone.

        Args:
            posterior: A distribution that this family made.
            prob: Probability in (0, 1).
        """
        return quantile_by_draws(posterior, prob)

    def coordinates(self, posterior: Distribution) -> tuple[Tensor, Tensor] | None:
        """Return mean and standard deviation of each coordinate, if they are independent normals.

        ``ELBO(form="kl")`` then knows the marginal of each site. A family with dependent
        coordinates, or others, keeps this default.

        Args:
            posterior: A distribution that this family made.

        Returns:
            Two tensors of shape ``(*batch, dim)``, or None.
        """
        return None


def check_family(owner: str, option: str, family: object) -> None:
    """Raise if what should be a family is none, such as the class of one.

    Args:
        owner: Whose option it is, for the message.
        option: Its name.
        family: What was given.

    Raises:
        TypeError: If it is no family.
    """
    if not isinstance(family, Family):
        got, instead = repr(family), "px.FullCovariance()"
        if isinstance(family, type):
            got = f"the class {family.__name__}"
            instead = f"px.{family.__name__}()" if issubclass(family, Family) else instead
        raise TypeError(
            f"{owner}: expected {option} to be a family; got {got}. Write: {option}={instead}."
        )
