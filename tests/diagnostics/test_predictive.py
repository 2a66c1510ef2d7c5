import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from diagnostics.models import MODELS
from scipy.stats import ttest_ind
from torch.distributions import Normal

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.diagnostics import importance_resample, loo, marginal_log_likelihood
from pyro_ext.testing import LinearRegression, NormalGlobal, NormalHierarchy

REGRESSION = LinearRegression.simulate(40, 2, correlation=0.5)
REPEATS = 12


def mean_field(inputs, y):
    """The best mean-field answer of the regression."""
    mean, covariance = REGRESSION.posterior()
    scale = torch.linalg.inv(covariance).diagonal().rsqrt()
    pyro.sample("w", dist.Normal(mean, scale).to_event(1))


def exact_loo(exact):
    """log p(y_i | y_-i) of the regression."""
    found = []
    for i in range(len(exact.y)):
        keep = torch.arange(len(exact.y)) != i
        mean, covariance = LinearRegression(exact.inputs[keep], exact.y[keep]).posterior()
        row = exact.inputs[i]
        predictive = Normal(row @ mean, (1 + row @ covariance @ row).sqrt())
        found.append(predictive.log_prob(exact.y[i]))
    return torch.stack(found)


def repeated(function):
    return torch.stack([torch.as_tensor(function(seed)) for seed in range(REPEATS)])


def corrected(guide, seed):
    found = loo(REGRESSION.model, guide, *REGRESSION.args, num_samples=20_000, seed=seed)
    return found.elpd_i.values


def naive(guide, seed):
    from arviz_stats import loo as arviz_loo

    tree = px.to_datatree(
        REGRESSION.model, guide, *REGRESSION.args, num_samples=20_000, seed=seed, predictive=False
    )
    return arviz_loo(tree, pointwise=True).elpd_i.values


@pytest.fixture(scope="module")
def ours():
    return repeated(lambda seed: corrected(mean_field, seed)).sum(1)


@pytest.fixture(scope="module")
def plain():
    return repeated(lambda seed: naive(mean_field, seed)).sum(1)


def test_loo_of_a_mean_field_guide_is_that_of_the_posterior(ours):
    assert_mean(ours, exact_loo(REGRESSION).sum())


def test_loo_without_the_correction_is_off(plain):
    expected = exact_loo(REGRESSION).sum()
    error = plain.std() / REPEATS**0.5
    assert plain.mean() - expected > 10 * error
    exact = repeated(lambda seed: naive(REGRESSION.guide, seed)).sum(1)
    assert_mean(exact, expected)


def test_loo_of_a_diverged_guide_warns():
    def far(inputs, y):
        pyro.sample("w", dist.Normal(torch.full((2,), 1e3), 1.0).to_event(1))

    with pytest.warns(UserWarning, match=r"not to be trusted, whatever pareto_k.*k-hat inf"):
        loo(REGRESSION.model, far, *REGRESSION.args, num_samples=1000, seed=0)


@pytest.fixture(scope="module")
def loo_of_nuts():
    """Importance-corrected LOO of four chains, each by itself."""
    from arviz_base import from_dict
    from arviz_stats import loo as arviz_loo

    draws = px.nuts(
        REGRESSION.model, *REGRESSION.args, num_samples=250, warmup_steps=100, num_chains=4
    )
    w = torch.as_tensor(draws["posterior"]["w"].values)
    log_p = Normal(w @ REGRESSION.inputs.T, 1.0).log_prob(REGRESSION.y).unsqueeze(1).numpy()
    trees = [
        from_dict({"posterior": {"w": chain[None]}, "log_likelihood": {"y": log_p_of_chain}})
        for chain, log_p_of_chain in zip(w.numpy(), log_p, strict=True)
    ]
    return torch.tensor([float(arviz_loo(tree).elpd) for tree in trees])


@pytest.mark.slow
def test_loo_agrees_with_that_of_nuts(loo_of_nuts, ours):
    assert ttest_ind(ours, loo_of_nuts, equal_var=False).pvalue > 1e-3


