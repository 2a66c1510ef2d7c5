import math

import numpy as np
import pytest
import torch
from arviz_base import from_dict
from arviz_stats.base.array import array_stats
from diagnostics.models import MODELS
from scipy.stats import binom, ks_2samp, wasserstein_distance

import pyro_ext as px
from pyro_ext.diagnostics import distances, nuts
from pyro_ext.diagnostics._distances import (
    classifier_test,
    covariance_error,
    ecdf_difference,
    mmd_test,
    sliced_wasserstein,
)

REPEATS, LEVEL = 100, 0.1


def generator():
    return torch.Generator().manual_seed(0)


def rejections(test, change):
    draws = generator()
    both = [torch.randn(2, 200, 2, generator=draws) for _ in range(REPEATS)]
    seed = generator()
    return sum(test(change(left), right, seed).p_value <= LEVEL for left, right in both)


@pytest.mark.parametrize("test", [lambda *a: mmd_test(*a, 99), classifier_test])
def test_p_values_are_calibrated(test):
    # As many rejections as the level allows, up to a chance of one in a million.
    assert rejections(test, lambda draws: draws) <= binom.isf(1e-6, REPEATS, LEVEL)


CHANGES = {
    "shift": lambda z: z + 0.5,
    "narrow": lambda z: 0.5 * z,
    "correlated": lambda z: torch.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("test", [lambda *a: mmd_test(*a, 99), classifier_test])
def test_differences_are_found(test, change):
    assert rejections(test, change) > 0.8 * REPEATS


def test_mmd_is_the_mean_over_all_pairs():
    left, right = torch.randn(5, 2), torch.randn(4, 2)
    both = torch.cat([left, right])
    squares = (both[:, None] - both[None]).square().sum(-1)
    kernel = (-squares / squares[~torch.eye(9, dtype=torch.bool)].median()).exp()
    own = sum(kernel[i, j] for i in range(5) for j in range(5) if i != j) / 20
    theirs = sum(kernel[i, j] for i in range(5, 9) for j in range(5, 9) if i != j) / 12
    cross = kernel[:5, 5:].mean()
    found = mmd_test(left, right, generator(), 1)
    assert found.value == pytest.approx((own + theirs - 2 * cross).item())


def test_sliced_wasserstein_in_one_dimension_is_the_wasserstein_distance():
    left, right = torch.randn(1000, 1), 0.5 * torch.randn(1000, 1) + 1
    expected = wasserstein_distance(left[:, 0].numpy(), right[:, 0].numpy())
    assert sliced_wasserstein(left, right, generator()) == pytest.approx(expected, rel=0.01)


def test_sliced_wasserstein_of_a_shift_is_the_mean_projection():
    draws = torch.randn(500, 2)
    # |cos| of a random angle is 2/π on average; 200 directions are off by 2 %.
    found = sliced_wasserstein(draws, draws + torch.tensor([3.0, 0.0]), generator())
    assert found == pytest.approx(3 * 2 / math.pi, rel=0.11)


def test_covariance_error_is_that_of_the_scales():
    draws = torch.randn(1000, 3) @ torch.tensor([[1.0, 0.5, 0], [0, 1, 0.3], [0, 0, 0.1]])
    assert covariance_error(draws, draws) == pytest.approx(0, abs=1e-6)
    assert covariance_error(2 * draws, draws) == pytest.approx(3, rel=1e-6)


def test_ecdf_difference_is_the_statistic_of_kolmogorov_and_smirnov():
    left, right = torch.randn(300, 2), torch.randn(200, 2) * 2
    found = ecdf_difference(left, right)
    for column in range(2):
        expected = ks_2samp(left[:, column].numpy(), right[:, column].numpy()).statistic
        assert found[column] == pytest.approx(expected)


@pytest.fixture(scope="module")
def reference():
    exact = MODELS["regression"]
    return nuts(exact.model, *exact.args, num_samples=300, warmup_steps=150)


def test_nuts_draws_from_the_posterior(reference):
    exact = MODELS["regression"]
    mean, covariance = exact.posterior()
    draws = torch.as_tensor(reference["posterior"]["w"].values).flatten(0, 1)
    assert reference.attrs["kernel"] == "NUTS"
    error = (draws.mean(0) - mean) / covariance.diagonal().sqrt()
    # 600 draws of a chain that mixes well are worth 300 or more: five standard errors.
    assert error.abs().max() < 5 / 300**0.5


def test_nuts_leaves_the_random_state():
    exact = MODELS["global"]
    state = torch.get_rng_state()
    nuts(exact.model, *exact.args, num_samples=5, warmup_steps=5, num_chains=1)
    torch.testing.assert_close(torch.get_rng_state(), state)


def test_distances_to_nuts_tell_guides_apart(reference):
    exact = MODELS["regression"]
    mean, covariance = exact.posterior()
    torch.manual_seed(1)
    noise = torch.randn(4000, len(mean))
    good = {"w": mean + noise @ torch.linalg.cholesky(covariance).T}
    narrow = {"w": mean + noise / torch.linalg.inv(covariance).diagonal().sqrt()}
    near, far = distances(good, reference), distances(narrow, reference)
    assert near.mmd.p_value > 1e-3
    assert near.classifier.p_value > 1e-3
    assert far.mmd.p_value < 0.01
    assert far.classifier.p_value < 1e-3
    assert far.covariance_error > 3 * near.covariance_error
    assert far.sliced_wasserstein > 2 * near.sliced_wasserstein
    assert list(near.table.columns) == ["mean error", "noise", "sd ratio", "ecdf"]
    assert near.table.shape == (3, 4)
    assert "classifier accuracy" in str(near)


def test_exact_moments_give_the_marginals_only():
    exact = MODELS["global"]
    mean, covariance = exact.posterior()
    run = px.fit(exact.model, px.AutoJoint(exact.model), data=exact.x, num_steps=600, seed=0)
    found = distances(run, {"mu": (mean[0], covariance[0, 0].sqrt())})
    assert found.mmd is None
    assert found.marginals.worst_sd_ratio == pytest.approx(1, rel=0.1)
    assert "worst mean error" in str(found)


def test_draws_of_chains_are_thinned_on_either_side():
    """A tenth of the tests at a level of 0.1 reject then, where a quarter did."""
    moves = np.random.default_rng(0).standard_normal((2, 4, 25))
    left, right = (from_dict({"posterior": {"mu": part.repeat(20, 1)}}) for part in moves)
    thin = []
    for tree in (left, right):
        draws = torch.from_numpy(tree["posterior"]["mu"].values)
        size = int(array_stats.ess(draws.numpy(), chain_axis=0, draw_axis=1, method="mean"))
        thin.append(draws.flatten()[torch.linspace(0, 1999, size).long()].unsqueeze(1))
        assert 50 < size < 200
    assert (distances(left, right).ecdf == ecdf_difference(*thin)).all()


def test_scalars_of_one_name():
    draws = torch.randn(2, 200, 2, generator=generator())
    draws[0, :, 1] += 3
    names = {"dims": {"mu": ["who"]}, "coords": {"who": ["a", "a"]}}
    left, right = (px.from_draws({"mu": part}, **names) for part in draws)
    expected = distances({"mu": draws[0]}, {"mu": draws[1]})
    found = distances(left, right)
    assert (found.ecdf == expected.ecdf).all()
    assert found.sliced_wasserstein == expected.sliced_wasserstein
    assert expected.ecdf[1] > 2 * expected.ecdf[0]


def test_draws_that_do_not_vary():
    found = distances({"mu": torch.zeros(50)}, {"mu": torch.randn(50)})
    assert found.marginals.worst_sd_ratio == 0
