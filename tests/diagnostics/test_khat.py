import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from diagnostics.models import Z_LIMIT, scaled
from scipy.stats import ttest_ind

import pyro_ext as px
from pyro_ext.diagnostics import KHat, k_hat, k_hat_joint, k_hat_per_datapoint
from pyro_ext.testing import NormalGlobal, NormalHierarchy, NormalLocal

EXACT = {
    "local": NormalLocal.simulate(12),
    "global": NormalGlobal.simulate(12),
    "hierarchy": NormalHierarchy.simulate(12),
}


def normal_weights(scale, num=2000, batch=()):
    """Weights of N(0, 1) under draws of N(0, scale²): k = 1 - scale²."""
    z = scale * torch.randn(num, *batch)
    return dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(0.0, scale).log_prob(z)


@pytest.mark.parametrize("value", [0.0, -1234.5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_weights_get_zero(value, dtype):
    weights = torch.full((100, 3), value, dtype=dtype)
    weights[:, 1] += torch.finfo(dtype).eps * abs(value) * torch.randint(3, (100,))
    found = k_hat(weights)
    assert found.values.tolist() == [0.0, 0.0, 0.0]
    assert found.verdict == "good"


def test_shape_is_the_batch():
    assert k_hat(normal_weights(0.9, batch=(3, 2))).values.shape == (3, 2)
    assert k_hat(normal_weights(0.9)).values.shape == ()


def test_elements_are_fitted_one_by_one():
    weights = normal_weights(0.8, batch=(3, 2))
    together = k_hat(weights).values
    alone = k_hat(weights[:, 2, 1]).values
    torch.testing.assert_close(together[2, 1], alone, rtol=0, atol=0)


@pytest.mark.parametrize("shift", [0.0, 700.0, -5e3])
def test_does_not_depend_on_the_constant(shift):
    weights = normal_weights(0.8)
    torch.testing.assert_close(k_hat(weights + shift).values, k_hat(weights).values)


@pytest.mark.parametrize(("shape", "margin"), [(0.2, 0.12), (0.5, 0.15), (0.9, 0.2)])
def test_recovers_the_shape_of_a_pareto_tail(shape, margin):
    # The estimate's sd is near (1 + k) / sqrt(3 sqrt(20000)) = 0.06 to 0.09, before shrinkage.
    uniform = torch.rand(20_000, 8)
    found = k_hat(-shape * uniform.log()).values.mean().item()
    assert abs(found - shape) < margin


def test_right_tail_and_not_the_left_one():
    weights = -0.9 * torch.rand(4000).log()
    assert k_hat(weights).values > 0.6
    assert k_hat(-weights).values < 0.3


def test_narrow_guide_is_caught_and_wide_one_is_not():
    narrow, wide = k_hat(normal_weights(0.4)), k_hat(normal_weights(1.2))
    assert narrow.values > narrow.threshold
    assert narrow.verdict == "not to be trusted"
    assert wide.values < 0.5
    assert wide.verdict == "good"


@pytest.mark.parametrize(
    ("draws", "threshold"), [(100, 0.5), (320, 0.6), (1000, 2 / 3), (2200, 0.7), (10**6, 0.7)]
)
def test_threshold_follows_the_number_of_draws(draws, threshold):
    assert math.isclose(KHat(torch.zeros(()), draws).threshold, threshold, abs_tol=2e-3)


def test_verdict_over_datapoints():
    values = torch.tensor([0.1, 0.9, 0.2, 0.6])
    found = KHat(values, 10_000)
    assert found.worst(2).tolist() == [1, 3]
    assert found.share_above == 0.25
    assert found.verdict == "not to be trusted for 25% of the datapoints"
    assert "median 0.20, 25.0% above (threshold 0.70 for 10000 draws)" in str(found)
    assert KHat(values[[0, 3]], 10_000).verdict == "usable with importance correction"
    assert KHat(values[[1, 1]], 10_000).verdict.startswith("not to be trusted (100%")


def test_tied_weights_that_cannot_be_fitted_are_not_trusted():
    weights = torch.zeros(1000)
    weights[:3] = 5.0
    assert k_hat(weights).values == math.inf


@pytest.mark.parametrize("spread", [500.0, 5e4])
def test_a_tail_that_vanishes_beside_the_largest_weight_is_not_trusted(spread):
    found = k_hat(spread * torch.randn(10_000, 3))
    assert (found.values == math.inf).all()
    assert found.verdict.startswith("not to be trusted")


def test_a_wide_tail_that_can_be_fitted_is():
    found = k_hat(100.0 * torch.randn(10_000, 3)).values
    assert ((found > 10) & (found < 100)).all()


def test_zero_weights_are_allowed():
    weights = normal_weights(1.1)
    weights[:500] = -math.inf
    assert k_hat(weights).values.isfinite()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(10, 2), r"at least 25 particles.*\(10, 2\)"),
        (torch.full((100,), math.nan), "100 of 100 that are NaN"),
        (torch.full((100,), math.inf), "NaN or inf"),
        (torch.full((100,), -math.inf), "outside the model's support"),
    ],
)
def test_bad_weights_raise(weights, message):
    with pytest.raises(ValueError, match=message):
        k_hat(weights)


@pytest.mark.parametrize("exact", EXACT.values(), ids=EXACT)
def test_exact_guide_has_joint_k_hat_zero(exact):
    assert k_hat_joint(exact.model, exact.guide, *exact.args, num_samples=100).values == 0


