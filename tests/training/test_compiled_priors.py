"""Priors that were made, and expanded, while Pyro's validation was on check values for good."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyro_ext as px

X = torch.linspace(-1.0, 2.0, 6)


class Network(PyroModule):
    """A layer with a prior, as Pyro's tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](1, 1)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.layer.bias = PyroSample(dist.Laplace(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x: Tensor) -> None:
        mean = self.layer(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def shared(prior: Any) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.sum(-1), 1.0), obs=x)

    return model


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "a layer": (Network, 1),
    "normals": (lambda: shared(dist.Normal(0.0, 1.0).expand([2]).to_event(1)), 3),
    "transformed": (lambda: shared(dist.LogNormal(0.0, 1.0).expand([2]).to_event(1)), 3),
    "masked": (lambda: shared(dist.Gamma(2.0, 1.0).expand([2]).to_event(1).mask(mask=True)), 3),
}


@pytest.mark.parametrize(("make", "particles"), MODELS.values(), ids=MODELS)
def test_a_step_is_recorded_to_the_bits_of_eager_ones(
    make: Callable[[], Any], particles: int
) -> None:
    """The warning that a step runs eagerly would be an error here."""
    losses = []
    for compile_ in (False, "record"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = make()
        guide = px.AutoJoint(model)
        adam = pyro.optim.Adam({"lr": 0.01})
        svi = px.CompiledSVI(model, guide, adam, px.ELBO(particles), compile=compile_)
        losses.append([svi.step(X) for _ in range(4)])
    assert losses[0] == losses[1]


def test_the_prior_itself_still_checks() -> None:
    prior = dist.LogNormal(0.0, 1.0).expand([2]).to_event(1)
    model = shared(prior)
    guide = px.AutoJoint(model)
    svi = px.CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), px.ELBO(), compile="record")
    for _ in range(3):
        svi.step(X)
    with pytest.raises(ValueError, match="within the support"):
        prior.log_prob(torch.tensor([-1.0, 1.0]))
