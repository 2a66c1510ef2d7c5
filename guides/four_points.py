"""Guides for the four points, written by hand: a Gaussian, and a network on noise.

Example:
    >>> from models.four_points import data
    >>> GUIDES["implicit"]()(data()).shape
    torch.Size([4, 2])
"""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext.nn import MLP

__all__ = ["GUIDES", "Gaussian", "Implicit"]


class Gaussian(nn.Module):
    """A guide with a density: mean and standard deviations from a network of x.

    Args:
        hidden: Width of its two layers.
    """

    def __init__(self, *, hidden: int = 64) -> None:
        super().__init__()
        self.net = MLP(4, (hidden, hidden), 4)

    def forward(self, x: Tensor) -> Tensor:
        """Sample ``z`` in the plate ``"data"``."""
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            z: Tensor = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
        return z


class Implicit(nn.Module):
    """A guide without a density: a network of x and of noise.

    Args:
        noise_dim: Size of the noise.
        hidden: Width of its two layers.
    """

    def __init__(self, *, noise_dim: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.noise_dim = noise_dim
        self.net = MLP(4 + noise_dim, (hidden, hidden), 2)

    def forward(self, x: Tensor) -> Tensor:
        """Sample ``z`` in the plate ``"data"``, through an auxiliary site ``e``."""
        with pyro.plate("data", len(x)):
            noise = dist.Normal(torch.zeros(self.noise_dim), torch.ones(self.noise_dim))
            e = pyro.sample("e", noise.to_event(1), infer={"is_auxiliary": True})
            z = self.net(torch.cat([x.expand(*e.shape[:-1], 4), e], -1))
            return pyro.sample("z", dist.Delta(z, event_dim=1))


GUIDES: Mapping[str, Callable[..., nn.Module]] = {"gaussian": Gaussian, "implicit": Implicit}
