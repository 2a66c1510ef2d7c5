import math
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from diagnostics.models import MODELS, Z_LIMIT, divergence, off, with_data
from pyro import poutine
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import pyro_ext as px
from helpers import assert_at_most, assert_mean
from pyro_ext._checks import Pair
from pyro_ext.diagnostics._annealing import tune
from pyro_ext.diagnostics._density import Density
from pyro_ext.testing import NormalGlobal, NormalLocal

EVERY_MODEL = pytest.mark.parametrize("exact", MODELS.values(), ids=MODELS)
LOCAL = MODELS["local"]


def prior(exact):
    return poutine.block(exact.model, hide_fn=lambda site: bool(site.get("is_observed")))


def path_of(exact):
    """Return the path from the prior of a model to its posterior."""
    return Density(Pair(exact.model, prior(exact), exact.args, {}), joint=True)


def total(log_weights):
    return log_weights.reshape(len(log_weights), -1).sum(1)


@EVERY_MODEL
def test_chains_of_the_exact_guide_have_constant_weights(exact):
    found = px.ais(exact.model, exact.guide, *exact.args, num_chains=4, num_temperatures=5)
    log_p = exact.log_evidence().item()
    assert abs(found.lower.value - log_p) < 1e-9
    assert abs(found.log_evidence.value - log_p) < 1e-9
    assert found.lower.se < 1e-9


@pytest.mark.slow
@EVERY_MODEL
def test_annealing_from_the_prior_is_below_the_evidence_and_close(exact):
    found = px.ais(exact.model, exact.guide, *exact.args, start="prior", num_chains=100, seed=0)
    log_p = exact.log_evidence().item()
    assert_at_most(total(found.log_weights), log_p)
    assert abs(found.log_evidence.value - log_p) < Z_LIMIT * found.log_evidence.se
    assert found.log_evidence.se < 0.3
    assert 0.6 < found.acceptance < 0.9


def test_one_step_is_importance_sampling():
    found = px.ais(
        LOCAL.model, off(LOCAL, 1.4, 0.5), LOCAL.x, num_chains=4000, num_temperatures=1, seed=0
    )
    expected = LOCAL.log_evidence_per_datum() - divergence(1.4, 0.5)
    assert_mean(found.log_weights, expected)


def test_one_step_back_costs_the_divergence_the_other_way():
    found = px.bdmc(LOCAL.model, off(LOCAL), LOCAL.x, num_chains=400, num_temperatures=1, seed=0)
    exact = with_data(LOCAL, found.simulated.args)
    mean, covariance = exact.posterior()
    posterior = Normal(mean[:, 0], covariance[:, 0, 0].sqrt())
    gap = kl_divergence(posterior, Normal(0.0, 1.0)).sum().item()
    assert abs(found.upper.value - exact.log_evidence().item() - gap) < Z_LIMIT * found.upper.se


@pytest.mark.slow
def test_more_temperatures_close_the_gap():
    gaps = []
    for num_temperatures in (3, 15, 75):
        found = px.bdmc(
            LOCAL.model, off(LOCAL), LOCAL.x, num_temperatures=num_temperatures, seed=0
        )
        gaps.append(found.upper.value - found.lower.value)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


@pytest.mark.slow
def test_a_narrow_guide_whose_weights_have_no_mean_is_repaired():
    exact = NormalLocal.simulate(4, scale=0.7)
    guide = off(exact, 0.2, 1.0)
    plain = px.evidence(exact.model, guide, exact.x, seed=0)
    found = px.ais(exact.model, guide, exact.x, num_chains=400, seed=0)
    log_p = exact.log_evidence().item()
    assert plain.k_hat.share_above == 1
    assert abs(found.log_evidence.value - log_p) < Z_LIMIT * found.log_evidence.se
    assert log_p - found.lower.value < 0.1 * (log_p - plain.elbo.value)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 100, 7])
def test_chunks_hold_every_datum_once(chunk_size):
    found = px.ais(
        LOCAL.model,
        LOCAL.guide,
        LOCAL.x,
        num_chains=6,
        num_temperatures=3,
        chunk_size=chunk_size,
    )
    assert found.log_weights.shape == (6, 12)
    expected = LOCAL.log_evidence_per_datum()
    torch.testing.assert_close(found.per_datum["lower"].value, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [None, 40])
