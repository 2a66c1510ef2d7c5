"""What happens when a loss or gradient is not finite: the step is left out, and it is said."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Guard", "all_finite"]

_EVERY = 100
_WAYS = ("raise", "skip")


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all entries of all tensors are finite, with one wait for the device.

    Args:
        tensors: At least one tensor.
    """
    device = tensors[0].device
    total = sum(tensor.sum().to(device) for tensor in tensors)
    # A sum is cheap, and not finite if an entry is not; the reverse is looked at.
    return math.isfinite(total) or all(bool(torch.isfinite(t).all()) for t in tensors)


class Guard:
    """Counts the steps that were left out, and reads the graph's counter now and then.

    Args:
        way: ``"raise"`` or ``"skip"``.
    """

    def __init__(self, way: str) -> None:
        if way not in _WAYS:
            raise ValueError(
                f"CompiledSVI: expected nonfinite to be one of {list(_WAYS)}; got {way!r}. "
                "Write: nonfinite='raise'."
            )
        self._way = way
        self.steps = 0
        self._counter: Tensor | None = None
        self._outside = 0
        self._told = 0
        self._read = 0

    def counter(self, device: torch.device) -> Tensor:
        """Return the counter that graphs add to.

        Args:
            device: Where the parameters are.
        """
        if self._counter is None:
            self._counter = torch.zeros((), dtype=torch.int64, device=device)
        return self._counter

    @property
    def skipped(self) -> int:
        """Number of steps that were left out."""
        return self._outside + (0 if self._counter is None else int(self._counter))

    def count(self, steps: int, *, skipped: int = 0, now: bool = False) -> None:
        """Count steps, and raise if some were left out.

        Args:
            steps: Number of steps taken.
            skipped: How many of them an eager step left out.
            now: Whether to read the graph's counter at once.

        Raises:
            ValueError: If steps were left out and ``way`` is ``"raise"``.
        """
        self.steps += steps
        self._outside += skipped
        if not (now or skipped or self.steps - self._read >= _EVERY):
            return
        self._read = self.steps
        total = self.skipped
        if total > self._told:
            new, self._told = total - self._told, total
            if self._way == "raise":
                raise ValueError(
                    f"CompiledSVI: expected a finite loss and gradient; got others in {new} of "
                    f"the steps up to number {self.steps}, which were not applied: the parameters "
                    "are those of the last good step. Write: a lower learning rate, "
                    "CompiledSVI(..., clip_norm=10.0), or nonfinite='skip' to leave such steps "
                    "out and go on."
                )
