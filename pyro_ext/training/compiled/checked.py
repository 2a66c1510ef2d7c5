"""Optimizers and schedules that a training loop can step, with nothing but gradients."""

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["checked_optimizer", "checked_schedule"]


def checked_optimizer(made: Any, owner: str) -> Optimizer:
    """Return what a user's function made of parameters, if it can be used.

    Args:
        made: What the function returned.
        owner: Who asks, for the message.

    Raises:
        TypeError: If it is no optimizer of torch, or one that evaluates the loss by itself.
    """
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"{owner}: expected optim to return a torch optimizer; got {type(made).__name__}. "
            "Write: optim=partial(torch.optim.Adam, lr=0.01)."
        )
    if needed := _needed(made.step):
        raise TypeError(
            f"{owner}: expected an optimizer that steps by the gradient alone; got "
            f"{type(made).__name__}, whose step needs a {needed}. Write: "
            "optim=partial(torch.optim.Adam, lr=0.01)."
        )
    return made


def checked_schedule(made: Any) -> LRScheduler:
    """Return what a user's function made of an optimizer, if ``fit`` can step it.

    Args:
        made: What the function returned.

    Raises:
        TypeError: If it is no schedule of torch, or one that follows a metric.
    """
    if not isinstance(made, LRScheduler):
        raise TypeError(
            "fit: expected schedule to return a torch learning-rate scheduler; got "
            f"{type(made).__name__}. Write: schedule=partial(CosineAnnealingLR, T_max=num_steps)."
        )
    if needed := _needed(made.step):
        raise TypeError(
            "fit: expected a schedule that goes by the number of steps; got "
            f"{type(made).__name__}, whose step needs {needed}. Write: "
            "schedule=partial(CosineAnnealingLR, T_max=num_steps), or plateau=px.Plateau() to "
            "stop where the loss does not fall."
        )
    return made


def _needed(step: Callable[..., Any]) -> str | None:
    """Return the name of an argument that a method cannot do without, or None."""
    for name, parameter in inspect.signature(step).parameters.items():
        free = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not free:
            return name
    return None
