"""Supports that move after an automatic guide has looked at them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_ext.structure import sample_sites

__all__ = ["bounds", "check_supports"]


def check_supports(guide: Callable[..., Any], model_trace: Trace) -> None:
    """Raise if a latent's support is not the one that an automatic guide maps its draws to.

    The bounds are compared by value, so this is for steps that are validated.

    Args:
        guide: A guide that has been called.
        model_trace: Trace of the model in this call.

    Raises:
        ValueError: If the bounds of a support depend on the arguments, a parameter or another
            latent, and are others now.
    """
    guide = poutine.unwrap(guide)
    for part in guide.modules() if isinstance(guide, AutoGuide) else ():
        if isinstance(part, AutoGuide) and part.prototype_trace is not None:
            _check_part(part, part.prototype_trace.nodes, model_trace)


def _check_part(guide: AutoGuide, prototype: dict[str, Any], model_trace: Trace) -> None:
    for name, site in sample_sites(model_trace):
        known = prototype.get(name, {}).get("fn")
        if known is None:
            continue
        before, now = list(bounds(known.support)), list(bounds(site["fn"].support))
        if len(before) != len(now) or not all(map(_same, before, now)):
            raise ValueError(
                f"{type(guide).__name__}: expected site '{name}' to keep the support that it had "
                "when the guide was set up; got other bounds, by other arguments, another "
                "parameter or another draw of a latent. Write: a latent u in the unit interval "
                f"and pyro.deterministic('{name}', low + (high - low) * u), or a positive u and "
                "low + u."
            )


def bounds(value: Any) -> Iterator[Tensor | float]:
    """Yield the numbers that a support is made of.

    Args:
        value: A support, or a part of one.
    """
    if isinstance(value, Constraint):
        for inner in vars(value).values():
            yield from bounds(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from bounds(inner)
    elif isinstance(value, Tensor | float | int):
        yield value


def _same(before: Tensor | float, now: Tensor | float) -> bool:
    if not isinstance(before, Tensor) or not isinstance(now, Tensor):
        return bool(before == now)
    try:
        return torch.allclose(now, before.to(now))
    except RuntimeError:
        return False  # their shapes do not fit
