"""The normal of highest ELBO on fixed draws, diagonal or full."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.training.auto.affine import Affine
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.lbfgs import maximize

__all__ = ["climb"]

_MAX_ROUNDS = 20
_STEPS = 30
_TOLERANCE = 1e-7


def climb(
    density: Density,
    start: Affine,
    noise: Float[Tensor, " draws dim"],
    worth: float = 0.0,
) -> Affine:
    r"""Return the normal whose ELBO on fixed draws is highest.

    .. math:: \frac1N \sum_i \log p(\mu + S \varepsilon_i) + \log\lvert\det S\rvert

    A sample average is a deterministic function, so that L-BFGS can climb it to its top: no step
    size is needed. Each round it is whitened by the S that the last one found, μ + S (m + T ε).

    Args:
        density: The target.
        start: Where to start; its kind of S is kept.
        noise: Draws ε, shape ``(draws, dim)``.
        worth: Nats that are worth a step.

    References:
        Black Box Variational Inference with a Deterministic Objective (Giordano et al., 2024) | https://arxiv.org/abs/2304.05527
        Sample Average Approximation for Black-Box VI (Burroni et al., 2023) | https://arxiv.org/abs/2304.06803
    """
    q = start
    shape = _Diagonal if q.diagonal else _Triangle
    for _ in range(_MAX_ROUNDS):
        at = shape(density, q, noise)
        x, _, steps = maximize(at.objective, at.start(), _STEPS, _TOLERANCE, worth)
        q = at.normal(x)
        if steps < _STEPS:
            break
    return q


@dataclass(frozen=True)
class _Shape:
    """The ELBO as a function of a flat x, around a base."""

    density: Density
    base: Affine
    noise: Tensor

    @property
    def dim(self) -> int:
        return len(self.base.loc)


class _Diagonal(_Shape):
    """x = (m, log diag T)."""

    def start(self) -> Tensor:
        return self.base.loc.new_zeros(2 * self.dim)

    def objective(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, log_scale = x.split(self.dim)
        inner = m + self.noise * log_scale.exp()
        value, grad = self.density.value_and_grad(self.base.push(inner))
        grad = self.base.back(grad)
        by_scale = (grad * self.noise).mean(0) * log_scale.exp() + 1
        return value.mean() + log_scale.sum(), torch.cat([grad.mean(0), by_scale])

    def normal(self, x: Tensor) -> Affine:
        m, log_scale = x.split(self.dim)
        return Affine(
            self.base.push(m.unsqueeze(0)).squeeze(0), self.base.factor * log_scale.exp()
        )


class _Triangle(_Shape):
    """x = (m, log diag T, rest of T)."""

    def start(self) -> Tensor:
        return self.base.loc.new_zeros(self.dim * (self.dim + 3) // 2)

    def _turned(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, log_scale, rest = x.split([self.dim, self.dim, len(x) - 2 * self.dim])
        turn = torch.diag(log_scale.exp())
        rows, cols = torch.tril_indices(self.dim, self.dim, -1)
        turn[rows, cols] = rest
        return m, turn

    def objective(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, turn = self._turned(x)
        value, grad = self.density.value_and_grad(self.base.push(m + self.noise @ turn.mT))
        grad = self.base.back(grad)
        by_turn = grad.mT @ self.noise / len(self.noise)
        by_scale = by_turn.diagonal() * turn.diagonal() + 1
        rows, cols = torch.tril_indices(self.dim, self.dim, -1)
        total = value.mean() + turn.diagonal().log().sum()
        return total, torch.cat([grad.mean(0), by_scale, by_turn[rows, cols]])

    def normal(self, x: Tensor) -> Affine:
        m, turn = self._turned(x)
        return Affine(self.base.push(m.unsqueeze(0)).squeeze(0), self.base.factor @ turn)
