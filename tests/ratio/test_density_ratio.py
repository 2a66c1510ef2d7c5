import math
import warnings
from functools import partial

import pytest
import torch
from scipy.stats import norm
from torch.distributions import Independent, Normal, kl_divergence

from pyro_ext import ratio as pr
from pyro_ext.ratio.samples import Samples
from pyro_ext.ratio.telescope import BRIDGES

CHANCE = norm.isf(0.5e-6)
CLOSE = 0.05  # share of the KL divergence that a fit may miss
ADAM = partial(torch.optim.Adam, lr=0.03)
EVERY_BOUND = pytest.mark.parametrize("bound", ["jsd", "nwj", "dv", "infonce", "f:hellinger"])


def pair(dim):
    """Normals with KL(p‖q) near 1/2, whatever the dimension."""
    loc, scale = torch.full((dim,), dim**-0.5), torch.linspace(0.8, 1.1, dim)
    return (
        Independent(Normal(loc, scale), 1),
        Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1),
    )


def sampler(distribution):
    return lambda num: distribution.sample((num,))


def fitted(p, q, critic, *, bound="jsd", optim=ADAM, num_steps=600, **options):
    ratio = pr.DensityRatio(critic, bound=bound, optim=optim)
    ratio.fit(sampler(p), sampler(q), num_steps=num_steps, seed=0, **options)
    return ratio


@EVERY_BOUND
def test_every_bound_finds_the_ratio_of_normals(bound):
    p, q = pair(2)
    ratio = fitted(p, q, pr.QuadraticCritic(2), bound=bound, batch_size=512)
    exact = float(kl_divergence(p, q))
    for method in ("plug-in", "nwj", "dv"):
        found = ratio.kl(method=method)
        assert abs(found.value - exact) < CLOSE * exact + CHANCE * found.se
    x = p.sample((5000,))
    error = ratio.log_ratio(x).detach() - (p.log_prob(x) - q.log_prob(x))
    assert float(error.square().mean().sqrt()) < 0.2


@pytest.mark.parametrize("dim", [1, 5, 20])
@pytest.mark.parametrize("critic", ["quadratic", "network"])
def test_normals_in_many_dimensions(dim, critic):
    p, q = pair(dim)
    if critic == "quadratic":
        ratio = fitted(p, q, pr.QuadraticCritic(dim), batch_size=512)
    else:
        adam = partial(torch.optim.Adam, lr=3e-3)
        ratio = fitted(p, q, pr.MLPCritic(dim), optim=adam, num_steps=400)
    exact = float(kl_divergence(p, q))
    lower = ratio.kl(method="nwj")
    assert lower.value < exact + CHANCE * lower.se
    assert lower.value > exact * (1 - 3 * CLOSE) - CHANCE * lower.se
    x_p, x_q = p.sample((10_000,)), q.sample((10_000,))
    best = pr.jsd(p.log_prob(x_p) - q.log_prob(x_p), p.log_prob(x_q) - q.log_prob(x_q))
    assert abs(ratio.js().value - float(best)) < 2 * CHANCE * ratio.js().se


def test_tensors_are_split_and_the_held_out_rows_stay_unseen():
    rows = torch.arange(20.0).unsqueeze(-1)
    samples = Samples(rows, "p", held_out=0.25, num_held_out=99)
    seen = {float(x) for x in samples.batch(5000)}
    held = {float(x) for x in samples.held_out}
    assert len(held) == 5
    assert seen | held == set(range(20))
    assert not seen & held


def test_fit_on_tensors():
    p, q = pair(2)
    ratio = pr.DensityRatio(pr.QuadraticCritic(2), optim=ADAM)
    ratio.fit(p.sample((20_000,)), q.sample((15_000,)), num_steps=500, seed=1)
    found, exact = ratio.kl(), float(kl_divergence(p, q))
    assert found.num_samples == 3000
    assert abs(found.value - exact) < CLOSE * exact + CHANCE * found.se


def test_overfitting_shows_on_held_out_samples():
    """p = q: the bound climbs on 40 rows, while the held-out estimate knows better."""
    x = torch.randn(100, 10)
    ratio = pr.DensityRatio(pr.MLPCritic(10), optim=partial(torch.optim.Adam, lr=1e-2))
    ratio.fit(x[:50], x[50:], num_steps=300, seed=0)
    assert ratio.bounds[-1] > 0.5
    assert ratio.js().value < 0.1


