"""The optimizer of a fit, and one beside it that updates tables by rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler

from pyro_ext.training.compiled.checked import checked_optimizer, checked_schedule
from pyro_ext.training.compiled.optimizer import AllParameters, Average, joint_factor
from pyro_ext.training.files import plain
from pyro_ext.training.options import asked_of
from pyro_ext.training.snapshot import check_asked

__all__ = ["Optimizers", "values"]

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
        clip_norm: Largest norm of the gradient of all parameters together, or None.
        sparse: Which parameters have sparse gradients; by default, those whose first one is.
        average: What makes the gradient of all processes of that of one; None for one alone.

    Raises:
        TypeError: If optimizer or scheduler cannot be stepped here.
        ValueError: If a gradient is sparse and the optimizer has no form by rows, or the optimizer
            has none of the parameters.
    """

    def __init__(
        self,
        optim: Callable[[list[Tensor]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None,
        params: list[Tensor],
        *,
        clip_norm: float | None = None,
        sparse: Sequence[int] | None = None,
        average: Average | None = None,
    ) -> None:
        self._clip_norm, self._halvings = clip_norm, 0
        self.for_graph: AllParameters | None = None
        if sparse is None:
            grads = enumerate(param.grad for param in params)
            sparse = [i for i, grad in grads if grad is not None and grad.is_sparse]
        self.sparse = list(sparse)
        if sparse:
            self.optimizers = [checked_optimizer(optim(params), "fit")]
            if not isinstance(self.optimizers[0], _TAKES_SPARSE):
                moved = {id(params[index]) for index in sparse}
                self.optimizers.append(_move_rows(self.optimizers[0], moved))
        else:
            self.for_graph = AllParameters(optim, clip_norm, average, owner="fit")
            self.for_graph.include(params)
            self.optimizers = [o for o in (self.for_graph.torch,) if o is not None]
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:  # so that a fit that goes on computes as one that was never stopped
            group.update(plain({n: value for n, value in group.items() if n != "params"}))
        taken = {id(param) for group in groups for param in group["params"]}
        # What makes the optimizer may leave parameters out: these stay as they are.
        self.params = [param for param in params if id(param) in taken]
        if not self.params:
            raise ValueError(
                "fit: expected an optimizer of the parameters that its function is given; got one "
                "of others. Write: optim=lambda params: torch.optim.Adam(params, lr=0.01)."
            )
        self.schedulers = (
            [] if schedule is None else [checked_schedule(schedule(o)) for o in self.optimizers]
        )
        self.asked = asked_of(self.optimizers, self.schedulers)

    def step(self) -> None:
        """Clip the gradients, and step optimizers and schedulers."""
        if self._clip_norm is not None:
            self._clip(self._clip_norm)
        checks = torch.sparse.check_sparse_tensor_invariants
        # Torch warns where nobody has said whether to check; this says: as before.
        with checks(enable=checks.is_enabled()):
            for optimizer in self.optimizers:
                optimizer.step()
        self.step_schedules()

    def step_schedules(self) -> None:
        """Step the schedulers alone, where a graph has updated the parameters."""
        # A schedule may make a rate of the last one, or of rates of its own: it sees them whole.
        factor = 2.0**self._halvings
        self._scale(factor)
        for scheduler in self.schedulers:
            scheduler.step()
        self._scale(1 / factor)

    def halve(self) -> None:
        """Halve all learning rates, from now on, whatever the schedule."""
        self._halvings += 1
        self._scale(0.5)

    def _scale(self, factor: float) -> None:
        if factor == 1:
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor

    def state(self) -> dict[str, Any]:
        """Return the state of optimizers and schedulers."""
        return {
            "asked": self.asked,
            "sparse": self.sparse,
            "halvings": self._halvings,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }

    def load(self, state: dict[str, Any], what: str) -> None:
        """Take over the state of others.

        Args:
            state: What ``state`` returned.
            what: The file that it comes from, for the message.

        Raises:
            DamagedFile: If they are of another class, or had other options to begin with.
        """
        # Another version of torch may have other options, and this package knew none before.
        saved, asked = state.get("asked", {}), self.asked
        self._halvings = state.get("halvings", 0)
        both = [name for name in asked if name in saved]
        check_asked({n: saved[n] for n in both}, {n: asked[n] for n in both}, what)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)

    def _clip(self, largest: float) -> None:
        grads = [param.grad for param in self.params if param.grad is not None]
        factor = joint_factor([values(grad) for grad in grads], largest)
        for grad in grads:
            grad.mul_(factor.to(grad.dtype))


def values(grad: Tensor) -> Tensor:
    """Return the entries of a gradient, of a sparse one those that are there.

    Args:
        grad: The gradient.
    """
    return grad.coalesce().values() if grad.is_sparse else grad


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
