"""Adam on fresh draws, with the gradient that sticks to the path."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_ext.training.auto.affine import Map, log_ratios
from pyro_ext.training.auto.density import Density

__all__ = ["WORTH", "Movable", "ascend"]

_BATCH = 64
_STEPS = (500, 1000, 2000)
_HELD_OUT, _ENTRIES, _LEAST = 16_384, 4e6, 2048
_MAX_NORM = 10.0
_SIGMAS = 3.0
WORTH = 0.05
"""Nats for which another round of steps is worth its cost."""


@runtime_checkable
class Movable(Protocol):
    """A guide whose parameters move."""

    @property
    def noise_dim(self) -> int:
        """Number of noise variables of a draw."""

    def parameters(self) -> list[Tensor]:
        """Return the parameters."""

    def draw(self, noise: Tensor) -> Tensor:
        """Return z, differentiable in the parameters."""

    def score(self, z: Tensor) -> Tensor:
        """Return ∇ log q(z), constant in the parameters."""

    def map(self) -> Map:
        """Return the map of the parameters as they are."""


def ascend(density: Density, q: Movable, *, rate: float, seed: int) -> Iterator[float]:
    r"""Climb the bound with fresh draws, in rounds that get longer; yield the gain of each.

    The target is near a standard normal already in the coordinates of q, so that one step size
    fits all: Adam along a cosine. The gradient sticks to the path, whose noise vanishes as q
    reaches p:

    .. math:: \nabla_\phi \mathcal{L} = \mathbb{E}_\varepsilon\!\left[
        \nabla_z\!\left(\log p(x, z) - \log q_\phi(z)\right) \nabla_\phi z_\phi(\varepsilon)\right]

    A round whose gain, on draws held out, is within three standard errors is taken back and ends
    the climb; the caller may end it sooner. Parameters want gradients within a round alone.

    Args:
        density: The target.
        q: The guide, whose parameters change.
        rate: Step size of Adam to begin with.
        seed: Seed of the draws.

    References:
        Sticking the Landing (Roeder et al., 2017) | https://arxiv.org/abs/1703.09194
        Advances in Black-Box VI (Agrawal et al., 2020) | https://arxiv.org/abs/2006.10343
    """
    generator = torch.Generator().manual_seed(seed)
    num = int(max(_LEAST, min(_HELD_OUT, _ENTRIES / density.dim)))
    held_out = torch.randn((num, density.dim), generator=generator, dtype=density.dtype)

    def ratios() -> Tensor:
        with torch.no_grad():
            return log_ratios(density, q.map(), held_out)

    best, before = _copied(q), ratios()
    for steps in _STEPS:
        _round(density, q, steps, rate, generator)
        after = ratios()
        gain = after - before
        mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
        if not mean > _SIGMAS * error:
            for param, value in zip(q.parameters(), best, strict=True):
                param.copy_(value)
            return
        best, before = _copied(q), after
        yield mean


def _round(
    density: Density, q: Movable, steps: int, rate: float, generator: torch.Generator
) -> None:
    params = [param.requires_grad_() for param in q.parameters()]
    optimizer = torch.optim.Adam(params, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shape = (_BATCH // 2, q.noise_dim)
    for _ in range(steps):
        half = torch.randn(shape, generator=generator, dtype=density.dtype)
        z = q.draw(torch.cat([half, -half]))
        value, grad = density.value_and_grad(z.detach())
        path = grad - q.score(z.detach())
        good = torch.isfinite(path).all(-1) & torch.isfinite(value)
        if not bool(good.any()):
            continue
        loss = -(z * path)[good].sum() / len(z)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, _MAX_NORM)
        optimizer.step()
        schedule.step()
    for param in params:
        param.requires_grad = False


def _copied(q: Movable) -> list[Tensor]:
    return [param.detach().clone() for param in q.parameters()]