def test_latents_of_datapoints_are_integrated_out():
    exact = NormalHierarchy.simulate(6, scale=0.7)
    tree = marginal_log_likelihood(
        exact.model, exact.guide, exact.x, num_samples=50, num_inner=7, chunk_size=100, seed=0
    )
    stats = tree["sample_stats"]
    # The guide is exact, so weights are constant: identities, not estimates.
    log_w = torch.as_tensor((stats["log_p"] - stats["log_q"]).values)
    torch.testing.assert_close(log_w, exact.log_evidence().expand(1, 50), rtol=0, atol=1e-9)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    prior = Normal(0.0, 1.0)
    total = torch.as_tensor(stats["log_p"].values[0])
    total = total - torch.as_tensor(tree["log_likelihood"]["x"].values[0]).sum(1)
    # What is left of log p is the prior of mu, whose value the likelihoods tell.
    assert (total <= prior.log_prob(torch.tensor(0.0)) + 1e-9).all()


def test_loo_of_a_hierarchy_is_that_of_its_marginal_model():
    exact = NormalHierarchy.simulate(10, scale=0.7)
    scale = (0.7**2 + 1) ** 0.5
    expected = []
    for i in range(10):
        keep = torch.arange(10) != i
        mean, variance = NormalGlobal(exact.x[keep], scale).posterior()
        predictive = Normal(mean[0], (variance[0, 0] + scale**2).sqrt())
        expected.append(predictive.log_prob(exact.x[i]))
    found = repeated(
        lambda seed: (
            loo(
                exact.model, exact.guide, exact.x, num_samples=2000, num_inner=2, seed=seed
            ).elpd_i.values
        )
    )
    assert_mean(found, torch.stack(expected))


def test_resampled_draws_have_the_moments_of_the_posterior():
    mean, covariance = REGRESSION.posterior()
    means, variances, raw = [], [], []
    for seed in range(30):
        tree = px.to_datatree(
            REGRESSION.model, mean_field, *REGRESSION.args, num_samples=2000, seed=seed
        )
        draws = importance_resample(tree, seed=seed)["posterior"]["w"].values[0]
        means.append(torch.as_tensor(draws.mean(0)))
        variances.append(torch.as_tensor(((draws - mean.numpy()) ** 2).mean(0)))
        raw.append(torch.as_tensor(tree["posterior"]["w"].values[0].var(0)))
    assert_mean(torch.stack(means), mean)
    relative = torch.stack(variances).mean(0) / covariance.diagonal()
    assert ((relative - 1).abs() < 0.05).all()
    assert (torch.stack(raw).mean(0) / covariance.diagonal() < 0.92).all()


def test_predictions_go_with_their_draws():
    tree = px.to_datatree(REGRESSION.model, mean_field, *REGRESSION.args, num_samples=500, seed=0)
    again = importance_resample(tree, 200)
    assert again["posterior_predictive"]["y"].shape == (1, 200, 40)
    assert again["observed_data"]["y"].shape == (40,)
    draws = tree["posterior"]["w"].values[0]
    for index in (0, 50, 199):
        (place,) = np.nonzero((draws == again["posterior"]["w"].values[0, index]).all(1))
        np.testing.assert_array_equal(
            again["posterior_predictive"]["y"].values[0, index],
            tree["posterior_predictive"]["y"].values[0, place[0]],
        )
    assert 0 < again.attrs["k_hat"] < 0.7


def two_sites():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
            pyro.sample("y", dist.Normal(mu, 2.0), obs=x)

    return model, px.AutoJoint(model), torch.zeros(5)


def prior_only():
    pyro.sample("mu", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: loo(MODELS["local"].model, MODELS["local"].guide, MODELS["local"].x),
            "latents of datapoints only",
        ),
        (
            lambda: marginal_log_likelihood(
                MODELS["global"].model, MODELS["global"].guide, MODELS["global"].x
            ),
            "global latents and latents in a data plate",
        ),
        (
            lambda: marginal_log_likelihood(
                MODELS["hierarchy"].model, MODELS["hierarchy"].guide, num_inner=1
            ),
            "num_inner >= 2; got 1",
        ),
        (lambda: loo(*two_sites()), r"var_name.*\['x', 'y'\]; got None. Write: .*var_name='x'"),
        (lambda: loo(*two_sites(), var_name="z"), r"observed sites \['x', 'y'\]; got 'z'"),
        (lambda: loo(prior_only, prior_only), "got one that observes nothing"),
        (lambda: importance_resample(px.from_draws({"a": torch.zeros(30)})), "log_p and log_q"),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
