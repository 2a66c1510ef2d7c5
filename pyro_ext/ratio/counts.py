"""Numbers of steps and of samples: whole, and large enough."""

from operator import index

__all__ = ["check_counts"]


def check_counts(owner: str, *, least: int, **counts: object) -> None:
    """Raise if a number is not whole, or too small.

    Args:
        owner: Whose options they are, for the message.
        least: The smallest number allowed.
        **counts: The numbers by name.

    Raises:
        ValueError: If so.
    """
    for name, count in counts.items():
        try:
            enough = not isinstance(count, bool) and index(count) >= least  # type: ignore[arg-type]
        except TypeError:
            enough = False
        if not enough:
            raise ValueError(
                f"{owner}: expected {name} to be a whole number >= {least}; got {count!r}. "
                f"Write: {name}={max(least, 100)}."
            )
