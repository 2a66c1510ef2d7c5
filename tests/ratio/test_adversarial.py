from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_ext as px
from helpers import assert_mean
from pyro_ext import ratio as pr
from pyro_ext._checks import Pair
from pyro_ext.nn import MLP
from pyro_ext.ratio.contrast import CONTRASTS, Scene
from pyro_ext.ratio.latents import Elements

X = torch.tensor(1.0)
XS = torch.tensor([1.0, -1.0, 0.5])
ADAM = partial(torch.optim.Adam, lr=0.01)
LOC, SCALE = 0.8, 0.5  # of q(z | x) for x = 1; the posterior is N(1/2, 1/2)


def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Guide(nn.Module):
    """N(a x, s²) for each x, as a function of noise: it has no density of its own."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(LOC))
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def forward(self, x):
        if x.dim():
            with pyro.plate("data", len(x)):
                self.draw(x)
        else:
            self.draw(x)

    def draw(self, x):
        e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(self.slope * x + self.scale * e))


class Exact(nn.Module):
    """The best critic of ``Guide``, where z stands first in its input and x, if any, second."""

    def __init__(self, size, contrast):
        super().__init__()
        self.contrast = contrast
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, u):
        z, x = u[..., 0], u[..., 1] if u.shape[-1] > 1 else X
        if self.contrast == "adaptive":
            return 0 * z * self.unused  # q is the Gaussian of its own moments
        log_q = dist.Normal(LOC * x, SCALE).log_prob(z)
        other = dist.Normal(0.0, 1.0).log_prob(z)
        if self.contrast == "joint":  # up to the entropy of the data, a constant
            other = other + dist.Normal(z, 1.0).log_prob(x)
        return log_q - other + 0 * self.unused


def exact_loss(contrast, **options):
    return px.Adversarial(
        contrast=contrast,
        critic=lambda size: Exact(size, contrast),
        critic_steps=0,
        warmup=0,
        **options,
    )


def exact_elbo(x):
    """ELBO of ``Guide``, differentiable by (a, s)."""
    a, s = torch.tensor(LOC, requires_grad=True), torch.tensor(SCALE, requires_grad=True)
    log_prior = dist.Normal(0.0, 1.0).log_prob(a * x) - s**2 / 2
    log_likelihood = dist.Normal(a * x, 1.0).log_prob(x) - s**2 / 2
    entropy = dist.Normal(0.0, s).entropy()
    value = (log_prior + log_likelihood + entropy).sum()
    return value.detach(), torch.autograd.grad(value, (a, s))


def estimates(loss, x, scale=1.0, repeats=100, pair=None):
    values, slopes = [], []
    for _ in range(repeats):
        target, guide = pair or (local_model if x.dim() else model, Guide())
        guide.zero_grad()
        value = loss.differentiable_loss(target, guide, x)
        gradient = torch.autograd.grad(value, (guide.slope, guide.scale))
        values.append(value.detach() * scale)
        slopes.append(torch.stack(gradient) * scale)
    return torch.stack(values), torch.stack(slopes)


@pytest.mark.parametrize("x", [X, XS], ids=["global", "local"])
@pytest.mark.parametrize("contrast", ["prior", "adaptive"])
def test_with_the_best_critic_value_and_gradient_are_those_of_the_elbo(contrast, x):
    """100 losses of 60 draws: a bias of 0.05 in the gradient is found.

    Moments from 4000 draws leave a bias of 1/4000 and less.
    """
    loss = exact_loss(contrast, num_particles=60, num_moments=4000)
    values, slopes = estimates(loss, x, repeats=100)
    elbo, gradient = exact_elbo(x)
    assert_mean(values, -elbo)
    assert_mean(slopes, -torch.stack(gradient))


def test_joint_contrast_has_the_gradient_of_the_elbo():
    """log q(x, z) / p(x, z) is minus log w, up to the density of the data."""
    loss = exact_loss("joint", num_particles=60)
    values, slopes = estimates(loss, XS, repeats=100)
    elbo, gradient = exact_elbo(XS)
    assert_mean(values, -elbo)
    assert_mean(slopes, -torch.stack(gradient))


def test_mini_batches_are_scaled():
    def subsampled(x):
        with pyro.plate("data", 30, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Sub(Guide):
        def forward(self, x):
            with pyro.plate("data", 30, subsample=torch.arange(3)):
                self.draw(x)

    for contrast in ("prior", "adaptive"):
        loss = exact_loss(contrast, num_particles=60, num_moments=4000)
        values, _ = estimates(loss, XS, repeats=50, pair=(subsampled, Sub()))
        assert_mean(values, -10 * exact_elbo(XS)[0])


# ---------------------------------------------------------------------- vectors of latents


def mixed(x):
    """Latents with other supports, in nested plates, all inside the data plate."""
    with pyro.plate("data", len(x), dim=-1):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        s = pyro.sample("s", dist.LogNormal(0.3, 0.5))
        with pyro.plate("inner", 2, dim=-2):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(u, s), obs=x.T)
        pyro.sample("v", dist.Normal(w, 1.0).to_event(1), obs=torch.zeros(3))


def test_elements_of_constrained_latents_in_nested_plates():
    x = torch.randn(4, 2)
    guide = px.AutoAmortized(mixed, lambda x: x, plate="data")
    pair = Pair(mixed, guide, (x,), {})
    elements = Elements(pair, joint=False)
    torch.manual_seed(3)
    draws = elements.from_guide(pair, 5)
    torch.manual_seed(3)
    log_w = px.log_weights(mixed, guide, x, num_particles=5, joint=True)
    assert draws.z.shape == (5, 4, 2 + 1 + 2)
    assert draws.data.shape == (5, 4, 2 + 3)
    torch.testing.assert_close(draws.data[0, :, :2], x)
    s = log_w.latents["s"]
    torch.testing.assert_close(draws.z[..., 2], s.log().reshape(5, 4))
    u = log_w.latents["u"]
    torch.testing.assert_close(draws.z[..., 3:], u.reshape(5, 2, 4).mT)
    # log p(x, z) in the unconstrained space is log p(x, θ) + log |dθ/dz|, which log q has too.
    auxiliary = [v for n, v in log_w.guide_trace.nodes.items() if n.endswith("_local")]
    log_q_z = auxiliary[0]["fn"].log_prob(auxiliary[0]["value"]).reshape(5, -1).sum(1)
    log_weight = draws.log_likelihood + draws.log_prior - log_q_z
    torch.testing.assert_close(log_weight, log_w.terms[0].log_w.reshape(5))


def test_draws_of_the_prior_are_scored_as_draws_of_the_guide():
    x = torch.randn(4, 2)
    pair = Pair(mixed, px.AutoAmortized(mixed, lambda x: x, plate="data"), (x,), {})
    elements = Elements(pair, joint=False)
    draws = elements.from_model(pair, 4000)
    assert_mean(draws.z[..., 2].reshape(4000, -1), 0.3)
    entropy = dist.Normal(0.0, 1.0).entropy() * 2 + dist.Normal(0.0, 0.5).entropy()
    dirichlet = draws.log_prior.mean() / 4 + entropy
    w = dist.Dirichlet(torch.ones(3)).sample((4000,))
    stick = torch.distributions.biject_to(torch.distributions.constraints.simplex)
    log_det = stick.log_abs_det_jacobian(stick.inv(w), w)
    assert abs(float(dirichlet - dist.Dirichlet(torch.ones(3)).log_prob(w).mean() - log_det.mean())
               ) < 0.2  # fmt: skip
    dreamed = elements.from_model(pair, 5, dream=True)
    assert not torch.equal(dreamed.data[0, :, :2], x)
    assert dreamed.data.shape == (5, 4, 5)


def test_joint_latents_make_one_vector():
    x = torch.randn(4, 2)
    pair = Pair(mixed, px.AutoAmortized(mixed, lambda x: x, plate="data"), (x,), {})
    draws = Elements(pair, joint=True).from_guide(pair, 5)
    assert draws.z.shape == (5, 1, 4 * 5)
    assert draws.data.shape == (5, 1, 0)


def test_coupled_elements_make_one_vector():
    """A guide with all latents in one vector: its q does not factorize over the plate."""
    pair = Pair(local_model, px.AutoJoint(local_model, family=px.FullCovariance()), (XS,), {})
    assert Elements(pair, joint=False).from_guide(pair, 5).z.shape == (5, 1, 3)


def test_whitening_makes_moments_of_white_noise():
    guide = px.AutoJoint(local_model, family=px.FullCovariance())
    pair = Pair(local_model, guide, (XS,), {})
    elements = Elements(pair, joint=False)
    with torch.no_grad():
        guide.params.add_(0.3 * torch.randn_like(guide.params))
    scene = Scene(pair, elements, CONTRASTS["adaptive"], num=4000, num_moments=20_000)
    z, other = scene.critic_inputs()
    assert z.shape == other.shape == (4000, 3)
    moments = scene._moments()
    # Means of 20 000 draws: 0.05 is seven standard errors.
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=0.12, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(3), atol=0.15, rtol=0)
    drawn = elements.from_guide(pair, 7).z
    covariance = moments.factor @ moments.factor.mT
    expected = dist.MultivariateNormal(moments.loc, covariance).log_prob(drawn)
    torch.testing.assert_close(moments.log_prob(drawn), expected)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("contrast", ["prior", "adaptive"])
def test_fit_finds_the_posterior_with_a_guide_without_density(contrast):
    guide = Guide()
    loss = px.Adversarial(128, contrast=contrast, warmup=100)
    run = px.fit(model, guide, loss, X, ADAM, num_steps=100, seed=0, progress=False)
    assert run.num_steps == 100
    assert run.elbo_per_datum.shape == (0,)
    slope, scale = (float(param.detach()) for param in guide.parameters())
    assert slope == pytest.approx(0.5, abs=0.1)
    assert scale == pytest.approx(0.5**0.5, abs=0.1)
    assert set(run.sample(5)) == {"z"}


def test_svi_of_pyro():
    pyro.set_rng_seed(1)
    net = Guide()

    def guide(x):
        pyro.module("net", net)
        net(x)

    svi = pyro.infer.SVI(
        local_model, guide, pyro.optim.Adam({"lr": 0.02}), px.Adversarial(64, warmup=100)
    )
    losses = [svi.step(XS) for _ in range(60)]
    exact = -dist.Normal(0.0, 2**0.5).log_prob(XS).sum()
    assert float(net.slope.detach()) == pytest.approx(0.5, abs=0.12)
    assert abs(sum(losses[-20:]) / 20 - float(exact)) < 0.3
    assert svi.evaluate_loss(XS) == pytest.approx(float(exact), abs=1.0)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.loc + z, 0.5), obs=x)


@pytest.mark.parametrize("contrast", ["prior", "joint", "aggregate"])
def test_the_model_learns(contrast):
    x = 2 + torch.randn(30)
    target, guide = Decoder(), AffineGuide()
    loss = px.Adversarial(8, contrast=contrast, warmup=100)
    adam = partial(torch.optim.Adam, lr=0.05)
    px.fit(target, guide, loss, x, adam, num_steps=80, seed=0, progress=False)
    assert float(target.loc.detach()) == pytest.approx(2.0, abs=0.5)


class AffineGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, 0.0, 0.5]))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            slope, shift, scale = self.weights
            pyro.sample("z", dist.Delta(slope * x + shift + scale * e))


# ---------------------------------------------------------------------- the critic's state


def test_without_gradients_the_critic_is_frozen():
    guide, loss = Guide(), px.Adversarial(16, warmup=5)
    loss.loss_and_grads(model, guide, X)
    critic = loss._state.trainer.critic
    before = [param.clone() for param in critic.parameters()]
    assert loss._state.trainer.count == 7
    assert isinstance(loss.loss(model, guide, X), float)
    loss.evaluate(model, guide, X, num_particles=100, num_steps=3)
    assert all(map(torch.equal, before, critic.parameters()))
    assert loss._state.trainer.count == 7
    assert all(param.requires_grad for param in critic.parameters())
    assert all(param.grad is not None for param in guide.parameters())
    loss.loss_and_grads(model, guide, X)
    assert loss._state.trainer.count == 9
    assert not all(map(torch.equal, before, critic.parameters()))


def test_the_guides_gradient_does_not_reach_the_critic():
    guide, loss = Guide(), px.Adversarial(16, warmup=5, critic_steps=1)
    value = loss.differentiable_loss(model, guide, X)
    for param in loss._state.trainer.critic.parameters():
        param.grad = None
    value.backward()
    assert all(param.grad is None for param in loss._state.trainer.critic.parameters())


def test_evaluate_beside_the_exact_elbo():
    loss = px.Adversarial(256)
    found = loss.evaluate(model, Guide(), X, num_particles=10_000, num_steps=300)
    assert loss._state is None
    assert found.what == "adversarial estimate of the ELBO, no bound"
    assert found.doubts == ()
    assert found.value == pytest.approx(float(exact_elbo(X)[0]), abs=0.05)


def test_an_estimate_above_the_evidence_is_flagged():
    """Narrow q in 20 dimensions, a weak critic: the published failure."""

    def wide(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.05).to_event(1), obs=x)

    def narrow(x):
        e = dist.Normal(torch.zeros(20), 1.0).to_event(1)
        e = pyro.sample("e", e, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(x + 0.05 * e, event_dim=1))

    x = torch.ones(20)
    evidence = float(dist.Normal(0.0, (1 + 0.05**2) ** 0.5).log_prob(x).sum())
    loss = px.Adversarial(64, critic=lambda size: pr.MLPCritic(size, hidden=(16,)))
    with pytest.warns(pr.RatioWarning, match=r"no bound.*doubtful.*contrast='adaptive'"):
        plain = loss.evaluate(wide, narrow, x, num_steps=200)
    assert plain.value > evidence + 10
    adaptive = px.Adversarial(256, contrast="adaptive", num_moments=2000)
    found = adaptive.evaluate(wide, narrow, x, num_steps=150)
    assert found.doubts == ()
    assert abs(found.value - evidence) < 1.0


# ---------------------------------------------------------------------- errors


def mixed_homes(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def bernoulli(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=loc + z), obs=(x > 0).double())


def masked(x):
    with pyro.plate("data", len(x)):
        with pyro.poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def tempered(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.poutine.scale(scale=0.5):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a + b, 1.0), obs=x.sum())


def two_latents(x):
    a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def step(target, guide=None, **options):
    guide = guide or px.AutoJoint(target)
    px.Adversarial(4, warmup=0, **options).loss_and_grads(target, guide, XS)


def two_pairs():
    loss = px.Adversarial(4, warmup=0)
    loss.loss_and_grads(model, px.AutoJoint(model), X)
    loss.loss_and_grads(two_latents, px.AutoJoint(two_latents), X)


ERRORS = {
    "contrast": (lambda: px.Adversarial(contrast="none"), r"expected contrast .*'adaptive'"),
    "bound": (lambda: px.Adversarial(bound="none"), r"expected bound to be one of"),
    "homes": (
        lambda: step(mixed_homes, px.AutoAmortized(mixed_homes, lambda x: x.unsqueeze(-1))),
        r"sites \['mu'\] are outside, .*Write: px\.Adversarial\(joint=True\)",
    ),
    "no gradient for the model": (
        lambda: step(bernoulli, Guide(), contrast="joint"),
        r"expected data that the model draws by reparameterization.*contrast='prior'",
    ),
    "mask": (lambda: step(masked, Guide()), r"without a mask; site 'z' has one"),
    "scales": (lambda: step(tempered), r"expected latents with one scale; got .*poutine\.scale"),
    "untrained": (
        lambda: px.Adversarial().loss(model, Guide(), X),
        r"expected a critic that was trained.*Write: loss\.evaluate",
    ),
    "another pair": (two_pairs, r"expected the pair that the critic was trained for, with 1"),
    "site": (
        lambda: step(model, lambda x: pyro.sample("y", dist.Normal(0.0, 1.0))),
        r"site 'z' is latent in the model, but the guide does not sample it",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_joint_option_takes_latents_in_and_out_of_the_plate():
    guide = px.AutoAmortized(mixed_homes, lambda x: x.unsqueeze(-1))
    step(mixed_homes, guide, joint=True)


def test_network_of_noise_as_a_family():
    """A family that cannot score: ELBO raises, the adversarial loss trains it."""

    class Sampler(px.Family):
        @property
        def density(self):
            return "none"

        def num_params(self, dim):
            return 2 * dim

        def initial_params(self, loc, scale):
            return torch.cat([loc, scale.log()], -1)

        def network(self, dim):
            return MLP(dim, (8,), dim)

        def distribution(self, params, dim, network=None):
            return Draw(params[..., :dim], params[..., dim:].exp(), network)

        def quantile(self, posterior, prob):
            return posterior.rsample((999,)).quantile(prob, 0)

    class Draw(dist.TorchDistribution):
        support = dist.constraints.real_vector
        arg_constraints = {}  # noqa: RUF012
        has_rsample = True

        def __init__(self, loc, scale, network):
            self.loc, self.scale, self.network = loc, scale, network
            super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

        def expand(self, batch_shape, _instance=None):
            return Draw(
                self.loc.expand(*batch_shape, -1),
                self.scale.expand(*batch_shape, -1),
                self.network,
            )

        def rsample(self, sample_shape=()):
            e = torch.randn(*sample_shape, *self.batch_shape, *self.event_shape)
            return self.loc + self.scale * (e + self.network(e))

        def log_prob(self, value):
            raise ValueError("no density")

    guide = px.AutoJoint(local_model, family=Sampler(), init_scale=0.5)
    with pytest.raises(ValueError, match="no density"):
        px.ELBO().loss(local_model, guide, XS)
    loss = px.Adversarial(128, contrast="adaptive", warmup=50)
    px.fit(
        local_model, guide, loss, XS, partial(ADAM, lr=0.03), num_steps=80, seed=0, progress=False
    )
    draws = guide.sample_posterior(2000, XS)["z"]
    torch.testing.assert_close(draws.mean(0), XS / 2, atol=0.15, rtol=0)
    assert float(draws.std(0).mean()) == pytest.approx(0.5**0.5, abs=0.12)
