"""Numbers of steps, draws or sizes, as ints."""

import operator
from contextlib import suppress
from typing import Any

__all__ = ["whole"]


def whole(number: Any, name: str, *, write: str, owner: str = "fit") -> int:
    """Return a number of steps, rows or the like as an int, ``1e4`` and NumPy's, too.

    Args:
        number: What was given.
        name: Name of the option.
        write: The line to write instead.
        owner: Whose option it is.

    Raises:
        TypeError: If it is no whole number.
    """
    if isinstance(number, float) and number.is_integer():
        return int(number)
    if not isinstance(number, bool):
        with suppress(TypeError):
            return operator.index(number)
    raise TypeError(
        f"{owner}: expected {name} to be a whole number; got {number!r}. Write: {write}."
    )
