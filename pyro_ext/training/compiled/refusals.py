"""Which calls run eagerly, and the one sentence that says why."""

import warnings
from typing import Any

from pyro_ext.training.compiled.watch import Watch

__all__ = ["Refusals"]

_MOST_CHANGES = 5


class Refusals:
    """Signatures of calls that get no graph."""

    def __init__(self) -> None:
        self._refused: set[Any] = set()
        self._changes: dict[Any, int] = {}
        self._told: set[str] = set()

    def __contains__(self, key: Any) -> bool:
        return key in self._refused

    def refuse(self, key: Any, why: str) -> None:
        """Run calls of a signature eagerly from now on.

        Args:
            key: The signature.
            why: Why, and what to write instead.
        """
        self._refused.add(key)
        self.tell(why)

    def changed(self, key: Any, watch: Watch) -> None:
        """Count a change of what a graph depends on; too many, and there will be no other.

        Args:
            key: The signature.
            watch: What found the change.
        """
        self._changes[key] = self._changes.get(key, 0) + 1
        if self._changes[key] > _MOST_CHANGES:
            self.refuse(
                key,
                f"{watch.changed()} again and again. Pass what changes as an argument, or change "
                "it in place",
            )

    def tell(self, why: str) -> None:
        """Warn, once for each reason.

        Args:
            why: Why, and what to write instead.
        """
        if why not in self._told:
            self._told.add(why)
            warnings.warn(f"CompiledSVI runs eagerly, because {why}.", UserWarning, stacklevel=5)
