"""Particles in chunks: value and gradient are those of all particles together."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LOSSES

import pyro_ext as px

X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.5, 0.9]])
K = 6


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z + pyro.param("shift", torch.zeros(2))
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def discrete_guide(x):
    loc, logit = pyro.param("loc", torch.zeros(2)), pyro.param("logit", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(logits=logit))
        pyro.sample("z", dist.Normal(loc + b.unsqueeze(-1), 0.8).to_event(1))


def discrete_model(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(0.4))
        z = pyro.sample("z", dist.Normal(b.unsqueeze(-1), torch.ones(2)).to_event(1))
        mean = z + pyro.param("shift", torch.zeros(2))
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


class Deck:
    """Deals out the noise of each particle, whatever chunk it is asked for in.

    Args:
        particles: All particles; chunks cut the outer or the inner ones.
    """

    def __init__(self, particles):
        self.full = particles.outer, particles.inner
        self.tables = {kind: getattr(torch, kind)(*self.full, 3, 2) for kind in ("randn", "rand")}
        self.dealt = {"randn": 0, "rand": 0}

    def deal(self, kind, shape, event_dims):
        outer, inner = self.full
        lead, rest = shape[: len(shape) - event_dims], shape[len(shape) - event_dims :]
        if len(lead) < 2:  # a dim of one is left out
            count = lead[0] if lead else 1
            cut = (count, 1) if inner == 1 or (outer > 1 and count == outer) else (1, count)
        else:
            cut = tuple(lead)
        axis = 0 if cut[1] == inner else 1
        start = self.dealt[kind] % self.full[axis]
        self.dealt[kind] += cut[axis]
        table = self.tables[kind] if event_dims == 2 else self.tables[kind][..., 0]
        return table.narrow(axis, start, cut[axis]).reshape(*lead, *rest)


def deal_noise(patch, particles):
    """Let the noise of all draws belong to their particles from now on."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        deck = Deck(particles)
    for module in ("normal", "multivariate_normal"):
        patch.setattr(
            f"torch.distributions.{module}._standard_normal",
            lambda shape, **options: deck.deal("randn", tuple(shape), 2),
        )
    patch.setattr(torch, "bernoulli", lambda p: (deck.deal("rand", tuple(p.shape), 1) < p).to(p))


def gradients(loss, pair, noise):
    model, make = pair
    pyro.clear_param_store()
    torch.manual_seed(3)
    guide = make()
    loss.differentiable_loss(model, guide, X)  # the plates are found with noise of their own
    noise(loss.particles)
    with pyro.poutine.trace(param_only=True) as capture:
        value = loss.differentiable_loss(model, guide, X)
    names = [name for name, site in capture.trace.nodes.items() if site["type"] == "param"]
    params = dict.fromkeys(pyro.get_param_store()._params[name] for name in names)
    return value.detach(), torch.autograd.grad(value, list(params))


def amortized():
    guide = px.AutoAmortized(model, torch.nn.Linear(2, 3))
    guide.setup(X)
    return guide


@pytest.mark.parametrize("chunk_size", [1, 4, 7])
@pytest.mark.parametrize("name", [name for name in LOSSES if "PIWAE" not in name])
def test_value_and_gradient_are_those_of_all_particles(name, chunk_size, monkeypatch):
    loss = LOSSES[name](K)
    score = name.endswith(("score", "vimco", "wake"))
    pair = (discrete_model, lambda: discrete_guide) if score else (model, amortized)
    with monkeypatch.context() as patch:
        value, grads = gradients(loss.in_chunks(chunk_size), pair, partial(deal_noise, patch))
    with monkeypatch.context() as patch:
        expected, wanted = gradients(loss, pair, partial(deal_noise, patch))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for grad, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-12)
        assert grad.abs().max() > 0
