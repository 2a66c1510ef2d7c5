"""Whether the steps that are left pay for compiling them."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ALWAYS_PAYS", "CountOperations", "estimated_seconds", "pays"]

ALWAYS_PAYS = 5_000
"""Steps that paid for compiling every workload of ``benchmarks/speed``."""

# Rounded from benchmarks/speed/payoff.py.
_SECONDS, _SECONDS_PER_OPERATION = 5.0, 0.03
_OVERHEAD = 10e-6  # what Python and dispatch cost per operation, all of which is saved
_FUSED = 0.2  # share of the time inside operations that is saved


class CountOperations(TorchDispatchMode):
    """Counts the tensor operations within this context, those of a backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def estimated_seconds(operations: int) -> float:
    """Return about how long recording, compiling and proving a step takes.

    Args:
        operations: Number of operations of an eager step.
    """
    return _SECONDS + _SECONDS_PER_OPERATION * operations


def pays(steps: int, operations: int, eager: float) -> bool:
    """Tell whether steps would be done sooner if they were compiled first.

    Args:
        steps: Number of steps that are left.
        operations: Number of operations of an eager step.
        eager: Its time in seconds.
    """
    overhead = min(eager, _OVERHEAD * operations)
    saved = overhead + _FUSED * (eager - overhead)
    return steps * saved > estimated_seconds(operations)
