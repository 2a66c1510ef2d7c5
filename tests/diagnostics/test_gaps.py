import dataclasses
from functools import partial

import pyro
import pytest
import torch
from diagnostics.models import MODELS, Z_LIMIT
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from helpers import assert_mean
from models.linear_gaussian import LinearGaussian, data
from pyro_ext.diagnostics import gaps, rates
from pyro_ext.diagnostics._estimates import Elements

MODEL = LinearGaussian.random(num_features=8, latent_dim=2)
X = data(30, model=MODEL)


class Encoder(torch.nn.Module):
    """Sees less than it would need."""

    def forward(self, x):
        return x[:, :3].tanh()


@pytest.fixture(scope="module")
def guide():
    torch.manual_seed(0)
    guide = px.AutoAmortized(MODEL, Encoder(), plate="data", init_scale=0.3)
    guide.setup(X)
    return guide


@pytest.fixture(scope="module")
def found(guide):
    return gaps(MODEL, guide, X, num_samples=1000, seed=0)


def encoded(guide):
    with torch.no_grad():
        (group,) = guide.groups
        params = guide._params(group, guide._batch((X,), {}, draw=False), (X,), {})
        return group.posterior(params)


def test_gaps_of_a_linear_gaussian_model_are_those_in_closed_form(guide, found):
    mean, covariance = MODEL.posterior(X)
    precision = torch.linalg.inv(covariance)
    # The best diagonal normal has the posterior's mean and the precision's diagonal.
    approximation = (precision.diagonal().log().sum() - precision.logdet()).detach() / 2
    q = encoded(guide)
    exact = MultivariateNormal(mean.detach(), covariance.detach())
    whole = kl_divergence(MultivariateNormal(q.mean, q.variance.diag_embed()), exact)
    scores = {
        "approximation": (found.approximation.value - approximation) / found.approximation.se,
        "amortization": (found.amortization.value - (whole - approximation))
        / found.amortization.se,
    }
    for name, score in scores.items():
        assert score.abs().max() < Z_LIMIT, name
    assert found.approximation.se.max() < 0.01
    assert found.worst(3).tolist() == (whole.argsort(descending=True)[:3]).tolist()
    assert 0.9 < found.share < 1
    assert found.num_params == (16, 120)
    assert "amortization gap" in str(found)


def test_gaps_add_up_to_the_elbo(found):
    whole = found.log_evidence.value - found.approximation.value - found.amortization.value
    torch.testing.assert_close(whole, found.elbo.value, rtol=0, atol=1e-3)


def test_a_known_evidence_is_used(guide):
    exact = MODEL.log_evidence_per_datum(X).detach()
    found = gaps(MODEL, guide, X, log_evidence=exact, num_samples=200, num_steps=20, seed=0)
    torch.testing.assert_close(found.log_evidence.value, exact)
    assert found.k_hat is None


def weight_curve(q):
    """b and A of log w = b ε + ε A ε / 2 + const, where z = m + s ε is drawn from a diagonal q."""
    mean, covariance = MODEL.posterior(X)
    precision = torch.linalg.inv(covariance).detach()
    slope = -q.stddev * ((q.mean - mean.detach()) @ precision)
    scale = q.stddev.diag_embed()
    return slope, torch.eye(2) - scale @ precision @ scale


def variance(slope, curve):
    return slope.square().sum(-1) + curve.square().sum((-1, -2)) / 2


def test_paired_errors_are_those_of_the_same_noise():
    guide = px.AutoAmortized(MODEL, lambda x: x, plate="data")
    run = px.fit(MODEL, guide, data=X, num_steps=300, train="guide", seed=0)
    found = gaps(run, num_samples=500, seed=0)
    mean, covariance = (part.detach() for part in MODEL.posterior(X))
    narrow = torch.linalg.inv(covariance).diagonal().rsqrt().expand(len(X), 2)
    own, best = weight_curve(encoded(guide)), weight_curve(Normal(mean, narrow))
    paired = variance(best[0] - own[0], best[1] - own[1])
    assert_mean(500 * found.amortization.se.square() / paired, 1.0)
    separate = variance(*own) + variance(*best)
    assert_mean(500 * (found.elbo.se.square() + found.best_elbo.se.square()) / separate, 1.0)
    assert (paired < separate).all()


