"""Draws of a loss's gradient, and the exact one."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["GUIDE", "MODEL", "exact_gradient", "gradients"]

MODEL, GUIDE = slice(0, 2), slice(2, 5)


def gradients(loss: Any, model: Any, guide: Any, params: Any, *args: Tensor, rows: int) -> Tensor:
    """Independent draws of the gradient of the loss, shape ``(rows, params)``."""
    draws = []
    for _ in range(rows):
        grads = torch.autograd.grad(loss.differentiable_loss(model, guide, *args), params)
        draws.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(draws)


def exact_gradient(bound: Tensor, params: Any) -> Tensor:
    return torch.stack(torch.autograd.grad(-bound, params))
