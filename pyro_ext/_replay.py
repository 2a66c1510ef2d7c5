"""One π per step: a guide that is run again on the same data reuses what its encoder said."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["computed_once", "remember_params"]


@dataclass(frozen=True)
class _Memo:
    """What was computed in this step, and whether a second run gets it detached."""

    stopped: bool
    params: dict[object, Tensor] = field(default_factory=dict)


_MEMO: ContextVar[_Memo | None] = ContextVar("pyro_ext_params", default=None)


@contextmanager
def remember_params(*, stopped: bool) -> Iterator[None]:
    """Within this context, ``computed_once`` computes once per key.

    A replay of a guide must see the very π that the draws came from, also where the encoder has
    dropout, and must not pay for the encoder twice.

    Args:
        stopped: Whether a replay gets π detached (``stl``, ``dreg``).
    """
    token = _MEMO.set(_Memo(stopped))
    try:
        yield
    finally:
        _MEMO.reset(token)


def computed_once(key: object, compute: Callable[[], Tensor]) -> Tensor:
    """Return ``compute()``, or what it returned before in this step."""
    memo = _MEMO.get()
    if memo is None:
        return compute()
    if key in memo.params:
        found = memo.params[key]
        return found.detach() if memo.stopped else found
    memo.params[key] = compute()
    return memo.params[key]
