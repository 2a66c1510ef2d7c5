"""What a guide promises of unusual supports, encoders and copies."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule

import pyro_ext as px

X = torch.linspace(-1.0, 1.0, 6)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_function_of_parameters_that_nobody_trains_raises():
    network = torch.nn.Linear(1, 2)
    guide = px.AutoAmortized(local, lambda x: network(x.unsqueeze(-1)))
    with pytest.raises(ValueError, match=r"a function of 2 trainable tensors.*Write: Auto"):
        guide(X)


def test_a_function_of_parameters_that_are_known_does_not():
    network, frozen = torch.nn.Linear(1, 2), torch.nn.Linear(1, 2)
    frozen.requires_grad_(requires_grad=False)

    def registered(x):
        pyro.module("network", network)
        return network(x.unsqueeze(-1))

    for encoder in (registered, lambda x: frozen(x.unsqueeze(-1)), lambda x: x.unsqueeze(-1)):
        px.AutoAmortized(local, encoder)(X)


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)

    def forward(self, x):
        return self.layer(x.unsqueeze(-1))


def test_a_guide_whose_encoder_is_a_pyro_module_is_copied_and_listed():
    guide = px.AutoAmortized(local, Encoder())
    guide(X)
    other = copy.deepcopy(guide)
    with torch.no_grad():
        other.encoder.layer.bias.add_(1.0)
    assert not torch.equal(other.encoder.layer.bias, guide.encoder.layer.bias)
    svi = pyro.infer.SVI(local, other, pyro.optim.Adam({"lr": 0.1}), px.ELBO())
    before = guide.encoder.layer.bias.clone()
    svi.step(X)
    assert torch.equal(guide.encoder.layer.bias, before)
    several = pyro.infer.autoguide.AutoGuideList(local)
    several.append(guide)
    several(X)


def simplices():
    pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("factor", dist.LKJCholesky(3, 1.0))


def test_quantiles_of_values_that_hang_together_are_those_of_draws():
    guide = px.AutoJoint(simplices, init_scale=0.5)
    guide.setup()
    probs = [0.05, 0.5, 0.95]
    found = guide.quantiles(probs)
    draws = guide.sample_posterior(100_000)
    for name, values in found.items():
        assert (values[0] <= values[1]).all()
        assert (values[1] <= values[2]).all()
        for prob, value in zip(probs, values, strict=True):
            below = (draws[name] <= value).double().mean(0)
            varies = draws[name].std(0) > 0
            # Five standard errors of a share of 4,000 draws and of 100,000.
            error = 5 * (prob * (1 - prob) * (1 / 4_000 + 1 / 100_000)) ** 0.5
            assert ((below - prob).abs() < error)[varies].all()
    again = guide.quantiles(probs)
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_quantiles_of_a_decreasing_bijection_rise():
    def model():
        below = dist.constraints.less_than(0.0)
        x = pyro.sample("x", dist.ImproperUniform(below, (), ()))
        pyro.factor("density", x)

    guide = px.AutoJoint(model, init_loc_fn=lambda site: torch.tensor(-1.0), init_scale=0.5)
    guide.setup()
    low, middle, high = guide.quantiles([0.05, 0.5, 0.95])["x"]
    assert low < middle < high


def test_circular_latents_are_refused():
    def model():
        pyro.sample("angle", dist.VonMises(0.0, 0.3))

    with pytest.raises(ValueError, match=r"site 'angle', a VonMises.*Write: an angle"):
        px.AutoJoint(model)()


def test_looking_for_the_rows_leaves_no_gradient_behind():
    seen = []

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0))
        seen.append((scale * 2).requires_grad)
        local(x)

    guide = px.AutoPerDatapoint(model)
    guide.setup(X)
    seen.clear()
    guide(X)
    assert seen == [False]
