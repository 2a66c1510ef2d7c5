"""Values that effect handlers around a guide give to its sites: condition and replay."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyro_ext.autoguide.group import Group

__all__ = ["fixed_values"]

# The handlers that say whether a site is given. Others, such as an initializer, may draw.
_GIVERS = (ConditionMessenger, ReplayMessenger, UnconditionMessenger, BlockMessenger)


def fixed_values(group: Group, auxiliary: str, *, owner: str) -> dict[str, Tensor] | None:
    """Return the values that handlers give to all sites of a group, or None if none is given.

    A guide draws a group's vector first, and its sites follow from it. Where ``poutine.condition``
    or ``poutine.replay`` gives the sites, the vector follows from them. A handler that gives the
    vector itself, such as a replay of the guide's own trace, leaves nothing to do here.

    Args:
        group: The group.
        auxiliary: Name of the site of the group's vector.
        owner: Class name of the guide, for messages.

    Raises:
        ValueError: If some sites of the group are given and others are not.
    """
    giving = (ConditionMessenger, ReplayMessenger)
    if not any(isinstance(handler, giving) for handler in _PYRO_STACK):
        return None
    if _fixed(auxiliary, {"is_auxiliary": True}) is not None:
        return None
    sites = [site.name for site in group.packing.sites]
    values = {name: value for name in sites if (value := _fixed(name, {})) is not None}
    missing = [name for name in sites if name not in values]
    if values and missing:
        raise ValueError(
            f"{owner}: expected values for all of the sites {sites}, which are drawn together, or "
            f"for none; got {list(values)}, missing {missing}. Write: poutine.condition(guide, "
            f"data={{'{missing[0]}': value, ...}}) with all of them, or condition the model."
        )
    return values or None


def _fixed(name: str, infer: dict[str, Any]) -> Tensor | None:
    """Ask the handlers around the guide, innermost first, for the value of a site."""
    message: Any = {
        "type": "sample",
        "name": name,
        "fn": dist.Delta(torch.zeros((), device="cpu")),
        "is_observed": False,
        "args": (),
        "kwargs": {},
        "value": None,
        "infer": infer,
        "scale": 1.0,
        "mask": None,
        "cond_indep_stack": (),
        "done": False,
        "stop": False,
        "continuation": None,
    }
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, _GIVERS):
            handler._process_message(message)
        if message["stop"]:
            break
    value: Tensor | None = message["value"]
    return value
