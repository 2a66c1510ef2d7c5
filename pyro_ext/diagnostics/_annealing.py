"""Annealed importance sampling with Hamiltonian Monte Carlo, many chains and data at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from pyro_ext.diagnostics._density import Density, Point

__all__ = ["Moves", "backward", "forward", "stay", "tune"]

_TARGET = 0.75  # acceptance
_LONGEST = 1.3
_GAIN = 0.6
_WARM_UP, _PILOT_MOVES = 12, 4
_KEPT = 0.8  # effective share of the pilot's chains after a step
_MAX_STEPS = 500
_MIN_WIDTH = 1e-8
_DIVERGENCE = 1e3  # a fall of the log density that no step from a typical point makes


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

    def __len__(self) -> int:
        """Number of steps from 0 to 1."""
        return len(self.betas) - 1

    def refined(self, num: int) -> "Moves":
        """Return the same path in another number of steps, which take equal shares of the old.

        Args:
            num: Number of steps.
        """
        betas, steps, scales = [], [], []
        for number in range(num + 1):
            place = number * len(self) / num
            low = min(int(place), len(self) - 1)
            share = place - low
            betas.append(self.betas[low] + share * (self.betas[low + 1] - self.betas[low]))
            steps.append(self.steps[low] ** (1 - share) * self.steps[low + 1] ** share)
            left, right = self.scales[low], self.scales[low + 1]
            scales.append({n: left[n] ** (1 - share) * right[n] ** share for n in left})
        return Moves([0.0, *betas[1:-1], 1.0], self.num_leapfrog, steps, scales)


def tune(density: Density, num_leapfrog: int, num_chains: int) -> Moves:
    """Find temperatures, step sizes and widths in a pilot run, to be fixed after it.

    What is fixed does not depend on the chains that come later, so a bound stays a bound. The
    pilot's chains are resampled at each temperature, the next of which is as far as leaves 80 % of
    them effective: chains that are stuck die out, and tell nothing about widths.

    Args:
        density: The path.
        num_leapfrog: Leapfrog steps of a move.
        num_chains: Chains of the pilot run.

    References:
        Toward Automatic Model Comparison: An Adaptive Sequential Monte Carlo Approach (Zhou,
        Johansen and Aston, 2016) | https://arxiv.org/abs/1303.3123
    """
    point, _ = density.draw(num_chains)
    log_w = density(point)[1]
    log_step = torch.zeros_like(log_w[0])
    betas, steps, scales = [0.0], [], []
    while True:
        beta = betas[-1]
        widths = {name: _width(value) for name, value in point.items()}
        for _ in range(_PILOT_MOVES if 0 < beta < 1 else _WARM_UP):
            point, accepted = _move(density, point, beta, log_step.exp(), widths, num_leapfrog)
            log_step = log_step + _GAIN * (accepted.mean(0) - _TARGET)
        steps.append(log_step.exp())
        scales.append(widths)
        if beta == 1:
            return Moves(betas, num_leapfrog, steps, scales)
        log_w = density(point)[1]
        betas.append(_next(log_w, beta) if len(betas) < _MAX_STEPS else 1.0)
        point = _resampled(density, point, (betas[-1] - beta) * log_w)


def _next(log_w: Tensor, beta: float) -> float:
    """Return the inverse temperature that leaves the given share of chains effective."""
    if _effective_share(log_w, 1 - beta) >= _KEPT:
        return 1.0
    low, high = -60.0, math.log(1 - beta)  # of the step
    for _ in range(40):
        middle = (low + high) / 2
        enough = _effective_share(log_w, math.exp(middle)) >= _KEPT
        low, high = (middle, high) if enough else (low, middle)
    return beta + math.exp(low)


def _effective_share(log_w: Tensor, step: float) -> float:
    weights = (step * log_w).softmax(0)
    return (1 / weights.square().sum(0)).mean().item() / len(log_w)


def _resampled(density: Density, point: Point, log_w: Tensor) -> Point:
    """Return a point whose chains were drawn by their weights, systematically, in each element."""
    num = len(log_w)
    edges = log_w.softmax(0).cumsum(0).movedim(0, -1).contiguous()
    places = torch.arange(num, device=edges.device).to(edges) + torch.rand_like(edges[..., :1])
    chosen = torch.searchsorted(edges / edges[..., -1:], places / num).clamp(max=num - 1)
    index = chosen.movedim(-1, 0)
    return {
        name: value.gather(0, density.spread(index, density.event_dim(value)).expand_as(value))
        for name, value in point.items()
    }


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
    start, gradient = _value_and_gradient(density, point, beta, step.shape)
    # Over a decade: where a target is a funnel, no one step size moves all chains, and a random
    # length keeps a normal target's orbits from closing on themselves.
    jitter = _LONGEST * 10 ** -torch.rand_like(start)
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
        end, gradient = _value_and_gradient(density, moved, beta, step.shape)
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


def _value_and_gradient(
    density: Density, point: Point, beta: float, batch: torch.Size
) -> tuple[Tensor, Point]:
    """Return log f and its gradient; -inf and zeros for chains whose covariances have no root."""
    try:
        return _evaluated(density, point, beta)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        num = len(next(iter(point.values())))
        if num == 1:
            still = {name: torch.zeros_like(value) for name, value in point.items()}
            return next(iter(still.values())).new_full((1, *batch), -math.inf), still
        parts = [
            _value_and_gradient(density, {n: v[part] for n, v in point.items()}, beta, batch)
            for part in (slice(num // 2), slice(num // 2, num))
        ]
        values, gradients = zip(*parts, strict=True)
        return torch.cat(values), {n: torch.cat([g[n] for g in gradients]) for n in point}


def _evaluated(density: Density, point: Point, beta: float) -> tuple[Tensor, Point]:
    num = len(next(iter(point.values())))
    with torch.enable_grad():
        # The density takes two chains at least.
        leaves = {
            name: value.detach().repeat_interleave(2 if num == 1 else 1, 0).requires_grad_()
            for name, value in point.items()
        }
        log_q, log_w = density(leaves)
        log_f = log_q + beta * log_w if beta > 0 else log_q
        gradients = torch.autograd.grad(log_f.sum(), list(leaves.values()))
    found = {n: g[:num].nan_to_num(0.0, 0.0, 0.0) for n, g in zip(leaves, gradients, strict=True)}
    return log_f[:num].detach().nan_to_num(-math.inf, math.inf, -math.inf), found


def _kinetic(density: Density, momentum: Point, num: int) -> Tensor:
    energies = [
        0.5 * sum_rightmost(value.square(), density.event_dim(value))
        for value in momentum.values()
    ]
    return torch.stack([density.collect(energy, num) for energy in energies]).sum(0)


def _width(value: Tensor) -> Tensor:
    return value.std(0, keepdim=True).clamp(min=_MIN_WIDTH)
