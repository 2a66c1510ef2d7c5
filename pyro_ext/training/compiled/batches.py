"""The batches of a loader, without end."""

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["forever"]


def forever(batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments in each batch, and begin anew at the end.

    Args:
        batches: Tensors, or tuples or lists of arguments.

    Raises:
        ValueError: If there are none.
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if empty:
            raise ValueError(
                "CompiledSVI.run: expected batches; got none, as an iterator is used up after "
                "one pass. Write: batches=loader, not iter(loader)."
            )
