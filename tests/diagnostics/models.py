"""Conjugate models, their data replaced, and guides that are off by a known amount."""

import dataclasses

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import Normal

from pyro_ext.testing import (
    GammaPoisson,
    LinearRegression,
    NormalGlobal,
    NormalHierarchy,
    NormalLocal,
)

MODELS = {
    "local": NormalLocal.simulate(12, scale=0.7),
    "local, masked": dataclasses.replace(NormalLocal.simulate(6), mask=torch.arange(6) < 4),
    "global": NormalGlobal.simulate(12),
    "hierarchy": NormalHierarchy.simulate(8),
    "regression": LinearRegression.simulate(12),
    "counts, local": GammaPoisson.simulate(12, local=True),
    "counts, global": GammaPoisson.simulate(12, local=False),
}
Z_LIMIT = Normal(0.0, 1.0).icdf(torch.tensor(1 - 0.5e-6, dtype=torch.float64)).item()


def with_data(exact, args):
    """The same model with other data, as the arguments of the model."""
    name = "y" if isinstance(exact, LinearRegression) else "x"
    place = 1 if isinstance(exact, LinearRegression) else 0
    return dataclasses.replace(exact, **{name: args[place]})


def scaled(exact, factor):
    """Return the exact guide of local latents with its sds scaled: wider for a factor above 1."""

    def guide(x):
        mean, covariance = exact.posterior()
        with pyro.plate("data", len(x), exact.subsample_size) as rows:
            sd = factor * covariance[rows, 0, 0].sqrt()
            pyro.sample("z", dist.Normal(mean[rows, 0], sd))

    return guide


def off(exact, factor=1.0, shift=0.0):
    """The exact answer of ``NormalLocal``: sds scaled, means moved by ``shift`` sds, for any x."""
    variance = 1 / (1 + 1 / exact.scale**2)

    def guide(x):
        with pyro.plate("data", len(x), exact.subsample_size) as rows:
            mean = variance * x[rows] / exact.scale**2
            sd = variance**0.5
            pyro.sample("z", dist.Normal(mean + shift * sd, factor * sd))

    return guide


def divergence(factor=1.0, shift=0.0):
    """KL(q || p) per datum of a normal q that is off like this."""
    return (factor**2 + shift**2 - 1) / 2 - torch.tensor(factor).log().item()
