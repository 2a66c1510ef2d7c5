"""All latents in one vector with one shared π."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_median
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyro_ext.autoguide.guide import Group, PackedGuide
from pyro_ext.autoguide.packing import Latent, Packing
from pyro_ext.autoguide.plates import Batch
from pyro_ext.families import Diagonal, Family
from pyro_ext.families.family import check_family
from pyro_ext.structure import is_subsampled

__all__ = ["AutoJoint"]


class AutoJoint(PackedGuide, AutoContinuous):  # type: ignore[metaclass]
    r"""Guide with all latents of the model in one vector, q(z; π) with one shared π.

    .. math:: \theta = T(z), \qquad z \sim q(z; \pi)

    where T maps each site to its support. What a model with few latents wants. It is an
    ``AutoContinuous`` too: with a family that is a bijection of normal noise, a fitted guide goes
    into ``pyro.infer.reparam.NeuTraReparam``, for NUTS in the warped space.

    Args:
        model: A Pyro model.
        family: Family of the joint vector.
        init_loc_fn: Where to start: a per-site initializer of ``pyro.infer.autoguide``.
        init_scale: Standard deviation to start from, in unconstrained units.
        create_plates: Function of the model's arguments that returns the plates to use.

    Raises:
        ValueError: If a latent is inside a subsampled plate (then ``AutoPerDatapoint`` or
            ``AutoAmortized`` is the guide to use), is discrete, or is in a sequential plate.

    References:
        Automatic Differentiation Variational Inference (Kucukelbir et al., 2017) |
        https://arxiv.org/abs/1603.00788

    Example:
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> guide = AutoJoint(model)
        >>> guide.setup(torch.zeros(3))
        >>> guide.sample_posterior(4, torch.zeros(3))["mu"].shape
        torch.Size([4])
    """

    papers: ClassVar[tuple[str, ...]] = ("kucukelbir2017automatic",)

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        family: Family | None = None,
        init_loc_fn: Callable[[Any], Tensor] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            model, init_loc_fn=init_loc_fn, init_scale=init_scale, create_plates=create_plates
        )
        self.family = Diagonal() if family is None else family
        check_family("AutoJoint", "family", self.family)
        self.plate: str | None = None

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        with poutine.block():
            self._create_plates(*args, **kwargs)  # NeuTraReparam looks at them

    def _latent(self, name: str, site: Any) -> Latent:
        for frame in site["cond_indep_stack"]:
            if is_subsampled(frame):
                raise ValueError(
                    f"AutoJoint: expected latents outside subsampled plates; got site '{name}' in "
                    f"plate '{frame.name}', which shows {frame.size} of {frame.full_size} "
                    f"elements. Write: px.AutoPerDatapoint(model, plate='{frame.name}'), or "
                    f"px.AutoAmortized(model, encoder, plate='{frame.name}')."
                )
        return super()._latent(name, site)

    def _group(self, latents: tuple[Latent, ...]) -> tuple[Group, ...]:
        return (Group("global", self.family, Packing(latents, None)),)

    def _create_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        self.params = nn.Parameter(initial[0])

    def _batch(self, args: Any, kwargs: Any, *, draw: bool) -> Batch | None:
        return None

    def _params(self, group: Group, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        params: Tensor = self.params
        return params

    # ------------------------------------------------------------------ AutoContinuous

    @property
    def latent_dim(self) -> int:
        """Dimension D of z."""
        return self._joint.packing.dim

    def get_posterior(self, *args: Any, **kwargs: Any) -> Distribution:
        """Return q(z; π), over the unconstrained vector of all latents.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.
        """
        self.setup(*args, **kwargs)
        return self._posterior(self._joint, self.params)

    def get_base_dist(self) -> Distribution:
        """Return the distribution of the noise that ``get_transform`` makes z of, N(0, I)."""
        zeros = self.params.new_zeros(self.latent_dim)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """Return the bijection ε ↦ z.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Raises:
            ValueError: If the family is not a bijection of D normal variables.
        """
        self.setup(*args, **kwargs)
        group = self._joint
        network = getattr(self, f"{group.name}_network", None)
        transform = self.family.transform(self.params, self.latent_dim, network)
        if transform is None:
            raise ValueError(
                f"AutoJoint: expected a family that maps {self.latent_dim} normal variables to z "
                f"one to one; got {self.family}, which draws z in another way. Write: "
                "px.AutoJoint(model, family=px.FullCovariance())."
            )
        return transform

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Sample z as ``forward`` does.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.
        """
        posterior: Any = self.get_posterior(*args, **kwargs)
        name = self._auxiliary_name(self._joint)
        return pyro.sample(name, posterior, infer={"is_auxiliary": True})

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[Any, Tensor]]:
        prototype: Any = self.prototype_trace
        for name, value in self._joint.packing.arrange(latent).items():
            yield prototype.nodes[name], value

    @property
    def _joint(self) -> Group:
        (group,) = self.groups
        return group

    def _papers_in_use(self) -> Iterable[str]:
        return self.family.references
