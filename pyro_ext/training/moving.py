"""Buffers that steps change, as those of batch norm do, and steps that are left out must not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["MovingBuffers"]


class MovingBuffers:
    """The buffers that a step changes, and what they were before the last one."""

    def __init__(self) -> None:
        self._moving: list[Tensor] = []
        self._kept: list[Tensor] = []

    @contextmanager
    def found(self, buffers: Sequence[Tensor]) -> Iterator[None]:
        """Within this context a step is tried; what it changes is what steps change.

        Args:
            buffers: All buffers.
        """
        copies = [buffer.clone() for buffer in buffers]
        yield
        pairs = zip(buffers, copies, strict=True)
        # Batch norm does not count the versions of what it writes.
        self._moving = [buffer for buffer, copy in pairs if not torch.equal(buffer, copy)]

    def keep(self) -> None:
        """Keep what they are, before a step."""
        self._kept = [buffer.clone() for buffer in self._moving]

    def restore(self) -> None:
        """Let them be what they were before the step."""
        with torch.no_grad():
            for buffer, kept in zip(self._moving, self._kept, strict=True):
                buffer.copy_(kept)
