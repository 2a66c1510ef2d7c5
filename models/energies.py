r"""Two-dimensional energies: densities without samples, known up to a constant or with it.

.. math:: p(z) = e^{-U(z)} / Z

Four energies that Gaussians do not fit, of the paper that brought flows to variational inference,
a funnel and a banana. The paper's energies 2 to 4 go on for ever along the first axis; here walls
stand at ±4. Z is a matter of quadrature.

References:
    Variational Inference with Normalizing Flows (Rezende and Mohamed, 2015), table 1 |
    https://arxiv.org/abs/1505.05770
    Slice sampling (Neal, 2003), section 8: the funnel | https://doi.org/10.1214/aos/1056562461
    An adaptive Metropolis algorithm (Haario, Saksman and Tamminen, 2001): the banana |
    https://doi.org/10.2307/3318737

Example:
    >>> sorted(ENERGIES)
    ['banana', 'energy 1', 'energy 2', 'energy 3', 'energy 4', 'funnel']
    >>> abs(log_normalizer(ENERGIES["funnel"])) < 1e-3  # a density already
    True
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import relu

__all__ = ["ENERGIES", "Energy", "log_normalizer", "sample_banana", "sample_funnel"]


@dataclass(frozen=True)
class Energy:
    """A density up to a constant, as a Pyro model without data.

    Args:
        log_density: -U(z), from ``(*batch, 2)`` to ``batch``.
        box: Limits of z1 and of z2 that hold all but a negligible part.
    """

    log_density: Callable[[Tensor], Tensor]
    box: tuple[tuple[float, float], tuple[float, float]]

    def __call__(self) -> Tensor:
        """Site ``z`` (vector latent) with a flat prior, and the energy as a factor."""
        flat = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1).mask(mask=False)
        z: Tensor = pyro.sample("z", flat)
        pyro.factor("energy", self.log_density(z))
        return z

    def grid(self, num: int = 400) -> tuple[Tensor, float]:
        """Return points of the box, shape ``(num, num, 2)``, and the area of one cell.

        Args:
            num: Points along each axis; those of z1 are the second dimension.
        """
        first, second = (torch.linspace(low, high, num) for low, high in self.box)
        points = torch.stack(torch.meshgrid(first, second, indexing="xy"), -1)
        return points, float((first[1] - first[0]) * (second[1] - second[0]))


def log_normalizer(energy: Energy, num: int = 2000) -> float:
    """Return log Z, by quadrature on a grid.

    Args:
        energy: The energy.
        num: Points along each axis.
    """
    points, area = energy.grid(num)
    return float(energy.log_density(points).flatten().logsumexp(0)) + math.log(area)


def sample_funnel(num: int) -> Tensor:
    """Draw from the funnel, shape ``(num, 2)``."""
    first = FUNNEL_SD * torch.randn(num)
    return torch.stack([first, (first / 2).exp() * torch.randn(num)], -1)


def sample_banana(num: int) -> Tensor:
    """Draw from the banana, shape ``(num, 2)``."""
    first = BANANA_SD * torch.randn(num)
    second = BEND * (first**2 - BANANA_SD**2) + torch.randn(num)
    return torch.stack([first, second], -1)


FUNNEL_SD = 1.5
BANANA_SD, BEND = 2.0, 0.5


def _normal(x: Tensor, scale: float) -> Tensor:
    return -0.5 * (x / scale) ** 2


def _ring(z: Tensor) -> Tensor:
    sides = torch.logaddexp(_normal(z[..., 0] - 2, 0.6), _normal(z[..., 0] + 2, 0.6))
    return _normal(z.norm(dim=-1) - 2, 0.4) + sides


def _wave(z: Tensor) -> Tensor:
    return (2 * math.pi * z[..., 0] / 4).sin()


def _walls(z: Tensor) -> Tensor:
    return _normal(relu(z[..., 0].abs() - 4), 0.3)


def _one_wave(z: Tensor) -> Tensor:
    return _normal(z[..., 1] - _wave(z), 0.4) + _walls(z)


def _split_wave(z: Tensor) -> Tensor:
    gap = 3 * _normal(z[..., 0] - 1, 0.6).exp()
    below = z[..., 1] - _wave(z)
    return torch.logaddexp(_normal(below, 0.35), _normal(below + gap, 0.35)) + _walls(z)


def _forked_wave(z: Tensor) -> Tensor:
    gap = 3 * ((z[..., 0] - 1) / 0.3).sigmoid()
    below = z[..., 1] - _wave(z)
    return torch.logaddexp(_normal(below, 0.4), _normal(below + gap, 0.35)) + _walls(z)


def _funnel(z: Tensor) -> Tensor:
    width = (z[..., 0] / 2).exp()
    log_first: Tensor = dist.Normal(0.0, FUNNEL_SD).log_prob(z[..., 0])
    return log_first + dist.Normal(0.0, width).log_prob(z[..., 1])


def _banana(z: Tensor) -> Tensor:
    log_first: Tensor = dist.Normal(0.0, BANANA_SD).log_prob(z[..., 0])
    bend = BEND * (z[..., 0] ** 2 - BANANA_SD**2)
    return log_first + dist.Normal(bend, 1.0).log_prob(z[..., 1])


ENERGIES: Mapping[str, Energy] = {
    "energy 1": Energy(_ring, ((-4.5, 4.5), (-4.5, 4.5))),
    "energy 2": Energy(_one_wave, ((-6.0, 6.0), (-5.0, 5.0))),
    "energy 3": Energy(_split_wave, ((-6.0, 6.0), (-7.0, 5.0))),
    "energy 4": Energy(_forked_wave, ((-6.0, 6.0), (-7.0, 5.0))),
    "funnel": Energy(_funnel, ((-9.0, 9.0), (-150.0, 150.0))),
    "banana": Energy(_banana, ((-12.0, 12.0), (-10.0, 80.0))),
}
