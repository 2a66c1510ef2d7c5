"""The optimizer of a fit, and one beside it that updates tables by rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Optimizers"]

_TAKES_SPARSE = (SGD, Adagrad, SparseAdam)
_HAS_ROW_FORM = (Adam, AdamW)


class Optimizers:
    """A user's optimizer; what has sparse gradients moves to a ``SparseAdam`` with its options.

    An ``nn.Embedding(sparse=True)`` or a guide's table has a gradient for a few rows. Adam would
    move the others too, by their momentum, at the cost of all.

    Args:
        optim: From a list of parameters to a torch optimizer.
        schedule: From that optimizer to a torch learning-rate scheduler.
        params: The parameters, with their first gradients.

    Raises:
        ValueError: If a gradient is sparse and the optimizer has no form by rows.
    """

    def __init__(
        self,
        optim: Callable[[list[Tensor]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None,
        params: list[Tensor],
    ) -> None:
        self.optimizers = [optim(params)]
        sparse = {id(p) for p in params if p.grad is not None and p.grad.is_sparse}
        if sparse and not isinstance(self.optimizers[0], _TAKES_SPARSE):
            self.optimizers.append(_move_rows(self.optimizers[0], sparse))
        self.schedulers = [] if schedule is None else [schedule(o) for o in self.optimizers]

    def step(self) -> None:
        """Step optimizers and schedulers."""
        checks = torch.sparse.check_sparse_tensor_invariants
        # Torch warns where nobody has said whether to check; this says: as before.
        with checks(enable=checks.is_enabled()):
            for optimizer in self.optimizers:
                optimizer.step()
        for scheduler in self.schedulers:
            scheduler.step()


def _move_rows(optimizer: Optimizer, sparse: set[int]) -> SparseAdam:
    for group in optimizer.param_groups:
        others = {k: group[k] for k in ("weight_decay", "amsgrad") if group.get(k)}
        if not isinstance(optimizer, _HAS_ROW_FORM) or others:
            options = ", ".join(f"{name}={value}" for name, value in others.items())
            raise ValueError(
                "fit: expected torch.optim.Adam without weight_decay and amsgrad, SGD or Adagrad "
                "where a gradient is sparse, as those of sparse=True are; got "
                f"{type(optimizer).__name__}({options}). Write: "
                "optim=partial(torch.optim.Adam, lr=0.01), or sparse=False."
            )
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        moved = [param for param in group["params"] if id(param) in sparse]
        group["params"] = [param for param in group["params"] if id(param) not in sparse]
        kept = {name: group[name] for name in ("lr", "betas", "eps", "maximize")}
        groups.append({"params": moved, **kept})
    return SparseAdam(groups)
