"""What a user asked of a fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.callbacks import Callback
from pyro_ext.training.checkpoints import Checkpoints
from pyro_ext.training.compiled.optimizer import Factory
from pyro_ext.training.holdout import Holdout, Plateau
from pyro_ext.training.ranks import Ranks

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user asked of a fit, see ``fit``."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: BoundLoss
    args: tuple[Any, ...]
    optim: Factory | Mapping[str, Factory]
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None
    num_steps: int
    batch_size: int | None
    plate: str | None
    train: str
    clip_norm: float | None
    nonfinite: str
    chunk: int | str | None
    compile: str | bool
    deterministic: bool
    holdout: Holdout | None
    plateau: Plateau | None
    checkpoints: Checkpoints | None
    callbacks: Sequence[Callback]
    seed: int
    progress: bool
    ranks: Ranks

    @property
    def devices(self) -> list[int]:
        """The GPUs that data and parameters are on."""
        roots = [root for root in (self.model, self.guide) if isinstance(root, nn.Module)]
        tensors = [a for a in self.args if isinstance(a, Tensor)]
        tensors += [param for root in roots for param in root.parameters()]
        return sorted({tensor.device.index or 0 for tensor in tensors if tensor.is_cuda})
