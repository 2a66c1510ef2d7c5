"""All latents in one vector with one shared π."""

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import init_to_median
from torch import Tensor, nn

from pyro_ext.autoguide.guide import Group, PackedGuide
from pyro_ext.autoguide.packing import Latent, Packing
from pyro_ext.autoguide.plates import Batch
from pyro_ext.families import Diagonal, Family

__all__ = ["AutoJoint"]


class AutoJoint(PackedGuide):
    r"""Guide with all latents of the model in one vector, q(z; π) with one shared π.

    .. math:: \theta = T(z), \qquad z \sim q(z; \pi)

    where T maps each site to its support. What a model with few latents wants.

    Args:
        model: A Pyro model.
        family: Family of the joint vector.
        init_loc_fn: Where to start: a per-site initializer of ``pyro.infer.autoguide``.
        init_scale: Standard deviation to start from, in unconstrained units.
        create_plates: Function of the model's arguments that returns the plates to use.

    Raises:
        ValueError: If a latent is inside a subsampled plate (then ``AutoPerDatapoint`` or
            ``AutoAmortized`` is the guide to use), is discrete, or is in a sequential plate.

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
        self.plate: str | None = None

    def _latent(self, name: str, site: Any) -> Latent:
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.size < frame.full_size:
                raise ValueError(
                    f"AutoJoint: expected latents outside subsampled plates; site '{name}' is in "
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
