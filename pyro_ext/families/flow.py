"""Normalizing flows: a Gaussian, bent."""

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_ext._whole import whole
from pyro_ext.families._context import check_context, initial_context
from pyro_ext.families._steps import LayerSpec
from pyro_ext.families.affine import Affine
from pyro_ext.families.diagonal import Diagonal
from pyro_ext.families.family import Family, check_family
from pyro_ext.families.flow_distribution import FlowDistribution, FlowTransform
from pyro_ext.families.flow_kinds import KINDS
from pyro_ext.nn.mlp import check_widths

__all__ = ["Flow"]

_NUM_TRANSFORMS = 3


@dataclass(frozen=True)
class Flow(Family):
    r"""A normal distribution of noise, bent by transforms, then moved and scaled.

    .. math::
        z = \mu + S\, T_n(\cdots T_1(\varepsilon; c) \cdots; c), \qquad
        \varepsilon \sim \mathcal{N}(0, I)

    The base family gives μ and S from its part of π; the rest of π is the context c, so that
    P = P_base + ``context``. The networks inside the T belong to all π. They start at the
    identity: fitting starts from the base family. With one shared π a context says nothing; with
    one π per datapoint it lets each have a shape of its own.

    ==================  ====================================  ============  ============
    transform           T                                     to draw       to score z
    ==================  ====================================  ============  ============
    ``"nsf"``           autoregressive, splines               1 pass        D passes
    ``"iaf"``           autoregressive, affine                1 pass        D passes
    ``"maf"``           autoregressive, affine                D passes      1 pass
    ``"nsf-coupling"``  coupling, splines                     1 pass        1 pass
    ``"realnvp"``       coupling, affine (or ``"coupling"``)  1 pass        1 pass
    ``"nice"``          coupling, shifts: keeps volumes       1 pass        1 pass
    ``"planar"``        along one direction                   1 pass        own draws only
    ``"radial"``        around one point                      1 pass        own draws only
    ``"sylvester"``     planar in D directions                1 pass        own draws only
    ==================  ====================================  ============  ============

    Every transform scores its own draws for free; ``"stl"``, ``"dreg"`` and ``guide.log_prob``
    score given z. Splines bend what lies within 5 standard deviations of the base. In one
    dimension nothing is left to condition on but c: affine transforms then keep the base normal.

    Args:
        kind: Name of the transform, or a sequence of names.
        base: Family of μ and S, such as ``Diagonal()`` or ``FullCovariance()``.
        num_transforms: Number n of transforms, which take their names in turn; by default 3, or
            the length of the sequence.
        context: Size of c.
        hidden: Widths of the hidden layers of each network.
        num_bins: Bins of a spline.
        averaged: Whether the last layer of a network averages its inputs, so that a step of Adam
            moves a transform about as far as a parameter. A sum moves it ``hidden[-1]`` times as
            far: it learns faster at rates of some thousandths, and runs away at larger ones.
            Planar, radial and Sylvester transforms are left as they are.

    Raises:
        ValueError: If a name is unknown, the base is no affine map of normal noise, or a size is
            out of range; and when a flow without an inverse is asked to score another z than its
            latest draw.

    References:
        Variational inference with normalizing flows (Rezende and Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770
        Improving variational inference with inverse autoregressive flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
        Neural spline flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        Sylvester normalizing flows for variational inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649
        Masked autoregressive flow (Papamakarios, Pavlakou and Murray, 2017)
        | https://arxiv.org/abs/1705.07057
        Density estimation using Real NVP (Dinh, Sohl-Dickstein and Bengio, 2017)
        | https://arxiv.org/abs/1605.08803
        NICE: non-linear independent components estimation (Dinh, Krueger and Bengio, 2014)
        | https://arxiv.org/abs/1410.8516

    Example:
        >>> family = Flow("nsf", context=4)
        >>> params = family.initial_params(torch.zeros(2), torch.ones(2))
        >>> q = family.distribution(params, 2, family.network(2))
        >>> q.log_prob(torch.zeros(2)).detach()
        tensor(-1.8379)
    """

    papers: ClassVar[tuple[str, ...]] = ("rezende2015variational",)

    kind: str | Sequence[str] = "nsf"
    _: KW_ONLY
    base: Family = field(default_factory=Diagonal)
    num_transforms: int | None = None
    context: int = 0
    hidden: Sequence[int] = (64, 64)
    num_bins: int = 8
    averaged: bool = True

    def __post_init__(self) -> None:
        """Check names, base and sizes."""
        check_family("Flow", "base", self.base)
        check_widths("Flow", "hidden", self.hidden)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not isinstance(self.kind, str):
            object.__setattr__(self, "kind", tuple(self.kind))
        object.__setattr__(self, "context", check_context("Flow", self.context))
        for option, write in (("num_bins", "num_bins=8"), ("num_transforms", "num_transforms=3")):
            if (given := getattr(self, option)) is not None:
                object.__setattr__(self, option, whole(given, option, write=write, owner="Flow"))
        unknown = [name for name in self._names if name not in KINDS]
        if unknown or not self._names:
            raise ValueError(
                f"Flow: expected transforms among {sorted(KINDS)}; got "
                f"{unknown or 'an empty sequence'}. Write: px.Flow('nsf')."
            )
        if self.num_transforms is not None and self.num_transforms < 1:
            raise ValueError(
                f"Flow: expected num_transforms >= 1; got {self.num_transforms}. Write: "
                "px.Flow('nsf', num_transforms=3), or the base family itself."
            )
        if self.num_bins < 2:
            raise ValueError(
                f"Flow: expected num_bins >= 2; got {self.num_bins}. Write: num_bins=8."
            )
        self._affine(torch.zeros(self.base.num_params(1)), 1)

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.kind,) if isinstance(self.kind, str) else tuple(self.kind)

    @property
    def density(self) -> Literal["any", "own", "none"]:
        """``"own"`` if a transform has no inverse, else ``"any"``."""
        return "own" if any(KINDS[name].density == "own" for name in self._names) else "any"

    def network(self, dim: int) -> nn.ModuleList:
        """Return new transforms, at the identity.

        Args:
            dim: Dimension D of z.
        """
        names = self._names
        default = _NUM_TRANSFORMS if isinstance(self.kind, str) else len(names)
        specs = (
            LayerSpec(dim, index, self.context, tuple(self.hidden), self.num_bins, self.averaged)
            for index in range(self.num_transforms or default)
        )
        return nn.ModuleList(KINDS[names[s.index % len(names)]].layer(s) for s in specs)

    def num_params(self, dim: int) -> int:
        """Return the number of parameters of the base, and the size of the context."""
        return self.base.num_params(dim) + self.context

    def initial_params(
        self, loc: Float[Tensor, " *batch dim"], scale: Float[Tensor, " *rest"]
    ) -> Float[Tensor, " *batch params"]:
        """Return the base's initial π, and a context that is the same for all elements.

        Args:
            loc: Centre, shape ``(*batch, dim)``.
            scale: Standard deviations, shape ``(*batch, dim)``, or what else the base takes.
        """
        base = self.base.initial_params(loc, scale)
        return torch.cat([base, initial_context(self.context, loc)], dim=-1)

    def distribution(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> Distribution:
        """Return the distribution of z.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: What ``network(dim)`` returned.

        Raises:
            ValueError: If there is no network.
        """
        return FlowDistribution(self.transform(params, dim, network))

    def transform(
        self, params: Float[Tensor, " *batch params"], dim: int, network: nn.Module | None = None
    ) -> FlowTransform:
        """Return ε ↦ z.

        Args:
            params: π, shape ``(*batch, num_params(dim))``.
            dim: Dimension D of z.
            network: What ``network(dim)`` returned.

        Raises:
            ValueError: If there is no network.
        """
        if not isinstance(network, nn.ModuleList):
            raise ValueError(
                f"Flow: expected the networks that all π share; got {network}. Write: "
                "family.distribution(params, dim, family.network(dim))."
            )
        base = self.base.num_params(dim)
        context = params[..., base:] if self.context else None
        affine = self._affine(params[..., :base], dim)
        return FlowTransform([layer(context) for layer in network], affine)

    def _affine(self, params: Tensor, dim: int) -> Affine:
        affine = None if isinstance(self.base, Flow) else self.base.transform(params, dim)
        if not isinstance(affine, Affine):
            raise ValueError(
                "Flow: expected a base that is an affine map of normal noise of the same "
                f"dimension; got {self.base}. Write: base=px.Diagonal(), or "
                "base=px.FullCovariance()."
            )
        return affine

    def _papers_in_use(self) -> Iterable[str]:
        return (
            *(paper for name in self._names for paper in KINDS[name].papers),
            *self.base.references,
        )
