"""Normals of low rank, for more dimensions than matrices of D by D are formed in."""

import torch
from torch import Tensor

from pyro_ext.training.auto.affine import Affine
from pyro_ext.training.auto.ascend import WORTH, ascend
from pyro_ext.training.auto.density import Density

__all__ = ["widen"]

_RATE = 0.05
_START = 0.1


def widen(density: Density, base: Affine, rank: int, seed: int) -> Affine:
    r"""Return the normal of low rank whose bound is highest, from a diagonal one.

    .. math:: z = \mu + s \circ (m + t \circ (\varepsilon_1 + F \varepsilon_2))

    It is climbed with fresh draws: F has D times the rank of entries, and a fixed set of fewer
    than some D draws has correlations enough between ε₁ and ε₂ for F to feed on.

    Args:
        density: The target.
        base: The diagonal normal of μ and s.
        rank: Number of columns of F.
        seed: Seed.
    """
    q = _LowRank(base, rank, seed)
    for gain in ascend(density, q, rate=_RATE, seed=seed):
        if gain < WORTH:
            break
    return q.map()


class _LowRank:
    def __init__(self, base: Affine, rank: int, seed: int) -> None:
        self.base, self.rank = base, rank
        dim, generator = len(base.loc), torch.Generator().manual_seed(seed)
        # At exactly zero the gradient of the columns vanishes.
        columns = torch.randn((dim, rank), generator=generator, dtype=base.loc.dtype)
        self.mean, self.log_scale = (base.loc.new_zeros(dim) for _ in range(2))
        self.columns = columns * _START / rank**0.5

    @property
    def noise_dim(self) -> int:
        return len(self.base.loc) + self.rank

    def parameters(self) -> list[Tensor]:
        return [self.mean, self.log_scale, self.columns]

    def draw(self, noise: Tensor) -> Tensor:
        own, shared = noise.split([len(self.base.loc), self.rank], -1)
        inner = self.mean + self.log_scale.exp() * (own + shared @ self.columns.mT)
        return self.base.loc + self.base.factor * inner

    def score(self, z: Tensor) -> Tensor:
        q = self.map()
        return -q.solve(z - q.loc)

    def map(self) -> Affine:
        mean, log_scale, columns = (param.detach() for param in self.parameters())
        loc = self.base.loc + self.base.factor * mean
        return Affine(loc, self.base.factor * log_scale.exp(), columns.clone())
