"""Do other starts lead to other modes that hold mass?"""

import math

import torch

from pyro_ext.training.auto.affine import Affine, elbo, fixed_draws
from pyro_ext.training.auto.climb import climb
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.start import MAX_DENSE, Candidate, paths
from pyro_ext.training.auto.verdict import Finding

__all__ = ["other_modes"]

_NATS = 7.0
"""A mode that is lower by this has a thousandth of the mass."""

_HOPELESS = 50.0
_MIN_DRAWS, _REACH = 128, 8.0


def other_modes(density: Density, q: Affine, candidates: list[Candidate], seed: int) -> Finding:
    """Climb again from each path that ended far from q, and compare the masses.

    As many paths again start around q, far out in its own scale, where the first ones, which know
    nothing of the scale, may all have started in one basin.

    Args:
        density: The target.
        q: The fitted normal.
        candidates: The paths.
        seed: Seed of the draws.
    """
    dim = density.dim
    num = _MIN_DRAWS if dim > MAX_DENSE else max(_MIN_DRAWS, 4 * dim)
    noise = fixed_draws(num, dim, seed).to(q.loc)
    best = elbo(density, q, noise)
    far = dim + 8 * math.sqrt(2 * dim) + 32
    generator = torch.Generator().manual_seed(seed)
    shape = (len(candidates), dim)
    outside = _REACH * torch.randn(shape, generator=generator, dtype=q.loc.dtype)
    near = 0
    found: list[tuple[Affine, float]] = []
    for candidate in [*candidates, *paths(density, q.push(outside), seed)]:
        points = torch.stack([candidate.q.loc, candidate.end])
        square = q.pull(points).square().sum(-1)
        if bool((square < far).any()):
            near += math.isfinite(candidate.elbo)  # a path that died has found nothing
            continue
        if any(float(other.pull(points[:1]).square().sum()) < far for other, _ in found):
            continue
        if not candidate.elbo > best - _HOPELESS - 5 * dim:
            continue
        wide = dim > MAX_DENSE
        other = climb(density, candidate.q if wide else candidate.q.full(), noise)
        if float(q.pull(other.loc.unsqueeze(0)).square().sum()) < far:
            near += 1
            continue
        found.append((other, elbo(density, other, noise) - best))
    rivals = [gap for _, gap in found if gap > -_NATS]
    if rivals:
        mass = sum(math.exp(min(gap, 50.0)) for gap in rivals)
        share = mass / (1 + mass)
        return Finding(
            passed=False,
            text=f"other starts lead to {len(rivals)} other mode(s) with {share:.1%} of the mass",
        )
    if near < 2:
        return Finding(
            passed=False, text=f"only {near} of {2 * len(candidates)} starts lead to this mode"
        )
    return Finding(passed=True, text=f"{near} of {2 * len(candidates)} starts agree")
