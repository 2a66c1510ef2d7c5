"""Where to start: Newton paths from several points, and the best normal taken along them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.training.auto.affine import Affine, elbo, fixed_draws
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.lbfgs import maximize

__all__ = ["MAX_DENSE", "Candidate", "paths", "starting_points"]

MAX_DENSE = 300
"""Largest dimension in which matrices of D by D are formed."""

_NUM_STEPS = 60
_TRIALS = 18
_FLOOR = 1e-10
_DRAWS = 32
_ROUNDS, _STEPS, _PROBES = 12, 60, 16
_FLAT = 1e-2


@dataclass(frozen=True)
class Candidate:
    """The best normal along one path.

    Args:
        q: The normal.
        elbo: Its ELBO, estimated.
        end: Where the path ended, shape ``(dim,)``.
        converged: Whether it ended at a mode.
    """

    q: Affine
    elbo: float
    end: Tensor
    converged: bool


def starting_points(density: Density, num: int, seed: int) -> Float[Tensor, " num dim"]:
    """Return points at which the density is finite, drawn in (-2, 2) at first.

    Args:
        density: The target.
        num: Number of points.
        seed: Seed.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (num, density.dim)
    points = 4 * torch.rand(shape, generator=generator, dtype=torch.float64) - 2
    for _ in range(20):
        bad = density.value_and_grad(points.to(density.dtype))[0] == -torch.inf
        if not bad.any():
            return points.to(density.dtype)
        points[bad] = points[bad] / 2
    if not bad.all():  # the density is 0 around the middle
        return points[~bad].to(density.dtype)
    raise ValueError(
        "fit: expected a model with a finite density somewhere in its support; got 0 or NaN at "
        "each of the starts. Write: torch.isfinite(x).all(), to look for NaN in the data."
    )


def paths(density: Density, z: Float[Tensor, " num dim"], seed: int) -> list[Candidate]:
    r"""Climb to the mode from several points at once, and pick the best normal along each path.

    A step is :math:`|H|^{-1} g` with the absolute eigenvalues of the Hessian, of the length among
    1, 1/2, 1/4, ... that is best. It does not depend on the scales of the latents. Each point of
    the path gives a normal with this curvature, and the ELBO decides: near a mode of infinite or
    needle-like density the best one lies far before its end.

    In more than 300 dimensions the steps are those of L-BFGS, scaled by the diagonal of the
    Hessian, which a few products with random signs estimate, and the normals are diagonal.

    Args:
        density: The target.
        z: Where to start.
        seed: Seed of the draws that estimate the ELBO.

    References:
        Pathfinder: Parallel Quasi-Newton Variational Inference (Zhang et al., 2022) | https://arxiv.org/abs/2108.03782
        Saddle-Free Newton (Dauphin et al., 2014) | https://arxiv.org/abs/1406.2572
        An Estimator for the Diagonal of a Matrix (Bekas et al., 2007) | https://doi.org/10.1016/j.apnum.2007.01.003
    """
    if density.dim > MAX_DENSE:
        return _long_paths(density, z, seed)
    z, num = z.clone(), len(z)
    noise = fixed_draws(_DRAWS, density.dim, seed).to(z)
    best: list[tuple[float, Affine] | None] = [None] * num
    moving = torch.ones(num, dtype=torch.bool)
    sizes = 2.0 ** -torch.arange(_TRIALS, dtype=z.dtype)
    for _ in range(_NUM_STEPS):
        active = moving.nonzero().flatten()
        if not len(active):
            break
        value, grad = density.value_and_grad(z[active])
        inverse_root = _inverse_root(density.hessian(z[active]))
        direction = (inverse_root @ (inverse_root.mT @ grad.unsqueeze(-1))).squeeze(-1)
        for row, index in enumerate(active.tolist()):
            q = Affine(z[index] + direction[row], _lower(inverse_root[row]))
            bound = elbo(density, q, noise)
            kept = best[index]
            if kept is None or bound > kept[0]:
                best[index] = (bound, q)
        trials = z[active] + sizes[:, None, None] * direction
        values = density.value(trials.flatten(0, 1)).unflatten(0, (_TRIALS, -1))
        gained, which = values.max(0)
        better = gained > value
        rows = torch.arange(len(active))
        z[active[better]] = trials[which[better], rows[better]]
        decrement = (grad * direction).sum(-1)
        moving[active] = better & (decrement > 1e-10)
    return [
        Candidate(q, bound, z[index], not bool(moving[index]))
        for index, (bound, q) in ((i, kept) for i, kept in enumerate(best) if kept is not None)
    ]


def _long_paths(density: Density, z: Tensor, seed: int) -> list[Candidate]:
    noise = fixed_draws(_DRAWS, density.dim, seed).to(z)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in z:
        end, best, converged = start, None, False
        for _ in range(_ROUNDS):
            scale = _spread(density, end, generator)
            q = Affine(end, scale)
            bound = elbo(density, q, noise)
            if best is None or bound > best[0]:
                best = (bound, q)
            if converged:
                break

            def climbed(
                x: Tensor, end: Tensor = end, scale: Tensor = scale
            ) -> tuple[Tensor, Tensor]:
                value, grad = density.value_and_grad((end + scale * x).unsqueeze(0))
                return value[0], scale * grad[0]

            x, slope, _ = maximize(climbed, torch.zeros_like(end), _STEPS, _FLAT)
            end = end + scale * x
            converged = slope <= _FLAT
        if best is not None and math.isfinite(best[0]):
            found.append(Candidate(best[1], best[0], end, converged))
    return found


def _spread(density: Density, z: Tensor, generator: torch.Generator) -> Tensor:
    """Return the standard deviations that the diagonal of the Hessian gives."""
    signs = torch.randint(2, (_PROBES, len(z)), generator=generator).to(z) * 2 - 1
    products = density.curvature(z.expand(_PROBES, -1), signs)
    diagonal = torch.nan_to_num((products * signs).mean(0), nan=0.0, posinf=0.0, neginf=0.0).abs()
    size = diagonal.median().clamp(min=torch.finfo(z.dtype).tiny)
    return torch.where(diagonal > _FLOOR * size, diagonal, size).rsqrt()


def _inverse_root(hessian: Tensor) -> Tensor:
    """Return R with R Rᵀ = |H|⁻¹, after scaling the diagonal to one."""
    hessian = torch.nan_to_num(hessian, nan=0.0, posinf=0.0, neginf=0.0)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1).abs()
    tiny = torch.finfo(hessian.dtype).tiny
    scale = torch.where(diagonal > tiny, diagonal, 1.0).rsqrt()
    scaled = scale.unsqueeze(-1) * hessian * scale.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(scaled)
    values = values.abs()
    largest = values.amax(-1, keepdim=True)
    # Without any curvature, or where it is not a number, a step is the gradient.
    values = torch.where(largest > tiny, values, 1.0)
    floor = _FLOOR * values.amax(-1, keepdim=True)
    return scale.unsqueeze(-1) * vectors * values.maximum(floor).rsqrt().unsqueeze(-2)


def _lower(root: Tensor) -> Tensor:
    """Return the lower triangle L of positive diagonal with L Lᵀ = R Rᵀ."""
    upper = torch.linalg.qr(root.mT).R
    return upper.mT * upper.diagonal().sign()
