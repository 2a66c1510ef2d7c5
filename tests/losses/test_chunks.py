"""Particles in chunks: value and gradient are those of all particles together."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LOSSES

import pyro_ext as px
from helpers import STANDARD_NORMALS
from pyro_ext.testing import NormalLocal

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
    for name in STANDARD_NORMALS:
        patch.setattr(name, lambda shape, **options: deck.deal("randn", tuple(shape), 2))
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


def test_all_particles_see_the_rows_that_a_model_draws(monkeypatch):
    """The log weights of a joint weight would be of other data in each chunk."""
    rows = []

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=3) as drawn:
            rows.append(drawn)
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[drawn])

    guide = px.AutoJoint(model)
    loss = px.ELBO(6).in_chunks(2)
    loss.differentiable_loss(model, guide, torch.arange(10.0))
    rows.clear()
    loss.differentiable_loss(model, guide, torch.arange(10.0))
    assert len(rows) > 3
    assert all(torch.equal(drawn, rows[0]) for drawn in rows)
    loss.differentiable_loss(model, guide, torch.arange(10.0))
    assert not torch.equal(rows[0], rows[-1])


def test_local_particles_of_one_global_draw_stay_together():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = px.AutoPerDatapoint(model)
    with pytest.raises(ValueError, match=r"share the draw of the global.*joint=True"):
        px.IWAE(6).in_chunks(2).loss(model, guide, torch.zeros(3))
    assert px.IWAE(6, joint=True).in_chunks(2).loss(model, guide, torch.zeros(3)) > 0
    assert px.MIWAE(4, 3).in_chunks(3).loss(model, guide, torch.zeros(3)) > 0


def test_the_expression_and_what_cannot_be_cut():
    assert repr(px.IWAE(8).in_chunks(2)).endswith(".in_chunks(2)")
    assert px.IWAE(8).in_chunks(2).num_particles == 8
    with pytest.raises(ValueError, match="PIWAE: expected a loss whose gradient is that of log"):
        px.PIWAE(2, 3).in_chunks(1)
    with pytest.raises(TypeError, match=r"IWAE: expected chunk_size to be an int; got 2\.5\. Wr"):
        px.IWAE(4).in_chunks(2.5)
    with pytest.raises(ValueError, match=r"IWAE: expected chunk_size >= 1; got 0\."):
        px.IWAE(3).in_chunks(0)


def test_a_model_that_draws_by_itself_is_refused():
    calls = []

    def model(x):
        calls.append(None)
        with pyro.plate("data", len(x)):
            noise = torch.randn(()) if len(calls) % 5 == 0 else 0.0
            z = pyro.sample("z", dist.Normal(noise, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    def many():
        for _ in range(10):
            px.IWAE(6).in_chunks(2).differentiable_loss(model, guide, torch.zeros(3))

    with pytest.raises(RuntimeError, match="draw the same random numbers when they run a second"):
        many()


def test_counts_whose_density_needs_too_much_memory_say_so():
    """Memory that is there again for a second try is no reason to blame the kind of the data."""

    class Hungry(dist.Poisson):
        def log_prob(self, value):
            if not value.is_floating_point():
                raise torch.OutOfMemoryError("too many")
            return super().log_prob(value)

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Hungry(z.exp()), obs=x)

    guide = px.AutoJoint(model)
    with pytest.raises(torch.OutOfMemoryError, match="too many"):
        px.log_weights(model, guide, torch.tensor([1, 2]), num_particles=3)


def test_gradients_by_rows_stay_sparse():
    model = NormalLocal.simulate(8).model
    guide = px.AutoPerDatapoint(model, sparse=True)
    x = torch.zeros(8)
    guide.setup(x)
    value = px.IWAE(4).in_chunks(2).differentiable_loss(model, guide, x)
    (grad,) = torch.autograd.grad(value, [guide.local_params])
    assert grad.is_sparse
