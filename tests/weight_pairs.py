"""A model and a guide of one local latent, and their log weights written out."""

import pyro
import pyro.distributions as dist
import torch
from reference import log_normal
from torch import Tensor

__all__ = [
    "NUM",
    "X",
    "close",
    "hierarchy",
    "local_guide",
    "local_log_p",
    "local_log_q",
    "local_model",
]

NUM = 6
X = torch.linspace(-1.5, 2.0, NUM)


def close(got: Tensor, expected: Tensor) -> None:
    """The same numbers up to rounding, and the same shape."""
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def local_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.3, 1.0))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def local_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * x, 1.1))


def local_log_p(z: Tensor, x: Tensor = X, weight: Tensor | float = 1.0) -> Tensor:
    return log_normal(z, 0.3, 1.0) + weight * log_normal(x, z, 0.8)


def local_log_q(z: Tensor, x: Tensor = X) -> Tensor:
    return log_normal(z, 0.4 * x, 1.1)


def hierarchy(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)
