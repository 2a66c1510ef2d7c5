"""Update rules of optimizers as functions of tensors, for the graph of a step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_ext.training.compiled.clipped_adam import ClippedAdam
from pyro_ext.training.compiled.private import once

__all__ = ["Rule", "rule_of"]

Group = dict[str, Any]


class Rule(ABC):
    """An optimizer's update of one parameter, without side effects.

    The state is the torch optimizer's own, so that a step may be taken by either.
    """

    options: ClassVar[tuple[str, ...]]
    """Keys of a parameter group that the update depends on, ``lr`` apart."""

    @abstractmethod
    def state(self, group: Group) -> tuple[str, ...]:
        """Return the names of the state tensors, ``step`` (a scalar) among them or not."""

    @abstractmethod
    def update(
        self, param: Tensor, grad: Tensor, state: dict[str, Tensor], lr: Tensor, group: Group
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the new parameter and its new state.

        Args:
            param: The parameter.
            grad: Its gradient.
            state: The state tensors by name.
            lr: The learning rate, a scalar in float64.
            group: The parameter group.
        """


@dataclass(frozen=True)
class AdamRule(Rule):
    """Adam, with weight decay in the gradient or apart from it (AdamW)."""

    options: ClassVar[tuple[str, ...]] = (
        "betas",
        "eps",
        "weight_decay",
        "maximize",
        "decoupled_weight_decay",
    )
    decoupled: bool

    def state(self, group: Group) -> tuple[str, ...]:
        return ("step", "exp_avg", "exp_avg_sq")

    def update(
        self, param: Tensor, grad: Tensor, state: dict[str, Tensor], lr: Tensor, group: Group
    ) -> tuple[Tensor, dict[str, Tensor]]:
        beta1, beta2 = group["betas"]
        decay = group["weight_decay"]
        if group["maximize"]:
            grad = -grad
        if decay and (self.decoupled or group.get("decoupled_weight_decay")):
            param = param * (1 - lr * decay).to(param.dtype)
        elif decay:
            grad = grad + decay * param
        step = state["step"] + 1
        count = step.double()
        mean = state["exp_avg"] + (1 - beta1) * (grad - state["exp_avg"])
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * grad * grad
        size = once((lr / (1 - beta1**count)).to(param.dtype))
        root = once((1 - beta2**count).sqrt().to(param.dtype))
        new = param - size * mean / (square.sqrt() / root + group["eps"])
        return new, {"step": step, "exp_avg": mean, "exp_avg_sq": square}


@dataclass(frozen=True)
class ClippedAdamRule(Rule):
    """Pyro's Adam with clipped gradients."""

    options: ClassVar[tuple[str, ...]] = (
        "betas",
        "eps",
        "weight_decay",
        "clip_norm",
        "centered_variance",
    )

    def state(self, group: Group) -> tuple[str, ...]:
        return ("step", "exp_avg", "exp_avg_sq")

    def update(
        self, param: Tensor, grad: Tensor, state: dict[str, Tensor], lr: Tensor, group: Group
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return ClippedAdam.update(param, grad, state, lr, group, size_of=once)


@dataclass(frozen=True)
class SGDRule(Rule):
    """Stochastic gradient descent, with momentum or without."""

    options: ClassVar[tuple[str, ...]] = (
        "momentum",
        "dampening",
        "weight_decay",
        "nesterov",
        "maximize",
    )

    def state(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def update(
        self, param: Tensor, grad: Tensor, state: dict[str, Tensor], lr: Tensor, group: Group
    ) -> tuple[Tensor, dict[str, Tensor]]:
        momentum = group["momentum"]
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * param
        new = {}
        if momentum:
            buffer = momentum * state["momentum_buffer"] + (1 - group["dampening"]) * grad
            new["momentum_buffer"] = buffer
            grad = grad + momentum * buffer if group["nesterov"] else buffer
        return param - lr.to(param.dtype) * grad, new


def rule_of(optimizer: torch.optim.Optimizer) -> Rule | None:
    """Return the rule of a torch optimizer, or None if its update is not known as a function.

    Args:
        optimizer: The optimizer.
    """
    groups = optimizer.param_groups
    kind = type(optimizer)
    if kind is ClippedAdam:
        return ClippedAdamRule()
    if any(group.get("differentiable") for group in groups):
        return None
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        plain = not any(group["amsgrad"] for group in groups)
        return AdamRule(kind is torch.optim.AdamW) if plain else None
    if kind is torch.optim.SGD:
        # The first step of torch's momentum does not dampen: a branch on the past.
        plain = not any(group["momentum"] and group["dampening"] for group in groups)
        return SGDRule() if plain else None
    return None
