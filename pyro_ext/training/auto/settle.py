"""What was found, as the guide that a user gets."""

from typing import Any

import torch

from pyro_ext.autoguide import AutoJoint
from pyro_ext.families import Family, Flow, LowRank
from pyro_ext.families.family import inverse_positive
from pyro_ext.training.auto.affine import Affine, Map
from pyro_ext.training.auto.bent import Bent
from pyro_ext.training.auto.density import Density

__all__ = ["settled"]


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