def test_simulated_rows_stay_with_their_latents(chunk_size):
    exact = NormalLocal(torch.linspace(-3, 3, 8), scale=0.01)
    found = px.bdmc(
        exact.model,
        off(exact),
        exact.x,
        start="guide",
        num_chains=10,
        num_temperatures=2,
        chunk_size=chunk_size,
    )
    exact = with_data(exact, found.simulated.args)
    expected = exact.log_evidence_per_datum()
    torch.testing.assert_close(found.per_datum["upper"].value, expected, rtol=0, atol=1e-9)


class Halve(torch.nn.Module):
    def forward(self, x):
        return x.unsqueeze(-1) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exact", "guide"),
    [
        (MODELS["regression"], partial(px.AutoJoint, family=px.FullCovariance())),
        (MODELS["counts, global"], px.AutoJoint),
        (MODELS["counts, local"], px.AutoPerDatapoint),
        (MODELS["hierarchy"], px.AutoPerDatapoint),
        (MODELS["local"], partial(px.AutoAmortized, encoder=Halve())),
    ],
)
def test_automatic_guides_as_a_start(exact, guide):
    guide = guide(exact.model)
    found = px.bdmc(
        exact.model,
        guide,
        *exact.args,
        start="guide",
        num_temperatures=200,
        seed=0,
    )
    assert found.reliable
    log_p = with_data(exact, found.simulated.args).log_evidence().item()
    assert_at_most(total(found.log_weights), log_p)
    assert abs(found.log_evidence.value - log_p) < Z_LIMIT * found.log_evidence.se
    assert found.upper.value > log_p - Z_LIMIT * found.upper.se


@pytest.mark.slow
def test_a_support_of_another_shape():
    counts = torch.tensor([3.0, 1.0, 0.0, 6.0])

    def model(counts):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        pyro.sample("x", dist.Multinomial(probs=p, total_count=10), obs=counts)

    found = px.ais(model, model, counts, start="prior", num_chains=300, seed=0)
    # The Dirichlet-multinomial with equal weights is uniform over all counts.
    exact = -math.log(math.comb(13, 3))
    assert_at_most(found.log_weights, exact)
    assert abs(found.log_evidence.value - exact) < Z_LIMIT * found.log_evidence.se


