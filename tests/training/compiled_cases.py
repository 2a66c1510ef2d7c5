"""Steps of a graph that torch runs, without the time to compile it, and pairs to take them on."""

import pyro
import pyro.distributions as dist
import torch

import pyro_ext as px
from pyro_ext.training.compiled.builder import Built

__all__ = [
    "WAYS",
    "Y",
    "adam",
    "built_by",
    "eight_schools",
    "graph_svi",
    "normal",
    "same_run",
    "schools",
    "train",
    "vae",
]

WAYS = [True, "record"]
"""What ``compile`` can be, but False."""

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y):
    mu, tau = pyro.sample("mu", dist.Normal(0, 5)), pyro.sample("tau", dist.HalfCauchy(5))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(mu + tau * z, SIGMA[: len(y)]), obs=y)


def normal(x, loc=0.0, scale=1.0):
    mu = pyro.sample("mu", dist.Normal(loc, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


def adam(params):
    return torch.optim.Adam(params, lr=0.05)


def graph_svi(model, guide, optim=adam, loss=None, **options):
    """A compiled SVI whose graphs are run by torch, without the time to compile them."""
    loss = px.ELBO() if loss is None else loss
    return px.CompiledSVI(model, guide, optim, loss, _backend="graph", **options)


def train(make, *, optim=lambda: adam, steps=12, compile=True, seed=1, **options):
    """Return the losses and the parameters of a run with a fresh pair."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide, args = make()
    optim = optim()
    svi = graph_svi(model, guide, optim, compile=compile, **options)
    losses = [svi.step(*args) for _ in range(steps)]
    assert (svi._last is not None) == bool(compile)
    params = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
    return torch.tensor(losses), list(params.values())


def same_run(make, *, compile=True, **options):
    """Assert that graph and eager steps give the same run, to the last bit where recorded."""
    rtol, atol = (0.0, 0.0) if compile == "record" else (1e-10, 1e-12)
    losses, params = train(make, compile=compile, **options)
    expected, expected_params = train(make, compile=False, **options)
    torch.testing.assert_close(losses, expected, rtol=rtol, atol=0)
    for one, other in zip(params, expected_params, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    assert len(params) > 0


def eight_schools():
    return schools, px.AutoJoint(schools), (Y,)


def vae(*layers):
    torch.manual_seed(0)
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 6), *layers, torch.nn.Linear(6, 5))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    encoder = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh())
    return model, px.AutoAmortized(model, encoder), ((torch.rand(9, 5) < 0.5).double(),)


def built_by(svi):
    built = svi._last
    assert isinstance(built, Built)
    return built