def test_a_guide_of_global_latents_has_one_gap():
    exact = MODELS["regression"]
    run = px.fit(exact.model, px.AutoJoint(exact.model), data=exact.args, num_steps=30, seed=0)
    found = gaps(run, num_samples=2000, seed=0)
    precision = torch.linalg.inv(exact.posterior().covariance)
    expected = (precision.diagonal().log().sum() - precision.logdet()).item() / 2
    assert found.approximation.value.shape == ()
    assert abs(found.approximation.value - expected) < Z_LIMIT * found.approximation.se
    assert found.amortization.value > 0.1
    assert found.seconds[0] == run.seconds
    assert "\nnats; guide" in str(found)
    assert "fitted to the data " in str(found)
    for value, told in ((0.9, True), (0.5, False)):
        text = str(dataclasses.replace(found, k_hat=px.KHat(torch.tensor(value), 2000)))
        assert (f"k-hat {value:.2f} (threshold 0.70" in text) == told


def test_a_fit_that_leaves_the_family_below_the_guide_is_told():
    """One step of 0.05 in each of 230 parameters, from a guide that is at its best."""

    def model(x):
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(20), 1.0).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(z, 0.1).to_event(1), obs=x)

    run = px.fit(
        model,
        px.AutoJoint(model, family=px.FullCovariance()),
        px.ELBO(4, estimator="stl"),
        torch.zeros(20),
        partial(torch.optim.Adam, lr=0.02),
        schedule=partial(CosineAnnealingLR, T_max=300),
        num_steps=300,
        seed=0,
    )
    with pytest.warns(UserWarning, match=r"nor the log evidence.*below the guide.*num_steps=4\."):
        assert gaps(run, num_samples=200, num_steps=1, seed=0).amortization.value < -1
    assert gaps(run, num_samples=200, num_steps=200, seed=0).amortization.value > -0.1


@pytest.mark.parametrize(
    "family", [px.Mixture(px.Diagonal(), num_components=3), px.Flow("planar")], ids=str
)
def test_families_that_share_out_particles_or_score_their_own_draws(family):
    exact = MODELS["global"]
    guide = px.AutoJoint(exact.model, family=family)
    run = px.fit(exact.model, guide, px.ELBO(3), exact.args, num_steps=1, seed=0)
    found = gaps(run, num_samples=99, num_steps=200, seed=0)
    assert found.best_elbo.value.isfinite()
    again = px.sbc(run, num_simulations=2, num_draws=9, num_steps=2, seed=0)
    assert again.refits == 2


def test_gaps_need_an_automatic_guide():
    exact = MODELS["local"]
    with pytest.raises(TypeError, match=r"one of the automatic guides.*got method"):
        gaps(exact.model, exact.guide, exact.x)


def test_an_evidence_of_another_shape_raises(guide):
    with pytest.raises(ValueError, match=r"shape \(30,\).*got \(3,\)"):
        gaps(MODEL, guide, X, log_evidence=torch.zeros(3), num_samples=100, num_steps=1)
    one = Elements(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"shape \(30,\).*got \(1,\)"):
        gaps(MODEL, guide, X, log_evidence=one, num_samples=100, num_steps=1)


def posterior_guide(x):
    mean, covariance = MODEL.posterior(x)
    with pyro.plate("data", len(x)):
        pyro.sample("z", pyro.distributions.MultivariateNormal(mean, covariance))


