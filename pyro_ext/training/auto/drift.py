"""Do draws stay where they are under moves that leave the posterior as it is?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext.training.auto.affine import Map
from pyro_ext.training.auto.correct import Pool, flat_latents
from pyro_ext.training.auto.density import Density

__all__ = ["Drift", "drift"]

_MOVES, _KEPT, _MAX_LEAPS = 6, 4, 8
_LENGTH = 1.6  # about a quarter of the period of a standard normal
_TRIALS, _PILOTS = 6, 128
_SIGMAS = 3.0


@dataclass(frozen=True)
class Drift:
    """How far the draws moved.

    Args:
        mean: Largest shift of a mean, in standard deviations.
        spread: Largest shift of a standard deviation, relative.
        excess: Largest shift beyond the limit and what noise explains; not positive if none is.
        acceptance: Share of the moves that were accepted.
    """

    mean: float
    spread: float
    excess: float
    acceptance: float

    @property
    def found(self) -> bool:
        """Whether the draws left their place, or could not be moved to tell."""
        return not self.excess <= 0 or self.acceptance < 0.3


def drift(
    density: Density, q: Map, pool: Pool, num: int, limit: float, generator: torch.Generator
) -> Drift:
    r"""Move draws by Hamiltonian Monte Carlo in the noise of q, and see what changes.

    Draws of the posterior stay draws of it; importance weights cannot tell what a guide has never
    seen, a move can step there. Each move is about a quarter of a period, so that a few of them
    forget where they began. Means and sds over the last ones are held against the pool's, for
    each latent, constrained and in the noise.

    .. math:: |\overline{f(u')} - \textstyle\sum_i w_i f(u_i)| \le \mathrm{limit} + 3\,\mathrm{se}

    Args:
        density: The target.
        q: The map whose noise is moved.
        pool: Weighted draws to be tested.
        num: Number of chains that start from them.
        limit: Shift that is small enough, in standard deviations.
        generator: Random numbers.

    References:
        MCMC using Hamiltonian Dynamics (Neal, 2011) | https://arxiv.org/abs/1206.1901
    """

    def features(z: Tensor, u: Tensor) -> Tensor:
        return torch.cat([flat_latents(density, z), u], -1)

    values = features(pool.z, q.inverse(pool.z)[0])
    mean, sd, by_mean, by_sd = pool.moments(values)
    del values
    u = q.inverse(pool.resample(num, generator))[0]
    step = density.dim**-0.25
    for _ in range(_TRIALS):
        if _move(density, q, u[:_PILOTS], step, generator)[1] > 0.6:
            break
        step /= 2
    total, acceptance = torch.zeros((len(u), 2 * len(mean)), dtype=u.dtype), 0.0
    for move in range(_MOVES):
        u, accepted = _move(density, q, u, step, generator)
        acceptance += accepted / _MOVES
        if move >= _MOVES - _KEPT:
            unit = (features(q.forward(u)[0], u) - mean) / sd
            total += torch.cat([unit, (unit.square() - 1) / 2], -1) / _KEPT
    shifts = total.mean(0).abs()
    errors = (total.var(0) / len(total) + torch.cat([by_mean, by_sd]).square()).sqrt()
    by_mean_, by_sd_ = shifts.chunk(2)
    excess = float((shifts - _SIGMAS * errors).max()) - limit
    return Drift(float(by_mean_.max()), float(by_sd_.max()), excess, acceptance)


def _move(
    density: Density, q: Map, u: Tensor, step: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    options: Any = {"generator": generator, "dtype": u.dtype}
    value, grad = q.slope(density, u)
    size = step * (0.6 + 0.8 * torch.rand((len(u), 1), **options))
    speed = torch.randn(u.shape, **options)
    energy = value - 0.5 * speed.square().sum(-1)
    point, new_value = u, value
    for _ in range(min(math.ceil(_LENGTH / step), _MAX_LEAPS)):
        speed = speed + size / 2 * grad
        point = point + size * speed
        new_value, grad = q.slope(density, point)
        speed = speed + size / 2 * grad
    gain = new_value - 0.5 * speed.square().sum(-1) - energy
    taken = torch.rand(len(u), **options).log() < torch.nan_to_num(gain, nan=-torch.inf)
    return torch.where(taken.unsqueeze(-1), point, u), float(taken.double().mean())
