"""Whether the steps that are left pay for recording them, or for compiling them, too."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "RECORDING_PAYS",
    "CountOperations",
    "cheapest",
    "compiling_seconds",
    "recording_seconds",
]

RECORDING_PAYS = 500
"""Steps that pay for recording them on every workload of ``benchmarks/speed``."""

# Rounded from benchmarks/speed/payoff.py.
_SECONDS, _SECONDS_PER_OPERATION = 5.0, 0.03
_RECORD_SECONDS, _RECORD_SECONDS_PER_OPERATION = 0.1, 0.002
_OVERHEAD = 10e-6  # what Python and dispatch cost per operation, none of which a compiled step has
_RECORDED = 0.3  # share of it that a recorded step has
_FUSED = 0.2  # share of the time inside operations that compiling saves


class CountOperations(TorchDispatchMode):
    """Counts the tensor operations within this context, those of a backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def recording_seconds(operations: int) -> float:
    """Return about how long recording and proving a step takes.

    Args:
        operations: Number of operations of an eager step.
    """
    return _RECORD_SECONDS + _RECORD_SECONDS_PER_OPERATION * operations


def compiling_seconds(operations: int) -> float:
    """Return about how long recording, compiling and proving a step takes.

    Args:
        operations: Number of operations of an eager step.
    """
    return _SECONDS + _SECONDS_PER_OPERATION * operations


def cheapest(steps: int, operations: int, eager: float) -> str | None:
    """Return how steps are done soonest: by ``"inductor"``, by ``"record"``, or None for eagerly.

    Args:
        steps: Number of steps that are left.
        operations: Number of operations of an eager step.
        eager: Its time in seconds.
    """
    overhead = min(eager, _OVERHEAD * operations)
    left = eager - overhead
    seconds = {
        None: steps * eager,
        "record": recording_seconds(operations) + steps * (_RECORDED * overhead + left),
        "inductor": compiling_seconds(operations) + steps * (1 - _FUSED) * left,
    }
    return min(seconds, key=lambda way: seconds[way])