@pytest.mark.parametrize("chunk_size", [None, 8000])
def test_rates_of_a_linear_gaussian_model_are_those_in_closed_form(chunk_size):
    found = rates(MODEL, posterior_guide, X, num_samples=500, chunk_size=chunk_size, seed=0)
    mean, covariance = (part.detach() for part in MODEL.posterior(X))
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    rate = kl_divergence(MultivariateNormal(mean, covariance), prior)
    error = (found.per_datum["rate"].value - rate) / found.per_datum["rate"].se
    assert error.abs().max() < Z_LIMIT
    marginals = Normal(mean, covariance.diagonal().sqrt())
    kl = kl_divergence(marginals, Normal(0.0, 1.0)).mean(0)
    # Each datum's mean is off by sd / √500, its log sd by 1 / √1000, over 30 data.
    torch.testing.assert_close(found.kl, kl, rtol=0, atol=0.05)
    torch.testing.assert_close(found.spread, mean.var(0), rtol=0.05, atol=0.02)
    assert found.labels == ["z[0]", "z[1]"]
    assert found.active.all()
    elbo = px.evidence(MODEL, posterior_guide, X, num_particles=20, num_repeats=2).elbo
    assert found.elbo == pytest.approx(elbo.value)
    assert found.aggregated_test.p_value > 0.001
    assert "active dimensions" in str(found)


def test_unused_latents_are_not_active_and_overlap():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", pyro.distributions.Normal(z[..., 0], 0.1), obs=x)

    def guide(x):
        loc = torch.stack([x, torch.zeros_like(x)], -1)
        with pyro.plate("data", len(x)):
            scale = torch.tensor([0.1, 1.0])
            pyro.sample("z", pyro.distributions.Normal(loc, scale).to_event(1))

    x = 3 * torch.arange(20.0) - 30
    found = rates(model, guide, x, num_samples=2000, seed=0)
    assert found.active.tolist() == [True, False]
    assert abs(found.kl[1].item()) < 0.002
    # Neighbours are 30 sds apart; the coefficient of the far ones vanishes.
    assert found.neighbour_overlap.max() < 1e-40
    assert found.aggregated_test.p_value < 0.01
    same = rates(model, guide, torch.zeros(20), num_samples=2000, seed=0)
    assert same.neighbour_overlap.min() > 0.99


@pytest.mark.parametrize("chunk_size", [None, 8000])
def test_kl_to_a_prior_of_each_datum(chunk_size):
    """A prior that depends on covariates is another one in each row."""
    covariate = torch.arange(30.0)

    def model(covariate, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(covariate, 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    def guide(covariate, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(covariate + 0.5, 0.5**0.5))

    options = {"num_samples": 500, "chunk_size": chunk_size, "seed": 0}
    found = rates(model, guide, covariate, covariate + 1, **options)
    expected = kl_divergence(Normal(0.5, 0.5**0.5), Normal(torch.zeros(()), 1.0))
    torch.testing.assert_close(found.kl, expected.expand(1), rtol=0, atol=0.05)


def test_overlap_has_no_units():
    def pair(unit):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", pyro.distributions.Normal(0.0, unit))
                pyro.sample("x", pyro.distributions.Normal(z, unit), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", pyro.distributions.Normal(x / 2, 0.5**0.5 * unit))

        return model, guide, 3 * unit * torch.arange(5.0)

    large, small = (rates(*pair(unit), num_samples=100, seed=0) for unit in (1.0, 1e-8))
    torch.testing.assert_close(small.neighbour_overlap, large.neighbour_overlap)
    assert large.neighbour_overlap.max() < 0.8


def test_what_has_no_kl_in_closed_form_is_not_printed():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            s = pyro.sample("s", pyro.distributions.Gamma(2.0, 2.0))
            pyro.sample("x", pyro.distributions.Normal(z, s), obs=x)

    guide = px.AutoPerDatapoint(model)
    text = str(rates(model, guide, torch.zeros(20), num_samples=50, seed=0))
    assert "nan" not in text
    assert "KL per dimension      z " in text

    def positive(x):
        with pyro.plate("data", len(x)):
            pyro.sample("s", pyro.distributions.Gamma(2.0, 2.0))

    text = str(rates(positive, positive, torch.zeros(20), num_samples=50, seed=0))
    assert "KL per dimension      not known" in text


def test_rates_need_local_latents():
    exact = MODELS["hierarchy"]
    with pytest.raises(ValueError, match="latents in one data plate"):
        rates(exact.model, exact.guide, exact.x)
    exact = MODELS["local"]
    with pytest.raises(ValueError, match=r"two datapoints or more.*got 1. Write: px.evidence"):
        rates(exact.model, exact.guide, exact.x[:1])
