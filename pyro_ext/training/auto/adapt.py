"""Proposals that are fitted to weighted draws, round by round."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.training.auto.affine import Affine, Map
from pyro_ext.training.auto.correct import Part, Pool, defensive, draw_pool, flat_latents
from pyro_ext.training.auto.density import Density

__all__ = ["adapted_pool", "matched", "split", "weighted_moments"]

_DEGREES = 5.0
_SLICES, _ITERATIONS = 5, 5
_MAX_DIM_OF_STUDENT = 20  # with more dims most of a Student-t lies too far out
_ROUNDS = 3


def adapted_pool(
    density: Density,
    q: Map,
    num: int,
    max_num: int,
    limit: float,
    generator: torch.Generator,
) -> Pool:
    """Draw from q and its Student-t, then from proposals that are fitted to the draws.

    It ends where the answer's error is small enough or nothing helps. The draws that it returns
    are fresh: those by which a proposal was fitted and chosen flatter it.

    Args:
        density: The target.
        q: The guide.
        num: Number of draws of a round.
        max_num: Largest number of draws.
        limit: Error that is small enough, see ``Pool.fault``.
        generator: Random numbers.

    References:
        Population Monte Carlo (Cappé et al., 2004) | https://doi.org/10.1198/106186004X12803
    """

    def draw(parts: tuple[Part, ...], num: int) -> tuple[Pool, tuple[Part, ...]]:
        return draw_pool(density, parts, num, generator), parts

    def error(found: tuple[Pool, tuple[Part, ...]]) -> float:
        pool = found[0]
        return pool.fault(flat_latents(density, pool.z))

    own = defensive(q, density.dim)
    best = draw(own, num)
    for _ in range(_ROUNDS):
        if error(best) <= limit:
            break
        fitted = [parts for parts in (matched(best[0]), split(best[0])) if parts]
        tried = [draw((*own, *parts), num) for parts in fitted]
        best = min([best, *tried], key=error)
    if not best[0].usable:
        return best[0]
    while True:
        best = draw(best[1], num)
        # Errors fall with the root of the number of draws, at best.
        hopeless = error(best) * (num / max_num) ** 0.5 > limit
        if error(best) <= limit or 2 * num > max_num or hopeless:
            return best[0]
        num *= 2


def matched(pool: Pool) -> tuple[Part, ...]:
    """Return a Student-t with the mean and covariance of weighted draws, if they have rank.

    It minimizes KL(p‖q), so it covers what a normal that maximizes the ELBO leaves out.

    Args:
        pool: The draws.
    """
    if pool.effective < 4 * pool.z.shape[-1]:
        return ()
    mean, covariance = weighted_moments(pool.z, pool.weights)
    factor, failed = torch.linalg.cholesky_ex(covariance * (_DEGREES - 2) / _DEGREES)
    if int(failed):
        return ()
    return (Part(Affine(mean, factor), _DEGREES, pool.z.shape[-1]),)


def split(pool: Pool) -> tuple[Part, ...]:
    """Return parts for slices across the most skewed coordinate; none where draws are too few.

    They are improved by expectation maximization. A scale and what it scales, the
    usual reason for skew, are close to normal within a slice.

    Args:
        pool: The draws.

    References:
        A class of adaptive importance sampling weighted EM algorithms for efficient and robust
        posterior and predictive simulation (Hoogerheide et al., 2012) | https://doi.org/10.1016/j.jeconom.2012.06.011
    """
    z, w, dim = pool.z, pool.weights, pool.z.shape[-1]
    if pool.effective < 4 * dim * _SLICES:
        return ()
    mean, covariance = weighted_moments(z, w)
    # Clamped, so that it is skew that counts and not a far draw of a symmetric coordinate.
    cubes = ((z - mean) / covariance.diagonal().sqrt()).clamp(-2, 2) ** 3
    coordinate = z[:, int((w @ cubes).abs().argmax())]
    order = coordinate.argsort()
    slices = torch.empty_like(order)
    slices[order] = (w[order].cumsum(0) * _SLICES).long().clamp(max=_SLICES - 1)
    shares = torch.nn.functional.one_hot(slices, _SLICES).to(w)
    parts = _normals(z, w, shares)
    for _ in range(_ITERATIONS):
        if not parts:
            return ()
        shares = torch.stack([part.log_prob(z) for part in parts], 1).softmax(1)
        parts = _normals(z, w, shares)
    if dim > _MAX_DIM_OF_STUDENT:
        return parts
    shrink = ((_DEGREES - 2) / _DEGREES) ** 0.5
    normals = [part.q for part in parts if isinstance(part.q, Affine)]
    return tuple(Part(Affine(q.loc, shrink * q.factor), _DEGREES, dim) for q in normals)


def _normals(z: Tensor, w: Tensor, shares: Tensor) -> tuple[Part, ...]:
    """Return a normal per share, each correlation drawn to their mean by D draws' weight.

    Not each covariance: the widest share would widen all others.
    """
    dim, found, sizes = z.shape[-1], [], []
    for share in shares.unbind(1):
        own = w * share
        total = own.sum()
        sizes.append(total.square() / own.square().sum())
        found.append(weighted_moments(z, own / total))
    widths = [torch.outer(c.diagonal(), c.diagonal()).sqrt() for _, c in found]
    pooled = torch.stack([c / width for (_, c), width in zip(found, widths, strict=True)]).mean(0)
    parts = []
    for (mean, covariance), width, size in zip(found, widths, sizes, strict=True):
        shrunk = (size * covariance + dim * width * pooled) / (size + dim)
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        if int(failed):
            return ()
        parts.append(Part(Affine(mean, factor), math.inf, dim))
    return tuple(parts)


def weighted_moments(
    z: Float[Tensor, " draws dim"], w: Float[Tensor, " draws"]
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim dim"]]:
    """Return mean and covariance of weighted draws.

    Args:
        z: The draws.
        w: Their weights, which add up to one.
    """
    mean = w @ z
    centred = (z - mean) * w.sqrt().unsqueeze(-1)
    return mean, centred.mT @ centred