@pytest.mark.slow
def test_trajectories_that_leave_the_support_are_rejected():
    x = 5 + 0.3 * torch.randn(30, generator=torch.Generator().manual_seed(0))

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.HalfNormal(10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    # Far from the data at a small scale the gradient is huge: a step of it overflows.
    found = px.ais(model, model, x, start="prior", num_temperatures=400, seed=0)
    log_scale = torch.linspace(-3.0, 2.0, 2001)
    covariance = log_scale.exp().square()[:, None, None] * torch.eye(30) + 100.0
    likelihood = MultivariateNormal(torch.zeros(30), covariance).log_prob(x)
    prior = dist.HalfNormal(10.0).log_prob(log_scale.exp()) + log_scale
    exact = torch.logsumexp(likelihood + prior, 0) + math.log(log_scale[1] - log_scale[0])
    assert found.reliable
    assert abs(found.log_evidence.value - exact) < Z_LIMIT * found.log_evidence.se
    assert found.lower.value < exact
    assert 0.5 < found.acceptance < 0.9


def test_chains_whose_covariance_has_no_root_are_rejected():
    def model(x):
        scale = pyro.sample("scale", dist.Exponential(1.0))
        if scale.max() > 8:
            raise torch.linalg.LinAlgError("not positive-definite")
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    guide = px.AutoJoint(model, init_scale=0.7)
    x = torch.tensor(3.0)
    guide.setup(x)
    found = px.ais(model, guide, x, num_chains=20, num_temperatures=20, num_leapfrog=2, seed=0)
    grid = torch.linspace(0.0, 8.0, 8001)[1:]
    value = dist.Exponential(1.0).log_prob(grid) + dist.Normal(0.0, grid).log_prob(x)
    exact = value.logsumexp(0) + math.log(1e-3)
    assert abs(found.log_evidence.value - exact) < Z_LIMIT * found.log_evidence.se


@pytest.mark.parametrize("num", [1, 7, 100])
def test_a_path_has_the_steps_that_are_asked_for(num):
    exact = MODELS["global"]
    with torch.no_grad():
        pilot = tune(path_of(exact), 3, 64)
    moves = pilot.refined(num)
    assert len(moves) == num
    assert moves.betas[0] == 0
    assert moves.betas[-1] == 1
    assert all(low < high for low, high in pairwise(moves.betas))
    assert len(moves.steps) == len(moves.scales) == num + 1
    torch.testing.assert_close(moves.scales[-1], pilot.scales[-1])


def test_temperatures_are_where_the_weights_change():
    """Narrower data take more steps, and their first one is as small as they are precise."""
    pilots = []
    for scale in (1.0, 0.01):
        exact = NormalGlobal(torch.zeros(1), scale)
        with torch.no_grad():
            pilots.append(tune(path_of(exact), 3, 256))
    assert len(pilots[1]) > 3 * len(pilots[0])
    # For w = exp(-s x² / 2) and a normal x the effective share is √(1 + 2 s) / (1 + s).
    assert pilots[1].betas[1] == pytest.approx(1.5e-4, rel=0.5)


def test_few_effective_chains_are_told():
    """A narrow start in one step: its weights have no mean."""
    with pytest.warns(UserWarning, match=r"ais: not to be trusted.*num_temperatures=4"):
        found = px.ais(LOCAL.model, off(LOCAL, 0.1), LOCAL.x, num_temperatures=1, seed=0)
    weights = found.log_weights.softmax(0)
    torch.testing.assert_close(found.effective, 1 / weights.square().sum(0))
    assert not found.reliable
    assert "not to be trusted" in str(found)
    right = px.ais(LOCAL.model, LOCAL.guide, LOCAL.x, num_chains=4, num_temperatures=1)
    torch.testing.assert_close(right.effective, torch.full((12,), 4.0))
    assert right.verdict == "good: the weights are worth 4 of 4 chains at the worst datapoint"


def test_text_names_the_bounds():
    found = px.bdmc(LOCAL.model, LOCAL.guide, LOCAL.x, num_chains=2, num_temperatures=2)
    assert "lower bound" in str(found)
    assert "upper bound" in str(found)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: px.ais(LOCAL.model, LOCAL.guide, LOCAL.x, num_chains=1), "got 1, 100 and 5"),
        (lambda: px.bdmc(LOCAL.model, LOCAL.guide, LOCAL.x, num_leapfrog=0), "num_leapfrog >= 1"),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_latents_that_a_mask_hides_keep_their_prior():
    """Without it the target is flat in them, and its integral infinite."""
    x, seen = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", 3), pyro.poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc, scale = torch.where(seen, x / 2, 0.0), torch.where(seen, 0.5**0.5, 1.0)
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(loc, scale))

    exact = torch.where(seen, dist.Normal(0.0, 2**0.5).log_prob(x), 0.0)
    found = px.ais(model, guide, x, num_chains=4, num_temperatures=3, seed=0)
    torch.testing.assert_close(found.per_datum["lower"].value, exact)
    rates = px.rates(model, guide, x, num_samples=30, seed=0).per_datum
    assert rates["rate"].value[1].abs() < 1e-12
    torch.testing.assert_close(-rates["rate"].value - rates["distortion"].value, exact)


def test_a_latent_without_elements_is_no_point():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    arguments = (model, px.AutoJoint(model, init_scale=0.8), torch.tensor(0.5))
    px.evidence(*arguments, num_particles=30, seed=0)
    px.ais(*arguments, num_chains=2, num_temperatures=1, start="prior")
    found = px.sbc(*arguments, num_simulations=2, num_draws=3, num_steps=1, seed=0)
    assert list(found.pit) == ["mu"]


def test_an_improper_prior_raises_where_it_would_be_drawn_from():
    def model(x):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    arguments = (model, px.AutoJoint(model), torch.tensor(0.5))
    for call, name in (
        (lambda: px.ais(*arguments, start="prior"), "ais"),
        (lambda: px.bdmc(*arguments), "bdmc"),
        (lambda: px.sbc(*arguments), "sbc"),
    ):
        message = rf"{name}: expected a model that can be drawn from; .*improper.*Write: dist.Norm"
        with pytest.raises(ValueError, match=message):
            call()


def test_discrete_latents_raise():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=x))

    for call in (px.ais, px.bdmc):
        with pytest.raises(
            ValueError, match=r"site 'k': expected a continuous latent.*Write: px.evidence"
        ):
            call(model, guide, torch.zeros(3))


def test_data_that_are_no_argument_raise():
    x = torch.zeros(3)

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"observed site 'x' to be an argument"):
        px.bdmc(model, px.AutoPerDatapoint(model))
