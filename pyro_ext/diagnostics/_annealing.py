"""Annealed importance sampling with Hamiltonian Monte Carlo, many chains and data at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions.utils import _sum_rightmost

from pyro_ext.diagnostics._density import Density, Point

__all__ = ["Moves", "backward", "forward", "schedule", "stay", "tune"]

_TARGET = 0.75
_GAIN = 0.3
_WARM_UP = 20
_SHARPNESS = 4.0
_MIN_SCALE = 1e-3
_DIVERGENCE = 1e3  # a fall of the log density that no step from a typical point makes


def schedule(num: int) -> list[float]:
    """Return inverse temperatures from 0 to 1, densest at both ends.

    A start that is much wider than the target changes most at the beginning, one that is much
    narrower at the end.

    Args:
        num: Number of steps between them.
    """
    raw = torch.sigmoid(torch.linspace(-_SHARPNESS, _SHARPNESS, num + 1, dtype=torch.float64))
    return ((raw - raw[0]) / (raw[-1] - raw[0])).tolist()


@dataclass(frozen=True)
class Moves:
    """How chains move at each temperature.

    Args:
        betas: Inverse temperatures, from 0 to 1.
        num_leapfrog: Leapfrog steps of a move.
        steps: Step sizes at each temperature, shape ``batch`` each.
        scales: Width of each coordinate at these temperatures, without particles.
    """

    betas: Sequence[float]
    num_leapfrog: int
    steps: list[Tensor]
    scales: list[Point]


def tune(density: Density, betas: Sequence[float], num_leapfrog: int, num_chains: int) -> Moves:
    """Find step sizes and widths in a pilot run, to be fixed after it: a bound stays a bound.

    Args:
        density: The path.
        betas: Inverse temperatures.
        num_leapfrog: Leapfrog steps of a move.
        num_chains: Chains of the pilot run.
    """
    point, _ = density.draw(num_chains)
    first = {name: _width(value) for name, value in point.items()}
    log_step = torch.full_like(density(point)[1][0], -1.0)
    steps, scales = [], []
    for beta in betas:
        widths = {
            name: torch.maximum(_width(value), _MIN_SCALE * first[name])
            for name, value in point.items()
        }
        for _ in range(_WARM_UP if beta in (0.0, 1.0) else 1):
            point, accepted = _move(density, point, beta, log_step.exp(), widths, num_leapfrog)
            log_step = log_step + _GAIN * (accepted.mean(0) - _TARGET)
        steps.append(log_step.exp())
        scales.append(widths)
    return Moves(betas, num_leapfrog, steps, scales)


def forward(density: Density, moves: Moves, num_chains: int) -> tuple[Tensor, Tensor]:
    """Return log weights of chains from the guide to the posterior, and their acceptance.

    Args:
        density: The path.
        moves: The moves.
        num_chains: Number of chains.

    Returns:
        Shapes ``(num_chains, *batch)`` and ``batch``.
    """
    point, _ = density.draw(num_chains)
    total = torch.zeros_like(density(point)[1])
    rate = torch.zeros_like(total[0])
    for number, beta in enumerate(moves.betas[:-1]):
        if number > 0:
            point, accepted = _step(density, point, moves, number)
            rate = rate + accepted.mean(0) / (len(moves.betas) - 2)
        total = total + (moves.betas[number + 1] - beta) * density(point)[1]
    return total, rate


def backward(density: Density, moves: Moves, point: Point) -> Tensor:
    """Return log weights of chains from exact posterior draws back to the guide.

    Args:
        density: The path.
        moves: The moves.
        point: Exact draws, one for each chain.

    Returns:
        Shape ``(num_chains, *batch)``.
    """
    total = torch.zeros_like(density(point)[1])
    for number in reversed(range(len(moves.betas) - 1)):
        total = total + (moves.betas[number + 1] - moves.betas[number]) * density(point)[1]
        if number > 0:
            point, _ = _step(density, point, moves, number)
    return total


def stay(density: Density, moves: Moves, point: Point, num: int) -> Point:
    """Move exact draws of the posterior within it, so that chains do not share their start.

    Args:
        density: The path.
        moves: The moves; those of the last temperature are used.
        point: Exact draws.
        num: Number of moves.
    """
    for _ in range(num):
        point, _ = _move(
            density, point, 1.0, moves.steps[-1], moves.scales[-1], moves.num_leapfrog
        )
    return point


def _step(density: Density, point: Point, moves: Moves, number: int) -> tuple[Point, Tensor]:
    return _move(
        density,
        point,
        moves.betas[number],
        moves.steps[number],
        moves.scales[number],
        moves.num_leapfrog,
    )


def _move(
    density: Density, point: Point, beta: float, step: Tensor, scales: Point, num_leapfrog: int
) -> tuple[Point, Tensor]:
    """Make one Hamiltonian move; return the new point and the acceptance probabilities."""
    num = len(next(iter(point.values())))
    start, gradient = _value_and_gradient(density, point, beta)
    # A random length keeps a normal target's orbits from closing on themselves.
    jitter = 0.8 + 0.4 * torch.rand_like(start)
    sizes = {
        name: density.spread(step * jitter, density.event_dim(value)) * scales[name]
        for name, value in point.items()
    }
    momentum = {name: torch.randn_like(value) for name, value in point.items()}
    before = start - _kinetic(density, momentum, num)
    proposal, moving = point, momentum
    sound = torch.ones_like(start, dtype=torch.bool)
    for _ in range(num_leapfrog):
        moving = {n: p + 0.5 * sizes[n] * gradient[n] for n, p in moving.items()}
        moved = {n: u + sizes[n] * moving[n] for n, u in proposal.items()}
        end, gradient = _value_and_gradient(density, moved, beta)
        sound &= end > start - _DIVERGENCE
        # A trajectory that diverges stops where it was, and is rejected.
        proposal = _where(density, sound, moved, proposal)
        still = {n: torch.zeros_like(g) for n, g in gradient.items()}
        gradient = _where(density, sound, gradient, still)
        moving = {n: p + 0.5 * sizes[n] * gradient[n] for n, p in moving.items()}
    after = end - _kinetic(density, moving, num)
    rate = torch.where(sound, (after - before).exp().clamp(max=1.0).nan_to_num(0.0), 0.0)
    accept = torch.rand_like(rate) < rate
    kept = _where(density, accept, proposal, point)
    return kept, rate


def _where(density: Density, condition: Tensor, left: Point, right: Point) -> Point:
    """Return one point's values for the elements for which a condition holds, else another's."""
    return {
        name: torch.where(density.spread(condition, density.event_dim(u)), left[name], u)
        for name, u in right.items()
    }


def _value_and_gradient(density: Density, point: Point, beta: float) -> tuple[Tensor, Point]:
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in point.items()}
        log_q, log_w = density(leaves)
        log_f = log_q + beta * log_w if beta > 0 else log_q
        gradients = torch.autograd.grad(log_f.sum(), list(leaves.values()))
    found = {n: g.nan_to_num(0.0, 0.0, 0.0) for n, g in zip(leaves, gradients, strict=True)}
    return log_f.detach().nan_to_num(-math.inf, math.inf, -math.inf), found


def _kinetic(density: Density, momentum: Point, num: int) -> Tensor:
    energies = [
        0.5 * _sum_rightmost(value.square(), density.event_dim(value))
        for value in momentum.values()
    ]
    return torch.stack([density.collect(energy, num) for energy in energies]).sum(0)


def _width(value: Tensor) -> Tensor:
    """Return the sd of each coordinate from its quartiles: chains that are stuck count little."""
    low, high = value.flatten(1).quantile(value.new_tensor([0.25, 0.75]), dim=0)
    return ((high - low) / 1.349).clamp(min=1e-8).reshape(1, *value.shape[1:])
