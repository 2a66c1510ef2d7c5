"""What was found, as the guide that a user gets."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_ext.autoguide import AutoJoint
from pyro_ext.families import Family, Flow, LowRank
from pyro_ext.families.family import inverse_positive
from pyro_ext.training.auto.affine import Affine, Map
from pyro_ext.training.auto.bent import Bent
from pyro_ext.training.auto.density import Density

__all__ = ["held", "settled"]

_FINE = 1e4  # machine epsilons in a scale, from which on a floor of one makes no difference


def settled(density: Density, args: tuple[Any, ...], family: Family, q: Map) -> AutoJoint:
    """Return a guide of this family whose posterior is q.

    Args:
        density: The target.
        args: The model's arguments.
        family: The family.
        q: A normal, or a bent one if the family is a flow.
    """
    guide = density.guide(family, args)
    shape, base = family, q
    if isinstance(family, Flow) and isinstance(q, Bent):
        shape, base = family.base, q.base
    if not isinstance(base, Affine):
        raise TypeError(
            f"fit: expected a normal; got {type(base).__name__}. Write: "
            "family=px.FullCovariance()."
        )
    base = held(base, guide.params)
    if isinstance(shape, LowRank) and base.columns is not None:
        parts = [base.loc, inverse_positive(base.factor), base.columns.flatten()]
        params = torch.cat(parts)
    else:
        params = shape.initial_params(base.loc, base.factor)
    with torch.no_grad():
        guide.params.copy_(params.to(guide.params))
        if isinstance(q, Bent):
            network = guide.global_network
            network.load_state_dict(q.layers.state_dict())
    return guide


def held(q: Affine, like: Tensor) -> Affine:
    """Return a normal, in a guide's precision if its scales are near the least one there.

    Args:
        q: The normal.
        like: The guide's parameters.
    """
    least = 2 * torch.finfo(like.dtype).eps
    scale = q.factor if q.factor.dim() == 1 else q.factor.diagonal()
    if bool((scale > _FINE * least).all()):
        return q
    missing = (least - scale).clamp(min=0)
    factor = q.factor + (missing if q.factor.dim() == 1 else missing.diag())
    columns = None if q.columns is None else q.columns.to(like)
    return replace(q, loc=q.loc.to(like), factor=factor.to(like), columns=columns)
