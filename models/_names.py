"""Names that keep the parameters of two models in one process apart.

Pyro's parameter store is global and keyed by name: two modules of one name would share parameters.
"""

from itertools import count

__all__ = ["unique_name"]

_COUNT = count()


def unique_name(prefix: str) -> str:
    """Return a name that no other model of this process has."""
    return f"{prefix}_{next(_COUNT)}"
