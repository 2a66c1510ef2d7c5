"""Fewer particles in memory at once, where there is not the memory for all."""

import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import torch

from pyro_ext._errors import out_of_memory
from pyro_ext._whole import whole
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.randomness import get_random, set_random

__all__ = ["Chunks"]

Result = TypeVar("Result")


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
        given = None if chunk in (None, "auto") else chunk
        self.size = given if given is None else whole(given, "chunk", write="chunk=50")
        self._made: tuple[int | None, BoundLoss] = None, loss

    @property
    def loss(self) -> BoundLoss:
        """The loss with particles in chunks of ``size``."""
        if self._made[0] != self.size:
            chunked = self._loss if self.size is None else self._loss.in_chunks(self.size)
            self._made = self.size, chunked
        return self._made[1]

    def adopt(self, size: int | None) -> bool:
        """Go on in the chunks of another run, if they are to be found; return whether they differ.

        Args:
            size: Its number of particles at once, None for all.
        """
        differs = self._auto and size != self.size
        if differs:
            self.size = size
        return differs

    def run(
        self,
        act: Callable[[BoundLoss], Result],
        devices: Sequence[int],
        changed: Callable[[BoundLoss], None] | None = None,
    ) -> Result:
        """Return what a function makes of the loss, in the largest chunks that fit.

        Args:
            act: The function.
            devices: GPUs that are drawn from.
            changed: Called with the loss when its chunks have become smaller.
        """
        while True:
            more = (self._total if self.size is None else self.size) > 1
            watching = self._auto and more and self._loss.chunks
            with _Guard(devices, watching=watching):
                return act(self.loss)
            self.size = (self._total if self.size is None else self.size) // 2
            warnings.warn(
                f"fit: there is not enough memory for all {self._total} particles; the steps go "
                f"on with {self.size} at once, to the same gradient. Write chunk={self.size} to "
                "begin so.",
                UserWarning,
                stacklevel=2,
            )
            if changed is not None:
                changed(self.loss)


class _Guard:
    """Swallows that memory ran out, and puts the random states back."""

    def __init__(self, devices: Sequence[int], *, watching: bool) -> None:
        self._devices, self._watching = devices, watching

    def __enter__(self) -> None:
        if self._watching:
            self._before = get_random(self._devices)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None or not self._watching or not out_of_memory(error):
            return False
        set_random(self._before, self._devices)
        if self._devices:
            torch.cuda.empty_cache()
        return True
