"""A model with parameters of its own, and guides of every kind for it."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from cases import EXACT, LOSSES
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_ext as px

__all__ = ["FROZEN", "GUIDES", "Guide", "Model", "X", "every_loss"]

every_loss = pytest.mark.parametrize("name", LOSSES)
FROZEN = [*EXACT, "PIWAE-reparam", "WakeSleep-wake"]
"""Estimators that run the guide again on its own draws."""
X = torch.randn(10, generator=torch.Generator().manual_seed(5)) + 3


class Model(PyroModule):
    """z ~ N(level, 1), x ~ N(z, exp(noise)): parameters of a model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.0))
        self.noise = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.level, 1.0))
            pyro.sample("x", dist.Normal(z, self.noise), obs=x)


class Guide(PyroModule):
    """An encoder by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)))


GUIDES: dict[str, Callable[[Any], Any]] = {
    "hand-written": lambda model: Guide(),
    "AutoPerDatapoint": px.AutoPerDatapoint,
    "AutoAmortized": lambda model: px.AutoAmortized(model, lambda x: x[:, None]),
    "AutoJoint": px.AutoJoint,
    "AutoNormal": pyro_auto.AutoNormal,
}
