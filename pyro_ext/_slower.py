"""What is said of a model that takes one draw at a time."""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from pyro_ext._layers import instead_of_layer

__all__ = ["tell_slower"]

_TOLD: "WeakSet[Any]" = WeakSet()


def tell_slower(model: Callable[..., Any], error: Exception) -> None:
    """Warn that a model takes one draw at a time, once for each model.

    Args:
        model: The model.
        error: What was raised when all were run at once.
    """
    owner: Any = getattr(model, "__self__", model)
    try:
        if owner in _TOLD:
            return
        _TOLD.add(owner)
    except TypeError:
        pass  # it cannot be remembered
    name = getattr(model, "__name__", type(model).__name__)
    instead = instead_of_layer(error) or "(x * w).sum(-1) for x @ w, and the like"
    warnings.warn(
        f"The model '{name}' takes one draw at a time. Many are run by torch.func.vmap, or one by "
        f"one, which is slower. For many at once, write {instead}: docs/howto/particles.md.",
        UserWarning,
        stacklevel=1,  # said once, wherever it comes from
    )
