"""Mixed precision is for networks: draws and densities are in single precision or better."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = [
    "active_autocast",
    "as_outside",
    "full_precision",
    "in_full_precision",
    "is_half",
    "widened",
]

_KINDS = ("cpu", "cuda")
_HALVES = (torch.bfloat16, torch.float16)
_OUTSIDE: ContextVar[tuple[tuple[str, torch.dtype], ...]] = ContextVar(
    "pyro_ext_outside", default=()
)
_NOTHING = nullcontext()

Args = ParamSpec("Args")
Result = TypeVar("Result")


def active_autocast() -> tuple[tuple[str, torch.dtype], ...]:
    """Return the kinds of device for which ``torch.autocast`` is on, and its dtype there."""
    return tuple(
        (kind, torch.get_autocast_dtype(kind))
        for kind in _KINDS
        if torch.is_autocast_enabled(kind)
    )


def full_precision() -> AbstractContextManager[None]:
    """Return a context within which ``torch.autocast`` is off."""
    # Asked at every site of every step: nothing is made where there is nothing to do.
    if not any(map(torch.is_autocast_enabled, _KINDS)):
        return _NOTHING
    return _switched_off(active_autocast())


@contextmanager
def _switched_off(active: tuple[tuple[str, torch.dtype], ...]) -> Iterator[None]:
    token = _OUTSIDE.set(active)
    try:
        with ExitStack() as stack:
            for kind, _ in active:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _OUTSIDE.reset(token)


@contextmanager
def as_outside() -> Iterator[None]:
    """Within this context, for a network, ``torch.autocast`` is as the user has set it."""
    with ExitStack() as stack:
        for kind, dtype in _OUTSIDE.get():
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        yield


def in_full_precision(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """Return the function, which runs with ``torch.autocast`` off.

    Args:
        function: The function.
    """

    @wraps(function)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        with full_precision():
            return function(*args, **kwargs)

    return run


def is_half(value: Any) -> bool:
    """Tell whether a value is a tensor in half precision.

    Args:
        value: Anything.
    """
    return isinstance(value, Tensor) and value.dtype in _HALVES


def widened(value: Any) -> Any:
    """Return a tensor in single precision if it is in half precision; anything else as it is.

    Args:
        value: Anything.
    """
    return value.float() if is_half(value) else value
