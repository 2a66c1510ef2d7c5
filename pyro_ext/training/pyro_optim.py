"""Pyro's optimizers in a fit, which has one torch optimizer for all parameters."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor

from pyro_ext.training.compiled.optimizer import (
    CLIP_NORM,
    CLIP_VALUE,
    constructor_of,
    option_groups,
)

__all__ = ["as_factories"]


def as_factories(optim: Any) -> Any:
    """Return what makes the torch optimizers that those of Pyro stand for; all else as it is.

    Args:
        optim: An optimizer of Pyro, or one for each side, or anything else.

    Raises:
        TypeError: If it is a scheduler.
    """
    if isinstance(optim, Mapping):
        return {side: as_factories(one) for side, one in optim.items()}
    if isinstance(optim, PyroLRScheduler):
        raise TypeError(
            "fit: expected optim without a schedule; got a scheduler of pyro.optim. Write: "
            "optim=partial(torch.optim.Adam, lr=0.01), schedule=partial(ExponentialLR, "
            "gamma=0.99)."
        )
    return partial(_made, optim) if isinstance(optim, PyroOptim) else optim


def _made(optim: PyroOptim, params: list[Tensor]) -> torch.optim.Optimizer:
    groups = option_groups(optim, params, {})
    for group in groups:
        clips = {name: group.pop(name) for name in (CLIP_NORM, CLIP_VALUE)}
        if any(clip is not None for clip in clips.values()):
            raise ValueError(
                "fit: expected gradients to be clipped together; got an optimizer of pyro.optim "
                "that clips each. Write: px.fit(..., clip_norm=10.0)."
            )
    return constructor_of(optim)(groups)
