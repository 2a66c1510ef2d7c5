"""Where tensors are and how precise: all on the model's device, the same on a GPU, never half.

Without a GPU the test is that all runs on the CPU while torch makes every tensor that has no
device of its own on ``meta``, where there are no numbers to go on with.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LOSSES
from torch import nn
from torch.optim import Adam

import pyro_ext as px
from helpers import STANDARD_NORMALS

N = 6
GLOBAL, LOCAL = ("mu",), ("z",)


class Model(nn.Module):
    """A global and a local latent, or one of the two, on the device of the data."""

    def __init__(self, latents=GLOBAL + LOCAL):
        super().__init__()
        self.latents = latents
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        zero, one = x.new_zeros(2), x.new_ones(2)
        z = zero
        if "mu" in self.latents:
            z = pyro.sample("mu", dist.Normal(zero, one).to_event(1))
        with pyro.plate("data", len(x), device=x.device):
            if "z" in self.latents:
                z = pyro.sample("z", dist.Normal(z, one).to_event(1))
            pyro.sample("x", dist.Normal(z, self.log_scale.exp()).to_event(1), obs=x)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = px.nn.MLP(2, (5,), 4)

    def forward(self, x):
        return self.net(x)


FAMILIES = {
    "Diagonal": px.Diagonal(),
    "FullCovariance": px.FullCovariance(),
    "FullCovariance lu": px.FullCovariance(factor="lu"),
    "FullCovariance dense": px.FullCovariance(factor="dense"),
    "LowRank": px.LowRank(rank=1),
    "Householder": px.Householder(2),
    "Mixture": px.Mixture(px.Diagonal()),
    "Flow nsf": px.Flow("nsf", hidden=(8,)),
    "Flow sylvester": px.Flow("sylvester", hidden=(8,)),
    "Flow coupling": px.Flow("coupling", hidden=(8,)),
}
SOURCES = {
    "AutoJoint": (GLOBAL, px.AutoJoint),
    "AutoPerDatapoint": (GLOBAL + LOCAL, px.AutoPerDatapoint),
    "sparse": (LOCAL, partial(px.AutoPerDatapoint, sparse=True)),
    "conditioned": (GLOBAL + LOCAL, partial(px.AutoPerDatapoint, condition_on_globals=True)),
    "AutoAmortized": (
        LOCAL,
        lambda model, **options: px.AutoAmortized(model, Encoder(), **options),
    ),
    "AutoSemiAmortized": (
        LOCAL,
        lambda model, **options: px.AutoSemiAmortized(model, Encoder(), **options),
    ),
}


def pair_of(source, family="Diagonal"):
    latents, make = SOURCES[source]
    model = Model(latents)
    return model, make(model, family=FAMILIES[family])


def data(device="cpu"):
    numbers = torch.linspace(-1, 2, 2 * N, dtype=torch.float64, device=device)
    return numbers.reshape(N, 2)


def step(model, guide, loss, x):
    """Return loss and gradients of one step, and what the guide answers."""
    guide.setup(x)
    value = loss.differentiable_loss(model, guide, x)
    value.backward()
    grads = [p.grad for module in (model, guide) for p in module.parameters()]
    draws = guide.sample_posterior(3, x)
    return [value.detach(), *(g for g in grads if g is not None), *draws.values()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", SOURCES)
def test_guides_make_nothing_elsewhere(source, family):
    model, guide = pair_of(source, family)
    x = data()
    with torch.device("meta"):
        for tensor in step(model, guide, px.ELBO(4), x):
            assert tensor.device.type == "cpu"


OTHERS = {
    "Sleep": lambda num_particles: px.Sleep({"x": 0}),
    "Adversarial": lambda num_particles: px.Adversarial(num_particles, warmup=2, critic_steps=1),
    "in chunks": lambda num_particles: px.IWAE(num_particles).in_chunks(3),
    "kl": lambda num_particles: px.ELBO(num_particles, form="kl"),
}


@pytest.mark.parametrize("name", [*LOSSES, *OTHERS])
def test_losses_make_nothing_elsewhere(name):
    model, guide = pair_of("AutoAmortized")
    x = data()
    with torch.device("meta"):
        for tensor in step(model, guide, (LOSSES | OTHERS)[name](4), x):
            assert tensor.device.type == "cpu"


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("source", SOURCES)
def test_fits_make_nothing_elsewhere(source, batch_size):
    model, guide = pair_of(source)
    x = data()
    adam = partial(Adam, lr=0.01)
    with torch.device("meta"):
        run = px.fit(
            model,
            guide,
            px.ELBO(),
            x,
            adam,
            num_steps=3,
            batch_size=batch_size,
            seed=0,
            progress=False,
        )
        assert all(draws.device.type == "cpu" for draws in run.sample(2).values())
    assert torch.isfinite(torch.tensor(run.losses)).all()


DIAGNOSTICS = {
    "evidence": lambda run: px.evidence(run, num_particles=20, seed=0),
    "k_hat_joint": lambda run: px.k_hat_joint(run, num_samples=40, seed=0),
    "k_hat_per_datapoint": lambda run: px.k_hat_per_datapoint(run, num_samples=40, seed=0),
    "to_datatree": lambda run: px.to_datatree(run, num_samples=10, seed=0),
    "gaps": lambda run: px.gaps(run, num_steps=2, seed=0),
    "ais": lambda run: px.ais(run, num_chains=2, num_temperatures=3, seed=0),
}


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics_make_nothing_elsewhere(name):
    model, guide = pair_of("AutoAmortized")
    x = data()
    run = px.fit(model, guide, px.ELBO(), x, num_steps=2, seed=0, progress=False)
    with torch.device("meta"):
        DIAGNOSTICS[name](run)


# ---------------------------------------------------------------------- a GPU


RANDN = torch.randn


def drawn_on_the_cpu(*shape, dtype=None, device=None):
    return RANDN(*shape, dtype=dtype, device="cpu").to(device)


def results(source, family, loss, device, monkeypatch):
    """Loss, gradients and five steps of a fit, from noise that is the same on each device."""
    with monkeypatch.context() as patch:
        for name in STANDARD_NORMALS:
            patch.setattr(name, drawn_on_the_cpu)
        pyro.set_rng_seed(3)
        model, guide = pair_of(source, family)
        model.to(device)
        guide.to(device)
        x = data(device)
        found = step(model, guide, loss, x)
        adam = partial(Adam, lr=0.01)
        run = px.fit(model, guide, loss, x, adam, num_steps=5, seed=0, progress=False)
        ends = [p.detach() for module in (model, guide) for p in module.parameters()]
        assert all(tensor.device.type == torch.device(device).type for tensor in [*found, *ends])
        return [torch.tensor(run.losses), *(tensor.cpu() for tensor in (*found, *ends))]


PARITY = [
    *[(source, "Diagonal", "IWAE-dreg") for source in SOURCES],
    *[("AutoAmortized", family, "ELBO-stl") for family in FAMILIES if family != "Mixture"],
    *[
        ("AutoAmortized", "FullCovariance", name)
        for name in LOSSES
        if name.endswith(("reparam", "dreg", "stl"))
    ],
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_says_what_the_cpu_says(monkeypatch):
    for source, family, name in PARITY:
        loss = LOSSES[name](4)
        pairs = zip(
            results(source, family, loss, "cuda", monkeypatch),
            results(source, family, loss, "cpu", monkeypatch),
            strict=True,
        )
        case = f"{source}, {family}, {name}"
        for ours, theirs in pairs:
            torch.testing.assert_close(
                ours, theirs, rtol=1e-6, atol=1e-6, msg=partial("{}: {}".format, case)
            )


# ---------------------------------------------------------------------- mixed precision


def vae(source="AutoAmortized", family="Diagonal"):
    """A pair whose networks follow ``torch.autocast``; what they return is noted."""
    decoder, seen = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)), set()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            logits = decoder(z)
            seen.add(logits.dtype)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
    encoder.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    make = {"AutoAmortized": px.AutoAmortized, "AutoSemiAmortized": px.AutoSemiAmortized}[source]
    return model, make(model, encoder, family=FAMILIES[family]), seen


@pytest.fixture
def single():
    """Single precision, as with a GPU."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["AutoAmortized", "AutoSemiAmortized"])
