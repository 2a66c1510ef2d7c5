"""Modules under a name by which Pyro's store knows another one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_ext as px

X = torch.arange(15.0).reshape(5, 3) / 15


def decoded(decoder, *, name="decoder", update=False):
    def model(x):
        pyro.module(name, decoder, update_module_params=update)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return model


def step(model, guide, x):
    optim = pyro.optim.Adam({"lr": 0.1})
    return px.CompiledSVI(model, guide, optim, px.ELBO(), compile=False).step(x)


def pyro_step(model, guide, x):
    return pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), px.ELBO()).step(x)


def fit(model, guide, x):
    return px.fit(model, guide, data=x, num_steps=2, progress=False)


@pytest.fixture
def x():
    return X.to(torch.get_default_dtype())


@pytest.mark.parametrize("train", [pyro_step, step, fit])
def test_a_second_module_of_one_name(train, x):
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    model = decoded(first)
    train(model, px.AutoPerDatapoint(model), x)
    model = decoded(second)
    before = second.weight.clone()
    with pytest.raises(ValueError, match=r"^pyro.module 'decoder': expected the module that"):
        train(model, px.AutoPerDatapoint(model), x)
    assert torch.equal(second.weight, before)
    pyro.clear_param_store()
    train(model, px.AutoPerDatapoint(model), x)
    assert not torch.equal(second.weight, before)


def test_model_and_guide_use_one_name_for_two(x):
    model, encoder = decoded(nn.Linear(2, 3), name="net"), nn.Linear(3, 2)

    def guide(x):
        pyro.module("net", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"pyro.module 'net': expected the module"):
        step(model, guide, x)


def test_a_module_that_takes_over_what_is_stored(x):
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    model = decoded(first)
    step(model, px.AutoPerDatapoint(model), x)
    model = decoded(second, update=True)
    step(model, px.AutoPerDatapoint(model), x)
    assert second.weight is first.weight


def test_a_module_of_that_name_which_the_loss_does_not_use(x):
    first = nn.Linear(2, 3)
    model = decoded(first)

    def other(x):
        pyro.module("decoder", nn.Linear(2, 3))
        model(x)

    step(model, px.AutoPerDatapoint(model), x)
    before = first.weight.clone()
    step(other, px.AutoPerDatapoint(other), x)
    assert not torch.equal(first.weight, before)
