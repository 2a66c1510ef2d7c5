"""Whether progress bars are shown."""

import sys

__all__ = ["hidden"]


def hidden(*, wanted: bool = True) -> bool | None:
    """Return what tqdm is told of ``disable``: None lets it look for a terminal.

    Args:
        wanted: Whether a bar is asked for; there is none where standard error is closed.
    """
    stream = sys.stderr
    closed = stream is None or getattr(stream, "closed", False)
    return True if closed or not wanted else None
