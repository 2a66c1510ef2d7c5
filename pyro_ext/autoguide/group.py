"""Latents that a guide draws together."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    IndependentTransform,
    Transform,
    register_kl,
)

from pyro_ext.autoguide.packing import Latent, Packing
from pyro_ext.families import Family

__all__ = ["Group", "Image", "draw_apart"]


class Image(dist.Delta):
    """A Delta at a function of a draw: its log density belongs to q as that of the draw does."""


@register_kl(Image, dist.Distribution)  # type: ignore[untyped-decorator]
def _kl_of_image(image: Image, prior: Distribution) -> Tensor:
    """Return log q - log p at the draw; the rule for Deltas leaves out the log density of q."""
    return image.log_density - prior.log_prob(image.v)


@dataclass(frozen=True)
class Group:
    """Latents that are drawn together as one unconstrained vector.

    Args:
        name: ``"global"`` or ``"local"``.
        family: Family of the vector.
        packing: Layout of the sites in the vector.
    """

    name: str
    family: Family
    packing: Packing

    @property
    def num_params(self) -> int:
        """Size of one π."""
        return self.family.num_params(self.packing.dim)

    def posterior(self, params: Tensor, network: nn.Module | None = None) -> Distribution:
        """Return q(z; π)."""
        return self.family.distribution(params, self.packing.dim, network)

    def marginals(self, posterior: Distribution) -> dict[str, Distribution] | None:
        """Return the distribution of each constrained site, or None if the sites are dependent.

        Args:
            posterior: q(z; π).
        """
        normals = self.family.coordinates(posterior)
        if normals is None:
            return None
        loc, scale = (self.packing.arrange(part) for part in normals)
        return {
            site.name: _marginal(site, loc[site.name], scale[site.name])
            for site in self.packing.sites
        }


def _marginal(site: Latent, loc: Tensor, scale: Tensor) -> Distribution:
    parts, event_dim = _parts(site.transform), len(site.event_shape)
    if not parts:
        return dist.Normal(loc, scale).to_event(event_dim)
    base = dist.Normal(loc, scale).to_event(ComposeTransform(parts).domain.event_dim)
    # A draw is scored by the cached inverse, not by one that rounds.
    marginal = dist.TransformedDistribution(base, [part.with_cache() for part in parts])
    return marginal.to_event(event_dim - len(marginal.event_shape))


def _parts(transform: Transform) -> list[Transform]:
    """Return the steps of a bijection that do something, as a prior such as LogNormal has them."""
    if isinstance(transform, IndependentTransform):
        return _parts(transform.base_transform)
    if isinstance(transform, ComposeTransform):
        return [step for part in transform.parts for step in _parts(part)]
    if isinstance(transform, AffineTransform):
        known = not isinstance(transform.loc, Tensor) and not isinstance(transform.scale, Tensor)
        return [] if known and (transform.loc, transform.scale) == (0, 1) else [transform]
    return [transform]


def draw_apart(
    group: Group, marginals: dict[str, Any], plates: dict[str, pyro.plate]
) -> dict[str, Tensor]:
    """Draw each site of a group from its marginal, which depends on no other latent.

    Args:
        group: The group.
        marginals: What ``Group.marginals`` returns.
        plates: The guide's plates.
    """
    drawn: dict[str, Tensor] = {}
    infer: Any = {"independent": True}
    for site in group.packing.sites:
        with ExitStack() as stack:
            for frame in site.frames:
                stack.enter_context(plates[frame.name])
            drawn[site.name] = pyro.sample(site.name, marginals[site.name], infer=infer)
    return drawn
