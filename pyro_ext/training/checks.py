"""What ``fit`` is given for a loss, an optimizer and a schedule."""

from collections.abc import Mapping
from typing import Any

from pyro.optim import PyroOptim

from pyro_ext.losses.loss import BoundLoss

__all__ = ["check_functions", "check_loss"]


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
    for made_by in optim.values() if isinstance(optim, Mapping) else (optim,):
        # One of Pyro's can be called, too: it takes a step.
        if isinstance(made_by, PyroOptim) or not (made_by in (None, "auto") or callable(made_by)):
            pyros = isinstance(made_by, PyroOptim)
            got = "one of pyro.optim" if pyros else type(made_by).__name__
            raise TypeError(
                "fit: expected optim to be a function from a list of parameters to a torch "
                f"optimizer; got {got}. Write: optim=partial(torch.optim.Adam, lr=0.01)."
            )
    if schedule is not None and not callable(schedule):
        raise TypeError(
            "fit: expected schedule to be a function from an optimizer to a torch learning-rate "
            f"scheduler; got {type(schedule).__name__}. Write: "
            "schedule=partial(CosineAnnealingLR, T_max=num_steps)."
        )
