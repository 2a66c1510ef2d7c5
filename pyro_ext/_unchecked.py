"""Distributions that look at values although validation is off."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["is_unchecked", "unchecked", "without_checks"]

_ACTIVE: ContextVar[bool] = ContextVar("pyro_ext_unchecked", default=False)


@contextmanager
def unchecked() -> Iterator[None]:
    """Within this context, no log density looks at values: a graph cannot."""
    token = _ACTIVE.set(True)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def is_unchecked() -> bool:
    """Tell whether values may not be looked at."""
    return _ACTIVE.get()


def without_checks(fn: Any) -> Any:
    """Return a distribution that does not check values within ``unchecked``.

    One that ``expand`` made while validation was on, such as the prior of a ``PyroSample``, does
    so for good.

    Args:
        fn: A distribution.
    """
    return _copied(fn) if _ACTIVE.get() else fn


def _copied(fn: Any) -> Any:
    base = vars(fn).get("base_dist")
    inner = base if base is None else _copied(base)
    if inner is base and not vars(fn).get("_validate_args"):
        return fn
    new = copy.copy(fn)
    new._validate_args = False
    if inner is not base:
        new.base_dist = inner
    return new
