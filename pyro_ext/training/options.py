"""What optimizers and schedulers were made with, by name, for checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_ext.training.files import plain

__all__ = ["asked_of"]

_PLAIN = (bool, int, float, str, type(None))
_COUNTED = ("last_epoch", "base_lrs")


def asked_of(optimizers: Sequence[Optimizer], schedulers: Sequence[LRScheduler]) -> dict[str, Any]:
    """Return classes and options by name, before any step.

    Args:
        optimizers: The optimizers.
        schedulers: Their schedulers.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    found: dict[str, Any] = {
        "optimizer": " and ".join(type(optimizer).__name__ for optimizer in optimizers),
        "schedule": " and ".join(type(scheduler).__name__ for scheduler in schedulers),
        "number of parameter groups": len(groups),
    }
    for number, group in enumerate(groups):
        where = f" of parameter group {number}" if len(groups) > 1 else ""
        found |= {f"{name}{where}": value for name, value in _plain(group)}
    for scheduler in schedulers:
        options = scheduler.state_dict()
        found |= {name: value for name, value in _plain(options) if name not in _COUNTED}
    return found


def _plain(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the public options that are numbers, texts, or sequences or counters of such."""
    for name, value in plain(dict(options)).items():
        if isinstance(value, Tensor):
            value = tuple(value.flatten().tolist()) if value.dim() else value.item()
        if isinstance(value, Mapping):
            value = tuple(part for pair in value.items() for part in pair)
        parts = value if isinstance(value, (tuple, list)) else (value,)
        if (
            not name.startswith("_")
            and name != "params"
            and all(isinstance(p, _PLAIN) for p in parts)
        ):
            yield name, tuple(parts) if parts is value else value
