"""L-BFGS with a weak Wolfe search, for functions that may be -inf."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["maximize"]

_MEMORY = 20
_MAX_TRIALS = 30
_INCREASE, _CURVATURE = 1e-4, 0.9


def maximize(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    max_steps: int,
    tolerance: float,
    worth: float = 0.0,
) -> tuple[Tensor, float, int]:
    """Climb a function whose variables have about unit scale.

    Args:
        objective: From x to value and gradient.
        x: Where to start, shape ``(size,)``.
        max_steps: Largest number of steps.
        tolerance: Largest gradient entry to stop at.
        worth: Gain that is worth a step: it stops where the last step gained less, and the
            quadratic model, ½ gᵀ H⁻¹ g, promises less.

    Returns:
        The best x, its largest gradient entry, and the number of steps taken.

    References:
        Nonsmooth Optimization via Quasi-Newton Methods (Lewis and Overton, 2013) | https://doi.org/10.1007/s10107-012-0514-2
    """
    value, grad = objective(x)
    pairs: list[tuple[Tensor, Tensor]] = []
    step, gain = 0, math.inf
    while step < max_steps and float(grad.abs().max()) > tolerance:
        direction = _direction(grad, pairs)
        if gain < worth and float(grad @ direction) / 2 < worth:
            break
        first = 1.0 if pairs else min(1.0, 1.0 / float(grad.norm()))
        found = _search(objective, x, value, grad, direction, first)
        if found is None:
            if not pairs:
                break
            pairs = []
            continue
        new_x, new_value, new_grad = found
        moved, turned = new_x - x, grad - new_grad
        gain = float(new_value - value)
        x, value, grad = new_x, new_value, new_grad
        step += 1
        if float(moved @ turned) > 1e-12 * float(turned @ turned):
            pairs = [*pairs[1 - _MEMORY :], (moved, turned)]
        if gain <= 4 * torch.finfo(x.dtype).eps * abs(float(value)):
            break
    return x, float(grad.abs().max()), step


def _direction(grad: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    q, weights = grad.clone(), []
    for moved, turned in reversed(pairs):
        weight = (moved @ q) / (moved @ turned)
        weights.append(weight)
        q = q - weight * turned
    if pairs:
        moved, turned = pairs[-1]
        q = q * (moved @ turned) / (turned @ turned)
    for (moved, turned), weight in zip(pairs, reversed(weights), strict=True):
        q = q + moved * (weight - (turned @ q) / (moved @ turned))
    return q


def _search(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    value: Tensor,
    grad: Tensor,
    direction: Tensor,
    size: float,
) -> tuple[Tensor, Tensor, Tensor] | None:
    slope = float(grad @ direction)
    if not slope > 0:
        return None
    low, high = 0.0, math.inf
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for _ in range(_MAX_TRIALS):
        point = x + size * direction
        new_value, new_grad = objective(point)
        if not float(new_value) >= float(value) + _INCREASE * size * slope:
            high = size
        elif float(new_grad @ direction) > _CURVATURE * slope:
            low, best = size, (point, new_value, new_grad)
        else:
            return point, new_value, new_grad
        size = (low + high) / 2 if high < math.inf else 2 * low
    return best
