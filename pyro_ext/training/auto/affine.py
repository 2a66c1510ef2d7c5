"""Gaussians z = μ + S ε, and the ELBO on fixed draws."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.quasirandom import SobolEngine

from pyro_ext.training.auto.density import Density

__all__ = ["Affine", "Map", "elbo", "fixed_draws", "log_ratios"]


@dataclass(frozen=True)
class Affine:
    r"""The normal of z = μ + S ε.

    With columns F its covariance is of low rank plus a diagonal, and S never formed:

    .. math:: S = \mathrm{diag}(s)\,(I + F F^\top)^{1/2}

    Args:
        loc: μ, shape ``(dim,)``.
        factor: s or S, shape ``(dim,)`` if diagonal, else a lower triangle, shape ``(dim, dim)``.
        columns: F, shape ``(dim, rank)``, or None; only with a diagonal factor.
    """

    loc: Tensor
    factor: Tensor
    columns: Tensor | None = None

    @property
    def diagonal(self) -> bool:
        """Whether S is diagonal."""
        return self.factor.dim() == 1 and self.columns is None

    @cached_property
    def sd(self) -> Tensor:
        """Marginal standard deviations, shape ``(dim,)``."""
        if self.factor.dim() == 2:
            return self.factor.square().sum(-1).sqrt()
        rest = 0.0 if self.columns is None else self.columns.square().sum(-1)
        return self.factor.abs() * (1 + torch.as_tensor(rest)).sqrt()

    @cached_property
    def _turn(self) -> tuple[Tensor, Tensor] | None:
        """U and c of (I + F Fᵀ)^½ = I + U diag(c) Uᵀ."""
        if self.columns is None:
            return None
        left, size, _ = torch.linalg.svd(self.columns, full_matrices=False)
        return left, (1 + size.square()).sqrt() - 1

    def push(self, noise: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return μ + S ε.

        Args:
            noise: ε.
        """
        if self.factor.dim() == 2:
            return self.loc + noise @ self.factor.mT
        if self._turn is not None:
            left, excess = self._turn
            noise = noise + (noise @ left * excess) @ left.mT
        return self.loc + noise * self.factor

    def pull(self, z: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return ε.

        Args:
            z: Points.
        """
        centred = z - self.loc
        if self.factor.dim() == 2:
            return torch.linalg.solve_triangular(self.factor, centred.mT, upper=False).mT
        noise = centred / self.factor
        if self._turn is not None:
            left, excess = self._turn
            noise = noise - (noise @ left * (excess / (1 + excess))) @ left.mT
        return noise

    def back(self, grad: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return Sᵀ g, the gradient in ε for a gradient in z.

        Args:
            grad: g.
        """
        if self.factor.dim() == 2:
            return grad @ self.factor
        grad = grad * self.factor
        if self._turn is not None:
            left, excess = self._turn
            grad = grad + (grad @ left * excess) @ left.mT
        return grad

    def solve(self, centred: Float[Tensor, " points dim"]) -> Float[Tensor, " points dim"]:
        """Return (S Sᵀ)⁻¹ (z - μ), for a diagonal of low rank.

        Args:
            centred: z - μ.
        """
        noise = centred / self.factor
        if self._turn is not None:
            left, excess = self._turn
            noise = noise - (noise @ left * (1 - (1 + excess) ** -2)) @ left.mT
        return noise / self.factor

    @cached_property
    def log_det(self) -> Tensor:
        """Log |det S|."""
        if self.factor.dim() == 2:
            return self.factor.diagonal().log().sum()
        rest = 0.0 if self._turn is None else self._turn[1].log1p().sum()
        return self.factor.log().sum() + rest

    def forward(self, noise: Float[Tensor, " points dim"]) -> tuple[Tensor, Tensor]:
        """Return z and log |det S|.

        Args:
            noise: ε.
        """
        return self.push(noise), self.log_det

    def inverse(self, z: Float[Tensor, " points dim"]) -> tuple[Tensor, Tensor]:
        """Return ε and log |det S|.

        Args:
            z: Points.
        """
        return self.pull(z), self.log_det

    def slope(
        self, density: Density, noise: Float[Tensor, " points dim"]
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, " points dim"]]:
        """Return value and gradient in ε of log p(z) + log |det S|, as Hamiltonian moves need it.

        Args:
            density: The target.
            noise: ε.
        """
        value, grad = density.value_and_grad(self.push(noise))
        return value + self.log_det, self.back(grad)

    def full(self) -> "Affine":
        """Return the same normal with S as a triangle."""
        if self.factor.dim() == 2:
            return self
        if self.columns is None:
            return Affine(self.loc, torch.diag(self.factor))
        root = self.factor[:, None] * self.columns
        covariance = torch.diag(self.factor.square()) + root @ root.mT
        return Affine(self.loc, torch.linalg.cholesky(covariance))

    def independent(self) -> "Affine":
        """Return the diagonal normal nearest to this one, which has its conditional sds."""
        if self.diagonal:
            return self
        if self._turn is not None:
            left, excess = self._turn
            explained = left.square() @ (1 - (1 + excess) ** -2)
            return Affine(self.loc, self.factor * (1 - explained).rsqrt())
        eye = torch.eye(len(self.loc), dtype=self.loc.dtype)
        inverse = torch.linalg.solve_triangular(self.factor, eye, upper=False)
        return Affine(self.loc, inverse.square().sum(0).rsqrt())


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


@runtime_checkable
class Map(Protocol):
    """A bijection from standard normal noise to z: a normal, or a bent one."""

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log |det ∂z/∂ε|."""

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ε and log |det ∂z/∂ε|."""

    def slope(self, density: Density, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient in ε of log p(z) + log |det ∂z/∂ε|."""


def log_ratios(
    density: Density, q: Map, noise: Float[Tensor, " draws dim"]
) -> Float[Tensor, " draws"]:
    """Return log p(x, z) - log q(z) of draws, with the entropy of the noise exact on average.

    Args:
        density: The target.
        q: The approximation.
        noise: Draws ε.
    """
    z, log_det = q.forward(noise)
    return density.value(z) + log_det + _entropy(noise.shape[-1])


def elbo(density: Density, q: Map, noise: Float[Tensor, " draws dim"]) -> float:
    """Return the ELBO of q on fixed draws.

    Args:
        density: The target.
        q: The approximation.
        noise: Draws ε.
    """
    return float(log_ratios(density, q, noise).mean())


def _entropy(dim: int) -> float:
    return dim / 2 * (1 + math.log(2 * math.pi))
