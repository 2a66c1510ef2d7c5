import pytest
import torch
from scipy.stats import binom, norm

from helpers import TEST_FAILURE_RATE, assert_at_most, assert_mean, assert_paired_mean


def failures(assertion, *, runs):
    count = 0
    for _ in range(runs):
        try:
            assertion()
        except AssertionError:
            count += 1
    return count


def binomial_interval(runs, rate):
    return binom.ppf([TEST_FAILURE_RATE / 2, 1 - TEST_FAILURE_RATE / 2], runs, rate)


@pytest.mark.parametrize("rows", [3, 200])
@pytest.mark.parametrize("assertion", [assert_mean, assert_at_most])
def test_false_alarm_rate_is_the_stated_one(assertion, rows):
    rate = 0.05
    low, high = binomial_interval(3000, rate)
    count = failures(lambda: assertion(torch.randn(rows), 0.0, failure_rate=rate), runs=3000)
    assert low <= count <= high


def test_normal_quantile_would_raise_the_false_alarm_rate_of_few_rows():
    rows = torch.randn(3000, 3)
    scores = rows.mean(1) / (rows.std(1) / 3**0.5)
    _, high = binomial_interval(3000, 0.05)
    assert (scores.abs() > norm.isf(0.025)).sum() > high


def test_failure_rate_is_shared_among_scalars():
    low, high = binomial_interval(1000, 0.05)
    count = failures(lambda: assert_mean(torch.randn(50, 40), 0.0, failure_rate=0.05), runs=1000)
    assert low <= count <= high


def test_small_bias_is_found():
    samples = torch.randn(200_000)
    assert_mean(samples, 0.0)
    with pytest.raises(AssertionError, match=r"expected mean == 0, got 0\.0[12]\d* with standard"):
        assert_mean(samples + 0.02, 0.0)


def test_bias_of_one_scalar_among_many_is_named():
    samples = torch.randn(1000, 2, 3)
    samples[:, 1, 0] += 1.0
    with pytest.raises(AssertionError, match="scalar 3 of 6"):
        assert_mean(samples, torch.zeros(3))


def test_pairing_finds_what_separate_samples_hide():
    common = 100 * torch.randn(1000)
    biased = common + 0.1 + 0.01 * torch.randn(1000)
    assert_mean(biased, 0.0)
    with pytest.raises(AssertionError, match="expected mean == 0"):
        assert_paired_mean(biased, common)
    assert_paired_mean(biased, common, difference=0.1)


def test_at_most_is_one_sided():
    samples = torch.randn(1000)
    assert_at_most(samples, 0.0)
    assert_at_most(samples - 100.0, 0.0)
    with pytest.raises(AssertionError, match="expected mean <= 0"):
        assert_at_most(samples + 0.3, 0.0)


def test_rows_without_spread_must_agree_to_rounding():
    third = torch.full((4,), 1 / 3)
    assert_mean(third, 1 / 3)
    assert_mean(torch.zeros(4), 0.0)
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(third, 1 / 3 + 1e-9)
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(torch.zeros(4), 1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("assertion", [assert_mean, assert_at_most])
def test_values_that_are_not_finite_fail(assertion, bad):
    with pytest.raises(AssertionError, match="samples are not finite"):
        assertion(torch.tensor([0.0, 1.0, bad]), 0.0)
    with pytest.raises(AssertionError, match="reference is not finite"):
        assertion(torch.tensor([0.0, 1.0]), bad)


def test_misuse_is_an_error_not_a_failure():
    with pytest.raises(ValueError, match="at least 2 independent rows"):
        assert_mean(torch.zeros(1), 0.0)
    with pytest.raises(ValueError, match="broadcasts to one row"):
        assert_mean(torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match="samples of one shape"):
        assert_paired_mean(torch.zeros(5, 1), torch.zeros(5))
