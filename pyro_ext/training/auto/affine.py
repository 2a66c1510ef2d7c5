"""Gaussians z = μ + S ε: their ELBO on fixed draws, and its maximum."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.quasirandom import SobolEngine

from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.lbfgs import maximize

__all__ = ["Affine", "climb", "elbo", "fixed_draws"]

_MAX_ROUNDS = 20
_STEPS = 30
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Affine:
    """The normal of z = μ + S ε.

    Args:
        loc: μ, shape ``(dim,)``.
        factor: S, shape ``(dim,)`` if diagonal, else a lower triangle, shape ``(dim, dim)``.
    """

    loc: Tensor
    factor: Tensor

    @property
    def diagonal(self) -> bool:
        """Whether S is diagonal."""
        return self.factor.dim() == 1

    @property
    def scale(self) -> Tensor:
        """Diagonal of S, shape ``(dim,)``."""
        return self.factor if self.diagonal else self.factor.diagonal()

    @property
    def sd(self) -> Tensor:
        """Marginal standard deviations, shape ``(dim,)``."""
        return self.factor.abs() if self.diagonal else self.factor.square().sum(-1).sqrt()

    def push(self, noise: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return μ + S ε.

        Args:
            noise: ε.
        """
        return self.loc + (noise * self.factor if self.diagonal else noise @ self.factor.mT)

    def pull(self, z: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return ε.

        Args:
            z: Points.
        """
        centred = z - self.loc
        if self.diagonal:
            return centred / self.factor
        return torch.linalg.solve_triangular(self.factor, centred.mT, upper=False).mT

    def log_det(self) -> Tensor:
        """Return log |det S|."""
        return self.scale.log().sum()

    def full(self) -> "Affine":
        """Return the same normal with S as a matrix."""
        return Affine(self.loc, torch.diag(self.factor)) if self.diagonal else self


def fixed_draws(num: int, dim: int, seed: int) -> Float[Tensor, " num dim"]:
    """Return antithetic Sobol draws of a standard normal, adjusted to its first two moments.

    With at least 4 draws per dimension their covariance is the identity, so that expectations of
    quadratics are exact; with fewer only the variances are one.

    Args:
        num: Number of draws, even.
        dim: Dimension.
        seed: Seed of the scrambling.
    """
    engine = SobolEngine(dim, scramble=True, seed=seed)
    uniform = engine.draw(num // 2, dtype=torch.float64).clamp(1e-10, 1 - 1e-10)
    half = torch.special.ndtri(uniform)
    noise = torch.cat([half, -half])
    if num >= 4 * dim:
        covariance = noise.mT @ noise / num
        return torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), noise.mT, upper=False
        ).mT
    return noise / noise.square().mean(0).sqrt()


def elbo(density: Density, q: Affine, noise: Float[Tensor, " draws dim"]) -> float:
    """Return the ELBO of q on fixed draws.

    Args:
        density: The target.
        q: The normal.
        noise: Draws ε.
    """
    value = density.value(q.push(noise)).mean() + q.log_det()
    return float(value) + _entropy(len(q.loc))


def climb(density: Density, start: Affine, noise: Float[Tensor, " draws dim"]) -> Affine:
    r"""Return the normal whose ELBO on fixed draws is highest.

    .. math:: \frac1N \sum_i \log p(\mu + S \varepsilon_i) + \log\lvert\det S\rvert

    A sample average is a deterministic function, so that L-BFGS can climb it to its top: no step
    size is needed. Each round it is whitened by the S that the last one found, μ + S (m + T ε).

    Args:
        density: The target.
        start: Where to start; its kind of S, diagonal or full, is kept.
        noise: Draws ε.

    References:
        Black Box Variational Inference with a Deterministic Objective (Giordano et al., 2024) | https://arxiv.org/abs/2304.05527
        Sample Average Approximation for Black-Box VI (Burroni et al., 2023) | https://arxiv.org/abs/2304.06803
    """
    q, dim = start, len(start.loc)
    rows, cols = torch.tril_indices(dim, dim, -1)
    for _ in range(_MAX_ROUNDS):
        base = q

        def turned(x: Tensor, base: Affine = base) -> tuple[Tensor, Tensor]:
            """Return m + T ε's map for the flat (m, log diag T, rest of T)."""
            m, log_scale = x[:dim], x[dim : 2 * dim]
            if base.diagonal:
                return m, log_scale.exp()
            turn = torch.diag(log_scale.exp())
            turn[rows, cols] = x[2 * dim :]
            return m, turn

        def objective(x: Tensor, base: Affine = base) -> tuple[Tensor, Tensor]:
            m, turn = turned(x)
            inner = Affine(m, turn).push(noise)
            value, grad = density.value_and_grad(base.push(inner))
            log_scale = x[dim : 2 * dim]
            total = value.mean() + log_scale.sum()
            if base.diagonal:
                grad = grad * base.factor
                by_scale = (grad * noise).mean(0) * turn + 1
                return total, torch.cat([grad.mean(0), by_scale])
            grad = grad @ base.factor
            by_turn = grad.mT @ noise / len(noise)
            by_scale = by_turn.diagonal() * turn.diagonal() + 1
            return total, torch.cat([grad.mean(0), by_scale, by_turn[rows, cols]])

        size = 2 * dim if base.diagonal else 2 * dim + len(rows)
        x, _, steps = maximize(
            objective, torch.zeros(size, dtype=base.loc.dtype), _STEPS, _TOLERANCE
        )
        m, turn = turned(x)
        loc = base.push(m.unsqueeze(0)).squeeze(0)
        q = Affine(loc, base.factor * turn if base.diagonal else base.factor @ turn)
        if steps < _STEPS:
            break
    return q


def _entropy(dim: int) -> float:
    return dim / 2 * (1 + math.log(2 * math.pi))
