"""Do draws stay where they are under moves that leave the posterior as it is?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.training.auto.affine import Affine
from pyro_ext.training.auto.density import Density

__all__ = ["Drift", "drift"]

_MOVES, _MAX_LEAPS = 6, 8
_LENGTH = 1.6  # about a quarter of the period of a standard normal
_TRIALS, _PILOTS = 6, 128
_SLACK, _SIGMAS = 0.05, 4.0


@dataclass(frozen=True)
class Drift:
    """How far the draws moved.

    Args:
        mean: Largest shift of a mean, in standard deviations.
        spread: Largest shift of a mean square, in standard deviations of the square.
        excess: Largest shift beyond what noise explains; not positive if there is none.
        acceptance: Share of the moves that were accepted.
    """

    mean: float
    spread: float
    excess: float
    acceptance: float

    @property
    def found(self) -> bool:
        """Whether the draws left their place, or could not be moved to tell."""
        return self.excess > 0 or self.acceptance < 0.3


def drift(
    density: Density, q: Affine, z: Float[Tensor, " draws dim"], generator: torch.Generator
) -> Drift:
    r"""Move draws by Hamiltonian Monte Carlo in whitened space, and see what changes.

    Draws of the posterior stay draws of it; importance weights cannot tell what a guide has never
    seen, a move can step there. It tests the mean and the mean square of each whitened coordinate
    and the mean log density, each before against after.

    .. math:: u = S^{-1}(z - \mu), \qquad
        |\overline{u' - u}| \le 0.05 + 4\,\mathrm{se}

    Args:
        density: The target.
        q: The normal that whitens.
        z: Draws to be tested.
        generator: Random numbers.

    References:
        Hamiltonian Monte Carlo for posterior inference (Neal, 2011) | https://arxiv.org/abs/1206.1901
    """
    start = q.pull(z)
    step = density.dim**-0.25
    for _ in range(_TRIALS):
        if _move(density, q, start[:_PILOTS], step, 1, generator)[1] > 0.6:
            break
        step /= 2
    end, acceptance, value, new_value = _move(density, q, start, step, _MOVES, generator)
    by_mean = _shift(start, end, start.std(0))
    square, new_square = start.square(), end.square()
    by_square = _shift(square, new_square, square.std(0))
    by_value = _shift(value.unsqueeze(-1), new_value.unsqueeze(-1), value.std())
    shifts, errors = (torch.cat(parts) for parts in zip(by_mean, by_square, by_value, strict=True))
    return Drift(
        float(by_mean[0].max()),
        float(by_square[0].max()),
        float((shifts - _SIGMAS * errors).max()) - _SLACK,
        acceptance,
    )


def _shift(before: Tensor, after: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    change = after - before
    return change.mean(0).abs() / unit, change.std(0) / len(change) ** 0.5 / unit


def _move(
    density: Density,
    q: Affine,
    u: Tensor,
    step: float,
    moves: int,
    generator: torch.Generator,
) -> tuple[Tensor, float, Tensor, Tensor]:
    options: Any = {"generator": generator, "dtype": u.dtype}
    leaps = min(math.ceil(_LENGTH / step), _MAX_LEAPS)
    value, grad = _whitened(density, q, u)
    first, accepted = value, 0.0
    for _ in range(moves):
        size = step * (0.6 + 0.8 * torch.rand((len(u), 1), **options))
        speed = torch.randn(u.shape, **options)
        energy = value - 0.5 * speed.square().sum(-1)
        point, new_value, new_grad = u, value, grad
        for _ in range(leaps):
            speed = speed + size / 2 * new_grad
            point = point + size * speed
            new_value, new_grad = _whitened(density, q, point)
            speed = speed + size / 2 * new_grad
        gain = new_value - 0.5 * speed.square().sum(-1) - energy
        taken = torch.rand(len(u), **options).log() < torch.nan_to_num(gain, nan=-torch.inf)
        u = torch.where(taken.unsqueeze(-1), point, u)
        value = torch.where(taken, new_value, value)
        grad = torch.where(taken.unsqueeze(-1), new_grad, grad)
        accepted += float(taken.double().mean()) / moves
    return u, accepted, first, value


def _whitened(density: Density, q: Affine, u: Tensor) -> tuple[Tensor, Tensor]:
    value, grad = density.value_and_grad(q.push(u))
    return value, grad * q.factor if q.diagonal else grad @ q.factor