@pytest.mark.parametrize("name", ["local", "hierarchy"])
@pytest.mark.parametrize("subsample_size", [None, 5])
def test_exact_guide_has_k_hat_zero_per_datapoint(name, subsample_size):
    exact = dataclasses.replace(EXACT[name], subsample_size=subsample_size)
    found = k_hat_per_datapoint(
        exact.model, exact.guide, *exact.args, num_samples=100, chunk_size=450
    )
    assert found.values.tolist() == [0.0] * 12


def test_per_datapoint_does_not_depend_on_mini_batches():
    exact = NormalLocal.simulate(40)
    narrow = scaled(exact, 0.6)
    whole = k_hat_per_datapoint(exact.model, narrow, exact.x, num_samples=500, seed=3)
    batches = dataclasses.replace(exact, subsample_size=7)
    found = k_hat_per_datapoint(
        batches.model, scaled(batches, 0.6), exact.x, num_samples=500, seed=3
    )
    torch.testing.assert_close(found.values, whole.values)


@pytest.mark.parametrize("name", ["global", "hierarchy"])
def test_joint_does_not_depend_on_mini_batches(name):
    exact = EXACT[name]
    batches = dataclasses.replace(exact, subsample_size=5)
    guide = px.AutoJoint if name == "global" else px.AutoPerDatapoint
    found = []
    for one in (exact, batches):
        torch.manual_seed(0)
        found.append(k_hat_joint(one.model, guide(one.model), one.x, num_samples=500, seed=3))
    assert found[0].values > 0.3
    torch.testing.assert_close(found[1].values, found[0].values)


def test_per_datapoint_does_not_depend_on_the_number_of_data():
    found = []
    for num in (20, 200):
        exact = NormalLocal.simulate(num)
        guide = scaled(exact, 0.6)
        # The weights' law is that of every datum, whatever its value.
        found.append(k_hat_per_datapoint(exact.model, guide, exact.x, seed=num).values)
    assert ttest_ind(*found, equal_var=False).pvalue > 1e-6
    # k = 1 - 0.6² = 0.64 at every datapoint, which 1000 draws show but for their bias.
    assert 0.4 < found[1].mean() < 0.75
    joint = k_hat_joint(exact.model, guide, exact.x, num_samples=1000, seed=1)
    assert joint.values > joint.threshold


def eight_schools(*, centred):
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        loc, scale = (mu, tau) if centred else (0.0, 1.0)
        with pyro.plate("school", 8):
            eta = pyro.sample("eta", dist.Normal(loc, scale))
            theta = eta if centred else mu + tau * eta
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("centred", "family", "elbo", "known"),
    [
        (False, px.Diagonal(), -31.599, 0.66),
        (False, px.FullCovariance(), -31.535, 0.61),
        (True, px.Diagonal(), -33.405, 0.90),
        (True, px.FullCovariance(), -32.592, 0.84),
    ],
)
def test_best_normals_of_eight_schools(centred, family, elbo, known):
    """Against ELBO (± 0.0015) and k-hat of an independent computation, from 400,000 draws too."""
    model = eight_schools(centred=centred)
    run = px.fit(model, data=(), optim="auto", family=family, seed=0, progress=False)
    found = px.evidence(run, num_particles=100_000, num_repeats=4, seed=0)
    assert abs(found.elbo.value - elbo) < Z_LIMIT * math.hypot(found.elbo.se, 0.0015)
    # The sd of a k-hat from a tail of 3 √S draws is (1 + k) / √(3 √S), theirs and ours.
    error = (1 + known) / (3 * 400_000**0.5) ** 0.5
    assert abs(found.k_hat.values - known) < Z_LIMIT * error * 2**0.5


@pytest.mark.parametrize("subsample_size", [None, 10])
def test_chunks_of_rows_pair_each_row_with_its_own_parameters(subsample_size):
    exact = dataclasses.replace(NormalLocal.simulate(40, scale=0.3), subsample_size=subsample_size)
    guide = px.AutoPerDatapoint(exact.model)
    guide.setup(*exact.args)
    mean, covariance = exact.posterior()
    scale = covariance[:, 0].sqrt().clone()
    with torch.no_grad():
        guide.local_params.copy_(px.Diagonal().initial_params(mean, scale))
    found = k_hat_per_datapoint(exact.model, guide, *exact.args, num_samples=100, chunk_size=1700)
    assert found.values.tolist() == [0.0] * 40


def test_chunks_of_particles_give_all_draws():
    exact = NormalGlobal.simulate(12)
    guide = px.AutoJoint(exact.model)
    found = k_hat_joint(exact.model, guide, exact.x, num_samples=101, chunk_size=10)
    assert found.num_draws == 101


def test_no_datapoints_raise():
    exact = EXACT["global"]
    with pytest.raises(ValueError, match="k_hat_joint"):
        k_hat_per_datapoint(exact.model, exact.guide, *exact.args)


def test_model_alone_raises():
    with pytest.raises(TypeError, match="a run, or a model and a guide"):
        k_hat_joint(EXACT["global"].model)


def test_chunk_size_must_be_positive():
    exact = EXACT["global"]
    with pytest.raises(ValueError, match="chunk_size >= 1"):
        k_hat_joint(exact.model, exact.guide, *exact.args, chunk_size=0)
