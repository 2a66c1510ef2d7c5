"""One π per step: a guide that is run again on the same data reuses what its encoder said."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

__all__ = ["computed_once", "remember_params"]

_MEMO: ContextVar[dict[object, Tensor] | None] = ContextVar("pyro_ext_params", default=None)


@contextmanager
def remember_params() -> Iterator[None]:
    """Within this context, ``computed_once`` computes once per key and then returns it detached.

    The frozen replay of a guide (``stl``, ``dreg``) must see the very π that the draws came from,
    also where the encoder has dropout, and must not pay for the encoder twice.
    """
    token = _MEMO.set({})
    try:
        yield
    finally:
        _MEMO.reset(token)


def computed_once(key: object, compute: Callable[[], Tensor]) -> Tensor:
    """Return ``compute()``, or, on a frozen replay, what it returned before, detached."""
    memo = _MEMO.get()
    if memo is None:
        return compute()
    if key in memo:
        return memo[key].detach()
    memo[key] = compute()
    return memo[key]
