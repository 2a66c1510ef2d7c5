"""A request to guides: draw each latent by itself, where the family allows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["asked_sitewise", "sitewise"]

_ASKED: ContextVar[bool] = ContextVar("pyro_ext_sitewise", default=False)


@contextmanager
def sitewise(*, asked: bool) -> Iterator[None]:
    """Within this context, a guide with independent sites draws each by itself.

    It then samples a site from its marginal, a distribution whose KL divergence may be known,
    instead of one vector for all sites and a Delta for each.

    Args:
        asked: Whether that is asked for.
    """
    token = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(token)


def asked_sitewise() -> bool:
    """Tell whether sites are to be drawn one by one."""
    return _ASKED.get()
