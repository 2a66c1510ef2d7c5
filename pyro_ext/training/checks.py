"""What ``fit`` is given: numbers, a loss, an optimizer, a schedule, and functions to call."""

from collections.abc import Iterable, Mapping
from typing import Any

from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.callbacks import Callback

__all__ = ["check_functions", "check_kind", "check_loss", "checked_callbacks"]


def check_kind(given: Any, kinds: tuple[type, ...], expected: str, write: str) -> None:
    """Raise unless an option is None or of one of some classes.

    Args:
        given: The option.
        kinds: The classes.
        expected: Its name, and what it is to be.
        write: The line to write instead.

    Raises:
        TypeError: If it is something else.
    """
    if given is not None and not isinstance(given, kinds):
        raise TypeError(f"fit: expected {expected}; got {type(given).__name__}. Write: {write}.")


def checked_callbacks(given: Any) -> tuple[Callback, ...]:
    """Return callbacks, if they are functions in a sequence.

    Args:
        given: The callbacks.

    Raises:
        TypeError: If they are not.
    """
    callbacks = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(map(callable, callbacks)):
        raise TypeError(
            f"fit: expected callbacks to be a list of functions; got {given!r}. Write: "
            "callbacks=[f]."
        )
    return callbacks


def check_loss(loss: Any) -> None:
    """Raise unless ``fit`` can minimize a loss.

    Args:
        loss: The loss, or None.

    Raises:
        TypeError: If it is none of this package, such as one of Pyro's.
    """
    if loss is not None and not isinstance(loss, BoundLoss):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise TypeError(
            f"fit: expected a loss of pyro_ext; got {name}. Write: loss=px.ELBO(), a subclass of "
            "px.BoundLoss, or pyro.infer.SVI(model, guide, optim, loss) for a loss of Pyro's."
        )


def check_functions(optim: Any, schedule: Any) -> None:
    """Raise unless optimizer and schedule are functions that make them.

    Args:
        optim: From parameters to a torch optimizer, or one for each side, ``"auto"`` or None.
        schedule: From an optimizer to a scheduler, or None.

    Raises:
        TypeError: If they are not.
    """
    sides = isinstance(optim, Mapping)
    for made_by in optim.values() if sides else (optim,):
        if not sides and (made_by is None or made_by == "auto"):
            continue
        if not callable(made_by):
            raise TypeError(
                "fit: expected optim to be a function from a list of parameters to a torch "
                f"optimizer, or one of pyro.optim; got {type(made_by).__name__}. Write: "
                "optim=partial(torch.optim.Adam, lr=0.01)."
            )
    if schedule is not None and not callable(schedule):
        raise TypeError(
            "fit: expected schedule to be a function from an optimizer to a torch learning-rate "
            f"scheduler; got {type(schedule).__name__}. Write: "
            "schedule=partial(CosineAnnealingLR, T_max=num_steps)."
        )
