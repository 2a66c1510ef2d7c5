"""Random numbers of one pass, kept for another pass over the same operations."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Noise"]


class Noise(TorchDispatchMode):
    """Context that keeps all random numbers that are drawn in it, and then draws them again.

    What is kept is what torch's operations drew, not the state of a generator: it holds on every
    device, and in a graph that is recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn: list[Any] = []
        self._next: int | None = None

    def again(self) -> "Noise":
        """Return this context, ready to draw the same numbers from the first on."""
        self._next = 0
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep or repeat what a random operation draws; let others pass."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        in_place = func._schema.is_mutable
        if self._next is None:
            drawn = func(*args, **kwargs)
            self._drawn.append((func, drawn.clone() if in_place else drawn))
            return drawn
        if self._next == len(self._drawn) or self._drawn[self._next][0] is not func:
            raise RuntimeError(
                "in_chunks: expected model and guide to draw the same random numbers when they "
                f"run a second time on the same arguments; got others, by {func}. Write: "
                "torch.rand or pyro.sample for what Python's or NumPy's random numbers decide."
            )
        kept = self._drawn[self._next][1]
        self._next += 1
        if in_place:
            target: Tensor = args[0]
            return target.copy_(kept)
        return kept