@pytest.mark.parametrize("make", ["one", "chain"])
def test_a_further_fit_goes_on(make):
    quadratic = partial(pr.QuadraticCritic, 1)
    options = {"optim": partial(torch.optim.SGD, lr=0.1)}
    ratio = (
        pr.DensityRatio(quadratic(), **options)
        if make == "one"
        else pr.TelescopingRatio(quadratic, num_ratios=2, **options)
    )
    found = []
    for _ in range(2):
        ratio.fit(*two_normals(), num_steps=5, seed=0)
        found.append(float(ratio.log_ratio(torch.ones(1, 1)).detach()))
    assert found[1] > 1.1 * found[0] > 0  # it starts at 0, and is 1/2 at the end
    assert [group["lr"] for group in ratio._optimizer().param_groups] == [0.1]


class Erratic(torch.nn.Module):
    """A critic that in training mode is another one at each call, and learns its statistics."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.layers = torch.nn.Sequential(self.norm, torch.nn.Dropout(0.5), torch.nn.Linear(1, 1))

    def forward(self, x):
        return self.layers(x).squeeze(-1)


def test_a_chain_is_judged_in_evaluation_mode():
    ratio = pr.TelescopingRatio(Erratic, num_ratios=2, bound="dv")
    ratio.fit(*two_normals(), num_steps=20, seed=0)
    x = torch.randn(5, 1)
    before, statistics = ratio.log_ratio(x), ratio.critics[0].norm.running_mean.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pr.RatioWarning)  # it is a poor critic
        ratio.kl()
    assert torch.equal(ratio.log_ratio(x), before)
    assert torch.equal(ratio.critics[0].norm.running_mean, statistics)
    # The constant that the bound leaves free is that of the critic as it answers: the mean of r
    # over each link's far samples is 1, up to six times its standard error.
    for _, far in ratio._links():
        r = far.exp()
        assert abs(float(r.mean()) - 1) < 6 * float(r.std()) / len(r) ** 0.5


def test_density_and_weights():
    p, q = pair(1)
    ratio = fitted(p, q, pr.QuadraticCritic(1))
    x = q.sample((4000,))
    log_f1 = ratio.density(x, q.log_prob(x))
    torch.testing.assert_close(log_f1, q.log_prob(x) + ratio.log_ratio(x))
    weights = ratio.weights(x)
    assert float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(weights, torch.softmax(ratio.log_ratio(x).detach(), 0))
    grid = torch.linspace(-9, 9, 2001).unsqueeze(-1)
    density = ratio.density(grid, q.log_prob(grid), normalized=True).detach().exp()
    assert abs(float(density.sum()) * 18 / 2000 - 1) < CHANCE * math.sqrt(0.5 / 10_000) + 0.01


def test_normalized_ratio_has_mean_one_on_the_held_out_samples():
    p, q = pair(1)
    ratio = fitted(p, q, pr.QuadraticCritic(1), num_steps=3)
    _, x_q = ratio._held_out
    assert ratio.log_ratio(x_q, normalized=True).exp().mean().item() == pytest.approx(1)


def test_saturation_warns():
    far = Independent(Normal(torch.full((20,), 3.0), torch.ones(20)), 1)
    ratio = fitted(far, pair(20)[1], pr.QuadraticCritic(20))
    with pytest.warns(pr.RatioWarning, match=r"hardly overlap .*TelescopingRatio"):
        found = ratio.kl()
    assert found.doubts
    assert ratio.report().auc == pytest.approx(1)
    assert "AUC                1.0000\n" in str(ratio.report())


@pytest.mark.parametrize("bridge", BRIDGES)
def test_telescoping_ratio_of_normals(bridge):
    p, q = pair(2)
    make = partial(pr.QuadraticCritic, 2)
    if bridge == "mixture":  # the log ratio of mixtures is no quadratic
        make = partial(pr.MLPCritic, 2, hidden=(32,))
    ratio = pr.TelescopingRatio(make, num_ratios=3, bridge=bridge, optim=partial(ADAM, lr=0.01))
    ratio.fit(sampler(p), sampler(q), num_steps=400, batch_size=256, seed=0)
    found, exact = ratio.kl(), float(kl_divergence(p, q))
    assert abs(found.value - exact) < 2 * CLOSE * exact + CHANCE * found.se


def test_telescoping_ratio_reaches_farther_than_a_single_one():
    p = Independent(Normal(torch.zeros(10), 0.1 * torch.ones(10)), 1)
    q = pair(10)[1]
    exact = float(kl_divergence(p, q))
    make = partial(pr.QuadraticCritic, 10)
    adam = partial(torch.optim.Adam, lr=0.1)
    single = pr.DensityRatio(make(), optim=adam)
    chain = pr.TelescopingRatio(make, num_ratios=6, optim=adam)
    x = p.sample((4000,))
    for ratio in (single, chain):
        ratio.fit(sampler(p), sampler(q), num_steps=500, seed=0)
    single_error, chain_error = (
        abs(float(ratio.log_ratio(x).detach().mean()) - exact) for ratio in (single, chain)
    )
    assert single_error > 0.5 * exact
    assert chain_error < 0.25 * exact


def shift_chain(dim, shift, num_ratios, lr):
    p = Independent(Normal(shift * torch.ones(dim), torch.ones(dim)), 1)
    q = Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)
    make = partial(pr.QuadraticCritic, dim)
    chain = pr.TelescopingRatio(make, num_ratios=num_ratios, optim=partial(ADAM, lr=lr))
    chain.fit(sampler(p), sampler(q), num_steps=400, seed=0)
    return chain


def test_a_sum_of_links_may_be_beyond_the_samples():
    """10.1 nats are beyond log 10000 = 9.2, but no link is beyond 2."""
    found = shift_chain(1, 4.5, 4, 0.05).kl()
    assert found.value > 9.3
    assert found.doubts == ()
    assert "4 links" in found.what


def test_a_saturated_link_warns():
    chain = shift_chain(20, 3.0, 2, 0.03)
    with pytest.warns(pr.RatioWarning, match=r"link 2 of 2: .*hardly overlap.* more ratios"):
        chain.kl()


def test_a_chain_of_mixtures_that_says_too_little_warns():
    """Each link learns from few samples of p: it is calibrated, but says half of 6 nats."""
    rho = (1 - math.exp(-2 * 6 / 10)) ** 0.5

    def p(num):
        x, noise = torch.randn(num, 10), torch.randn(num, 10)
        return torch.cat([x, rho * x + math.sqrt(1 - rho**2) * noise], 1)

    make = partial(pr.MLPCritic, 20, hidden=(32,), quadratic=True)
    chain = pr.TelescopingRatio(make, num_ratios=4, bridge="mixture", optim=ADAM)
    chain.fit(p, lambda num: torch.randn(num, 20), num_steps=200, seed=0)
    with pytest.warns(pr.RatioWarning, match=r"the sum of links is too small: 1\.25 times"):
        assert chain.kl().value < 4


@pytest.mark.parametrize("num_ratios", [1, 4])
def test_waymarks_begin_with_p_and_end_with_q(num_ratios):
    x_p, x_q = torch.randn(50, 3) + 9, torch.randn(50, 3)
    for make in BRIDGES.values():
        marks = make(x_p, x_q, num_ratios)
        assert len(marks) == num_ratios + 1
        torch.testing.assert_close(marks[0], x_p)
        torch.testing.assert_close(marks[-1], x_q)
    for mark in BRIDGES["mixture"](x_p, x_q, num_ratios)[1:-1]:
        is_p, is_q = (mark == x_p).all(-1), (mark == x_q).all(-1)
        assert (is_p ^ is_q).all()


def test_linear_waymarks_keep_the_variance():
    mark = BRIDGES["linear"](torch.eye(4), 2 * torch.eye(4), 3)[1]
    torch.testing.assert_close(mark, (0.75**0.5 + 2 * 0.5) * torch.eye(4))


def test_same_seed_same_fit_and_the_callers_random_state_stays():
    p, q = pair(1)
    state = torch.get_rng_state()
    first, second = (fitted(p, q, pr.QuadraticCritic(1), num_steps=20) for _ in range(2))
    assert first.bounds == second.bounds
    assert torch.equal(state, torch.get_rng_state())


ERRORS = {
    "bridge": (
        lambda: pr.TelescopingRatio(lambda: pr.QuadraticCritic(1), bridge="line"),
        r"expected bridge to be one of .* Write: bridge='linear'",
    ),
    "num_ratios": (
        lambda: pr.TelescopingRatio(lambda: pr.QuadraticCritic(1), num_ratios=0),
        r"expected num_ratios >= 1; got 0\. Write: num_ratios=4",
    ),
    "shape": (
        lambda: pr.DensityRatio(pr.QuadraticCritic(1)).fit(torch.randn(9), torch.randn(9, 1)),
        r"expected samples of p as floats of shape \(num, dim\); got .*\(9,\)\. Write: p\.reshape",
    ),
    "whole numbers": (
        lambda: fit_normals(p=torch.ones(9, 1, dtype=torch.long)),
        r"expected samples of p as floats .*; got torch\.int64 .*Write: p\.float\(\)",
    ),
    "sizes": (
        lambda: pr.DensityRatio(pr.QuadraticCritic(1)).fit(torch.randn(9, 2), torch.randn(9, 1)),
        r"expected samples of one size; got 2 numbers .* and 1 ",
    ),
    "held out": (
        lambda: pr.DensityRatio(pr.QuadraticCritic(1)).fit(
            torch.randn(9, 1), torch.randn(9, 1), held_out=1.0
        ),
        r"expected held_out in \(0, 1\); got 1\.0\. Write: held_out=0\.2",
    ),
    "few": (
        lambda: pr.DensityRatio(pr.QuadraticCritic(1)).fit(torch.randn(3, 1), torch.randn(9, 1)),
        r"expected at least two rows of p .* got 3 in all\. Write: lambda n",
    ),
    "no steps": (
        lambda: fit_normals(num_steps=0),
        r"DensityRatio: expected num_steps to be a whole number >= 1; got 0\. Write: num_steps=",
    ),
    "empty batch": (lambda: fit_normals(batch_size=0), r"expected batch_size to be .* got 0"),
    "half a step": (lambda: fit_normals(num_steps=1.5), r"expected num_steps .* got 1\.5"),
    "one held out": (lambda: fit_normals(num_held_out=1), r"num_held_out to be .* >= 2; got 1"),
    "nan": (
        lambda: fit_normals(p=torch.tensor([[0.0], [math.nan], [math.inf], [1.0]])),
        r"expected finite samples of p; got 2 of 4 .*Write: p\[p\.isfinite\(\)\.all\(1\)\]",
    ),
    "precision": (
        lambda: fit_normals(p=torch.randn(9, 1, dtype=torch.float32)),
        r"expected samples of p in the critic's precision, torch\.float64; got torch\.float32\. "
        r"Write: p\.to\(torch\.float64\)",
    ),
    "a column": (
        lambda: fit_normals(torch.nn.Linear(1, 1)),
        r"expected one number for each x, shape \(512,\); got shape \(512, 1\).*squeeze\(-1\)",
    ),
    "a link that is a column": (
        lambda: pr.TelescopingRatio(lambda: torch.nn.Linear(1, 1)).fit(*two_normals()),
        r"expected one number for each x, shape \(512,\); got shape \(512, 1\)",
    ),
    "size of the critic": (
        lambda: fit_normals(pr.QuadraticCritic(2)),
        r"QuadraticCritic: expected x of shape \(\*batch, 2\); got \(512, 1\)\. Write: .*\(1\)",
    ),
}


def two_normals():
    return (lambda num: torch.randn(num, 1) + 1, lambda num: torch.randn(num, 1))


def fit_normals(critic=None, *, p=None, **options):
    ratio = pr.DensityRatio(critic or pr.QuadraticCritic(1))
    sampler_p, sampler_q = two_normals()
    ratio.fit(sampler_p if p is None else p, sampler_q, **{"num_steps": 2} | options)


def test_samples_that_are_no_tensor():
    with pytest.raises(TypeError, match=r"got ndarray\. Write: torch\.as_tensor\(p\)"):
        fit_normals(p=torch.randn(9, 1).numpy())


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_unfitted():
    with pytest.raises(RuntimeError, match=r"expected a fitted ratio.*Write: ratio\.fit\(p, q\)"):
        pr.DensityRatio(pr.QuadraticCritic(1)).kl()
