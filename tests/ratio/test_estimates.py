import math

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from helpers import assert_mean
from pyro_ext.ratio.estimate import js_estimate, kl_estimate
from pyro_ext.ratio.report import report

CHANCE = norm.isf(0.5e-6)  # standard errors that a right value exceeds once in a million
DIM, NUM = 5, 20_000


def normals(shift, dim=DIM):
    one = torch.ones(dim)
    return Independent(Normal(shift * one, one), 1), Independent(Normal(0 * one, one), 1)


def log_ratios(shift, num=NUM, dim=DIM):
    p, q = normals(shift, dim)
    x_p, x_q = p.sample((num,)), q.sample((num,))
    return tuple(p.log_prob(x) - q.log_prob(x) for x in (x_p, x_q))


@pytest.mark.parametrize("method", ["plug-in", "nwj", "dv"])
def test_kl_at_the_exact_ratio(method):
    """The standard error is under 0.02 nats: a bias of 0.1 of 0.625 is found."""
    found = kl_estimate(*log_ratios(0.5), method=method)
    assert found.se < 0.02
    assert abs(found.value - DIM * 0.5**2 / 2) < CHANCE * found.se
    assert found.doubts == ()


@pytest.mark.parametrize("method", ["plug-in", "nwj", "dv", "js"])
def test_standard_error_is_the_spread_over_samples(method):
    found = [
        js_estimate(*pair) if method == "js" else kl_estimate(*pair, method=method)
        for pair in (log_ratios(0.4, num=500) for _ in range(400))
    ]
    values = torch.tensor([one.value for one in found])
    mean_square = torch.tensor([one.se**2 for one in found]).mean()
    # (x - mean)² of normal values has mean σ² and a standard error of σ² sqrt(2 / n).
    assert_mean((values - values.mean()) ** 2 * 400 / 399, mean_square)


def test_donsker_varadhan_takes_off_the_constant():
    log_r_p, log_r_q = log_ratios(0.5)
    right, shifted = (kl_estimate(log_r_p + c, log_r_q + c, method="dv") for c in (0.0, 3.0))
    assert right.value == pytest.approx(shifted.value)
    assert right.se == pytest.approx(shifted.se)


def test_js_is_that_of_quadrature_and_at_most_log_two():
    x = torch.linspace(-12, 12, 100_001)
    p, q = Normal(torch.tensor(1.0), torch.tensor(1.0)), Normal(torch.tensor(0.0), torch.ones(()))
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    exact = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum() / 2
    found = js_estimate(*log_ratios(1.0, dim=1))
    assert abs(found.value - float(exact) * float(x[1] - x[0])) < CHANCE * found.se
    far = js_estimate(torch.full((9,), 800.0), torch.full((9,), -800.0))
    assert far.value == pytest.approx(math.log(2))


def test_labels_say_what_is_a_bound():
    pair = log_ratios(0.5, num=100)
    assert kl_estimate(*pair).what == "estimate of KL(p‖q)"
    assert kl_estimate(*pair, method="nwj").what.startswith("lower bound")
    assert "estimate of KL" in str(kl_estimate(*pair))
    assert js_estimate(*pair).what.startswith("lower bound")


def test_accuracy_and_auc_of_the_exact_ratio():
    """Equal covariances: accuracy Φ(δ/2), AUC Φ(δ/√2) with δ the distance of the means."""
    found = report(*log_ratios(0.5))
    delta = 0.5 * DIM**0.5
    assert abs(found.accuracy - norm.cdf(delta / 2)) < CHANCE * found.accuracy_se
    auc_error = math.sqrt(0.25 / NUM)  # at most, whatever the distributions
    assert abs(found.auc - norm.cdf(delta / 2**0.5)) < CHANCE * auc_error
    assert found.p_value < 1e-12


def test_auc_counts_pairs():
    p, q = torch.randint(0, 4, (30,)).double(), torch.randint(-1, 3, (30,)).double()
    wins = (p.unsqueeze(1) > q).double() + (p.unsqueeze(1) == q).double() / 2
    assert report(p, q).auc == pytest.approx(float(wins.mean()))


def test_calibration_error():
    """One bin of ten holds 4000 samples: its share of p has a standard error of 0.008."""
    log_r_p, log_r_q = log_ratios(0.5)
    assert report(log_r_p, log_r_q).calibration_error < 0.008
    assert report(3 * log_r_p, 3 * log_r_q).calibration_error > 0.05


def test_calibration_error_of_samples_with_few_values():
    p, q = Bernoulli(torch.tensor(0.6)), Bernoulli(torch.tensor(0.4))
    x_p, x_q = p.sample((10_000,)), q.sample((10_000,))
    exact = [p.log_prob(x) - q.log_prob(x) for x in (x_p, x_q)]
    # The share of p at either value is off by 0.005 in standard deviation, at most.
    assert report(*exact).calibration_error < 5 * 0.005
    constant = torch.zeros(1000)
    assert report(constant, constant).calibration_error == 0


def test_two_sample_test_of_equal_distributions():
    p_values = torch.tensor(
        [report(torch.randn(400), torch.randn(400)).p_value for _ in range(2000)]
    )
    assert_mean((p_values < 0.1).double(), 0.1, failure_rate=1e-3)


DOUBTS = {
    "beyond log": (torch.full((50,), 20.0), torch.linspace(-60, 21, 50)),
    "hardly overlap": (torch.linspace(1, 2, 50), torch.linspace(-9, -8, 50)),
    "mean of p/q over q is": (torch.linspace(-1, 3, 50), torch.linspace(-9, 20, 50)),
    "mean of q/p over p is": (torch.linspace(-30, 3, 50), torch.linspace(-9, 3, 50)),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_doubts(doubt):
    found = kl_estimate(*DOUBTS[doubt])
    assert any(doubt in one for one in found.doubts)
    assert "doubtful" in str(found)


@pytest.mark.parametrize(
    ("factor", "doubts"),
    [(1.0, []), (0.6, ["too small: 1.25 times"]), (1.6, ["too large: 0.8 times"])],
)
def test_links_whose_sum_is_off_by_a_factor(factor, doubts):
    log_r_p, log_r_q = (factor * log_r for log_r in log_ratios(1.0))
    found = kl_estimate(log_r_p, log_r_q, links=[(log_r_p / 9, log_r_q / 9)]).doubts
    assert len(found) == len(doubts)
    assert all(doubt in one for doubt, one in zip(doubts, found, strict=True))


def test_unknown_method():
    with pytest.raises(ValueError, match=r"expected method to be one of .* Write: ratio\.kl"):
        kl_estimate(*log_ratios(0.5, num=10), method="exact")


def test_closed_form_of_the_normals():
    p, q = normals(0.5)
    assert float(kl_divergence(p, q)) == pytest.approx(DIM * 0.125)
