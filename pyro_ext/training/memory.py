"""Fewer particles in memory at once, where there is not the memory for all."""

from collections.abc import Sequence
from types import TracebackType

import torch

from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.randomness import get_random, set_random

__all__ = ["Chunks"]


class Chunks:
    """A loss, with as many particles at once as there is memory for.

    Args:
        loss: The loss of the user.
        chunk: Number of particles at once, ``"auto"`` to halve it until a step fits, None for all.

    Raises:
        ValueError: If ``chunk`` is none of these.
    """

    def __init__(self, loss: BoundLoss, chunk: int | str | None) -> None:
        if isinstance(chunk, str) and chunk != "auto":
            raise ValueError(
                f"fit: expected chunk to be a number of particles, 'auto' or None; got {chunk!r}. "
                "Write: chunk='auto'."
            )
        self._loss, self._auto = loss, chunk == "auto"
        self._total = loss.particles.inner * loss.particles.outer
        self.size: int | None = chunk if isinstance(chunk, int) else None
        self._made: tuple[int | None, BoundLoss] = None, loss

    @property
    def loss(self) -> BoundLoss:
        """The loss with particles in chunks of ``size``."""
        if self._made[0] != self.size:
            chunked = self._loss if self.size is None else self._loss.in_chunks(self.size)
            self._made = self.size, chunked
        return self._made[1]

    def halve(self) -> str:
        """Halve the number of particles at once, and return a line that says so."""
        self.size = (self._total if self.size is None else self.size) // 2
        return (
            f"fit: there is not enough memory for all {self._total} particles; the steps go on "
            f"with {self.size} at once, to the same gradient. Write chunk={self.size} to begin so."
        )

    def guarded(self, devices: Sequence[int]) -> "_Guard":
        """Return a context that notes an error of memory, where fewer particles might help.

        Args:
            devices: GPUs that are drawn from.
        """
        more = (self._total if self.size is None else self.size) > 1
        return _Guard(devices, watching=self._auto and more and self._loss.chunks)


class _Guard:
    """Notes that memory ran out, and puts the random states back."""

    def __init__(self, devices: Sequence[int], *, watching: bool) -> None:
        self._devices, self._watching = devices, watching
        self.failed = False

    def __enter__(self) -> "_Guard":
        if self._watching:
            self._before = get_random(self._devices)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None or not self._watching or not _out_of_memory(error):
            return False
        self.failed = True
        set_random(self._before, self._devices)
        if self._devices:
            torch.cuda.empty_cache()
        return True


def _out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
