"""Models that take keyword arguments: the same numbers as with positional ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_ext as px

X = torch.linspace(-1.0, 2.0, 5)
SCALE = torch.tensor(0.7)


def model(x: Tensor, scale: Tensor | float = 50.0) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def encoder(x: Tensor, scale: Tensor | float = 50.0) -> Tensor:
    return (x / (1 + scale**2)).unsqueeze(-1)


def plates(x: Tensor, scale: Tensor | float = 50.0) -> pyro.plate:
    return pyro.plate("data", len(x), dim=-1)


GUIDES: dict[str, Callable[[], Any]] = {
    "AutoAmortized": lambda: px.AutoAmortized(model, encoder, create_plates=plates),
    "AutoPerDatapoint": lambda: px.AutoPerDatapoint(model),
    "AutoJoint": lambda: px.AutoJoint(model, create_plates=plates),
}
EVERY_GUIDE = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES.keys())


def built(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    guide = build()
    guide.setup(X, scale=SCALE)
    return guide


@EVERY_GUIDE
def test_gaps(build: Callable[[], Any]) -> None:
    guide = built(build)
    options = {"num_samples": 100, "num_steps": 10, "seed": 0}
    found = px.gaps(model, guide, X, scale=SCALE, **options)
    expected = px.gaps(model, guide, X, SCALE, **options)
    assert torch.equal(found.approximation.value, expected.approximation.value)
    assert torch.equal(found.amortization.value, expected.amortization.value)
    other = px.gaps(model, guide, X, **options)
    assert not torch.equal(found.amortization.value, other.amortization.value)
    assert guide.model is model


@EVERY_GUIDE
def test_sbc(build: Callable[[], Any]) -> None:
    guide = built(build)
    options = {"num_simulations": 4, "num_draws": 9, "num_steps": 10, "seed": 0}
    found = px.sbc(model, guide, X, scale=SCALE, **options)
    expected = px.sbc(model, guide, X, SCALE, **options)
    np.testing.assert_array_equal(found.scores["z"], expected.scores["z"])
    other = px.sbc(model, guide, X, **options)
    assert not np.array_equal(found.scores["z"], other.scores["z"])


def test_sbc_with_a_fit_of_ones_own() -> None:
    def refit(x: Tensor, scale: Tensor) -> Callable[..., Any]:
        def guide(x: Tensor, scale: Tensor) -> None:
            with pyro.plate("data", len(x)):
                sd = (1 + scale**-2) ** -0.5
                pyro.sample("z", dist.Normal(x * sd**2 / scale**2, sd))

        return guide

    found = px.sbc(model, refit(X, SCALE), X, scale=SCALE, refit=refit, num_simulations=40, seed=0)
    assert found.verdict == "no fault found in 40 simulations"