def test_networks_in_half_precision_have_log_weights_in_single(source, family, single):
    torch.manual_seed(0)
    model, guide, seen = vae(source, family)
    x = (torch.rand(20, 5) < 0.5).float()
    guide.setup(x)
    torch.manual_seed(1)
    (expected,) = px.log_weights(model, guide, x, num_particles=4).terms
    seen.clear()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = px.log_weights(model, guide, x, num_particles=4).terms
        loss = px.IWAE(4).differentiable_loss(model, guide, x)
        draws = guide.sample_posterior(3, x)
        # A transform without an inverse scores what it has just drawn, no more.
        scored = guide.log_prob(draws, x) if "sylvester" not in family else loss
    assert seen == {torch.bfloat16}
    parts = (found.log_w, found.log_p, found.log_q, loss, scored, draws["z"])
    assert {tensor.dtype for tensor in parts} == {torch.float32}
    # Networks that round to 8 bits; densities in 8 bits would be 0.2 apart.
    torch.testing.assert_close(found.log_w, expected.log_w, rtol=0, atol=0.05)
    loss.backward()
    assert {param.grad.dtype for param in guide.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", [name for name in FAMILIES if "sylvester" not in name])
def test_weights_in_mixed_precision_are_those_of_the_same_draws(family, single):
    """The draws themselves may differ: where shares move by rounding, so may a component."""
    torch.manual_seed(0)
    model, guide, _ = vae(family=family)
    x = (torch.rand(20, 5) < 0.5).float()
    guide.setup(x)
    with torch.no_grad():
        for param in guide.parameters():
            param.add_(0.2 * torch.randn_like(param))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = px.log_weights(model, guide, x, num_particles=500)
    z, log_w = found.latents["z"], found.terms[0].log_w.sum(-1)
    prior = dist.Normal(torch.zeros(2), 1.0).log_prob(z).sum([-2, -1])
    given = pyro.poutine.trace(pyro.condition(model, found.latents)).get_trace(x)
    data = given.nodes["x"]["fn"].log_prob(x).sum(-1)
    expected = prior + data - guide.log_prob(found.latents, x)
    apart = (log_w - expected).square().mean().sqrt()
    # Of 20 elements whose networks round to 8 bits; densities in 8 bits are 0.2 apart in each.
    assert apart < 0.3


def test_a_fit_in_mixed_precision_is_that_in_single(single):
    x = (torch.rand(20, 5) < 0.5).float()
    losses = []
    for enabled in (True, False):
        torch.manual_seed(0)
        pyro.clear_param_store()
        model, guide, _ = vae()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            run = px.fit(
                model, guide, px.ELBO(), x, num_steps=40, batch_size=10, seed=0, compile=False
            )
        losses.append(torch.tensor(run.losses))
    first, last = (losses[0] - losses[1])[:2], (losses[0] - losses[1])[-20:]
    assert 0 < first.abs().max() < 0.1
    # Weights that are not brought up to date in half precision are 20 nats behind by then.
    assert last.mean().abs() < 0.2


def test_draws_in_half_precision_are_refused(single):
    def guide(x):
        with pyro.plate("data", len(x)):
            loc = encoder(x)
            pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))

    model, _, _ = vae()
    encoder = nn.Linear(5, 2)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(
            ValueError, match=r"'z': expected a value in single .*bfloat16.*\.float\(\)"
        ),
    ):
        px.ELBO().loss(model, guide, torch.zeros(3, 5))


def test_steps_in_mixed_precision_are_not_compiled(single):
    model, guide, _ = vae()
    adam = partial(Adam, lr=0.01)
    fit = partial(px.fit, model, guide, px.ELBO(), torch.zeros(4, 5), adam, num_steps=3)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.warns(UserWarning, match=r"runs eagerly, because torch\.autocast is active"),
    ):
        fit(compile=True)
