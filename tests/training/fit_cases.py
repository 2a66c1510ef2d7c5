"""A latent for each of ten numbers, and a quiet fit."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.optim import Adam

import pyro_ext as px

__all__ = ["X", "adam", "amortized", "local", "quiet"]

X = torch.linspace(-2, 3, 10)
quiet = partial(px.fit, progress=False)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def amortized(**options):
    return px.AutoAmortized(local, nn.Unflatten(0, (-1, 1)), **options)


def adam(params):
    return Adam(params, lr=0.05)
