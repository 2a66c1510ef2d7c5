"""Adam on fresh draws, with the gradient that sticks to the path."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_ext.training.auto.affine import Map, log_ratios
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.replayed import Step, loss_and_grads

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

    def loss(half: Tensor) -> Tensor:
        """Return a loss with the gradient above; not a number where no draw is good."""
        z = q.draw(torch.cat([half, -half]))
        value, grad = density.value_and_grad(z.detach())
        path = grad - q.score(z.detach())
        good = torch.isfinite(path).all(-1) & torch.isfinite(value)
        path = path.masked_fill(~good[:, None], 0.0)
        return torch.where(good.any(), -(z * path).sum() / len(z), math.nan)

    def draw(generator: torch.Generator = generator) -> Tensor:
        shape = (_BATCH // 2, q.noise_dim)
        return torch.randn(shape, generator=generator, dtype=density.dtype)

    params, best, before, step = q.parameters(), _copied(q), ratios(), None
    for steps in _STEPS:
        spent = density.num_gradients
        with _trained(params):
            step = step or loss_and_grads(loss, params, draw(torch.Generator().manual_seed(seed)))
            _round(step, draw, params, steps, rate)
        density.num_gradients = spent + steps * _BATCH  # a recorded loss counts none
        after = ratios()
        gain = after - before
        mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
        if not mean > _SIGMAS * error:
            for param, value in zip(params, best, strict=True):
                param.copy_(value)
            return
        best, before = _copied(q), after
        yield mean


def _round(
    step: Step, draw: Callable[[], Tensor], params: list[Tensor], steps: int, rate: float
) -> None:
    optimizer = torch.optim.Adam(params, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value, grads = step(draw())
        if not math.isfinite(value):
            continue
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        torch.nn.utils.clip_grad_norm_(params, _MAX_NORM)
        optimizer.step()
        schedule.step()


@contextmanager
def _trained(params: list[Tensor]) -> Iterator[None]:
    """Within this context parameters want gradients."""
    for param in params:
        param.requires_grad_()
    try:
        yield
    finally:
        for param in params:
            param.requires_grad = False


def _copied(q: Movable) -> list[Tensor]:
    return [param.detach().clone() for param in q.parameters()]
