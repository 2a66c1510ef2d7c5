"""Pyro's ClippedAdam as one optimizer of all parameters, with its step count in a tensor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["ClippedAdam"]


class ClippedAdam(torch.optim.Optimizer):
    """Adam whose gradients are clipped element by element, and whose learning rate decays.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate, which is multiplied by ``lrd`` before each step.
        betas: Decay rates of the moments.
        eps: Added to the denominator.
        weight_decay: Factor of the L2 penalty.
        clip_norm: Largest absolute value of an element of the gradient.
        lrd: Decay rate of the learning rate.
        centered_variance: Whether the second moment is about the first.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 10.0,
        lrd: float = 1.0,
        centered_variance: bool = False,  # noqa: FBT001, FBT002 (Pyro's signature)
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "lrd": lrd,
            "centered_variance": centered_variance,
        }
        super().__init__(params, defaults)

    @staticmethod
    def update(
        param: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        lr: Any,
        group: dict[str, Any],
        size_of: Callable[[Tensor], Tensor] = torch.Tensor.detach,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the new parameter and its new state.

        Args:
            param: The parameter.
            grad: Its gradient.
            state: ``step``, ``exp_avg`` and ``exp_avg_sq``.
            lr: The learning rate, decayed already.
            group: The parameter group.
            size_of: What the step size goes through on its way.
        """
        beta1, beta2 = group["betas"]
        grad = grad.clamp(-group["clip_norm"], group["clip_norm"])
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * param
        step = state["step"] + 1
        count = step.double()
        mean = beta1 * state["exp_avg"] + (1 - beta1) * grad
        centered = grad - mean if group["centered_variance"] else grad
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * centered * centered
        size = size_of((lr * (1 - beta2**count).sqrt() / (1 - beta1**count)).to(param.dtype))
        new = param - size * mean / (square.sqrt() + group["eps"])
        return new, {"step": step, "exp_avg": mean, "exp_avg_sq": square}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Evaluates the loss, if it is given.
        """
        loss = None if closure is None else closure()
        for group in self.param_groups:
            group["lr"] *= group["lrd"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                    state["exp_avg"] = torch.zeros_like(param)
                    state["exp_avg_sq"] = torch.zeros_like(param)
                new, changed = self.update(param, param.grad, state, group["lr"], group)
                param.copy_(new)
                for name, value in changed.items():
                    state[name].copy_(value)
        return loss
