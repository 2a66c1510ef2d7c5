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
        known = {id(buffer) for buffer in self._moving}
        copies = [buffer.clone() for buffer in buffers]
        yield
        pairs = list(zip(buffers, copies, strict=True))
        # Batch norm does not count the versions of what it writes.
        pairs = [(b, c) for b, c in pairs if id(b) in known or not torch.equal(b, c)]
        self._moving, self._kept = [b for b, _ in pairs], [c for _, c in pairs]

    def places(self, tensors: Sequence[Tensor]) -> list[int]:
        """Return where they are among tensors.

        Args:
            tensors: The tensors.
        """
        known = {id(buffer) for buffer in self._moving}
        return [place for place, tensor in enumerate(tensors) if id(tensor) in known]

    def keep(self) -> None:
        """Keep what they are, before a step."""
        self._kept = [buffer.clone() for buffer in self._moving]

    def restore(self) -> None:
        """Let them be what they were before the step."""
        with torch.no_grad():
            for buffer, kept in zip(self._moving, self._kept, strict=True):
                buffer.copy_(kept)
