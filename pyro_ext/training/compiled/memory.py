"""Memory that a step allocates and frees, which the C library would hand back at every step."""

from functools import cache

import torch

__all__ = ["keep_freed_memory"]

_LARGEST = 2**25  # bytes; the C library learns from no block beyond
_ROOM = 2**13  # for what it adds to a block


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB of the memory that it frees, for the next allocation.

    As long as no large tensor was freed, glibc gives memory at the end of its heap back to the
    system, and a step that allocates it anew waits for each page of it: half of the time of a
    step with 0.4 MB of intermediates. glibc learns otherwise from one freed block, which need not
    be written to.
    """
    torch.empty(_LARGEST - _ROOM, dtype=torch.uint8, device="cpu")
