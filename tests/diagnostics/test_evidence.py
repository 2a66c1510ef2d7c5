import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from diagnostics.models import Z_LIMIT, scaled
from torch.distributions import Normal

import pyro_ext as px
from pyro_ext.diagnostics import Estimate, evidence
from pyro_ext.testing import (
    GammaPoisson,
    LinearRegression,
    NormalGlobal,
    NormalHierarchy,
    NormalLocal,
)

EXACT = {
    "local": NormalLocal.simulate(12, scale=0.7),
    "global": NormalGlobal.simulate(12),
    "hierarchy": NormalHierarchy.simulate(12),
    "regression": LinearRegression.simulate(12),
    "gamma-poisson": GammaPoisson.simulate(12, local=True),
}


@pytest.mark.parametrize("exact", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("chunk_size", [None, 100])
def test_exact_guide_gives_the_exact_evidence(exact, chunk_size):
    found = evidence(
        exact.model,
        exact.guide,
        *exact.args,
        num_particles=10,
        num_repeats=4,
        chunk_size=chunk_size,
    )
    log_p = exact.log_evidence().item()
    for estimate in (found.elbo, found.iwae, found.log_evidence):
        assert abs(estimate.value - log_p) < 1e-10
        assert estimate.se < 1e-10
    assert found.effective_share == pytest.approx(1.0)
    assert found.k_hat.values.max() == 0
    assert "threshold" in str(found)


@pytest.mark.parametrize("subsample_size", [None, 5])
@pytest.mark.parametrize("num_repeats", [1, 40])
def test_evidence_and_its_error_with_an_inexact_guide(subsample_size, num_repeats):
    exact = dataclasses.replace(NormalLocal.simulate(30, scale=0.7), subsample_size=subsample_size)
    found = evidence(
        exact.model,
        scaled(exact, 1.4),
        exact.x,
        num_particles=4000 // num_repeats,
        num_repeats=num_repeats,
        chunk_size=50_000,
        seed=0,
    )
    log_p = exact.log_evidence().item()
    assert abs(found.log_evidence.value - log_p) < Z_LIMIT * found.log_evidence.se
    # KL(N(m, (c s)²) || N(m, s²)) = (c² - 1) / 2 - log c, for each datum.
    elbo = log_p - 30 * ((1.4**2 - 1) / 2 - math.log(1.4))
    assert abs(found.elbo.value - elbo) < Z_LIMIT * found.elbo.se
    assert found.iwae.value < log_p + Z_LIMIT * found.iwae.se
    per_datum = found.per_datum["log_evidence"]
    scores = (per_datum.value - exact.log_evidence_per_datum()) / per_datum.se
    assert scores.abs().max() < Z_LIMIT
    assert found.elbo.value < found.iwae.value
    assert found.draws.mean().item() == pytest.approx(found.elbo.value)


@pytest.mark.parametrize("far", [20.0, 3000.0, 1e14])
def test_weights_without_a_mean_warn(far):
    exact = NormalGlobal.simulate(12)

    def diverged(x):
        pyro.sample("mu", dist.Normal(far, 1.0))

    with pytest.warns(UserWarning, match=r"only the lower bounds.*worth 1\.\d of 10000.*px.ais"):
        found = evidence(exact.model, diverged, exact.x, seed=0)
    assert found.k_hat.values > 1
    assert found.effective_share < 2e-4
    assert found.iwae.value < exact.log_evidence().item() - 100


def test_standard_errors_are_those_of_repeated_runs():
    exact = NormalLocal.simulate(10, scale=0.7)
    guide = scaled(exact, 1.3)
    runs = [
        evidence(exact.model, guide, exact.x, num_particles=50, num_repeats=4, seed=seed)
        for seed in range(200)
    ]
    for name in ("elbo", "iwae", "log_evidence"):
        estimates = [getattr(run, name) for run in runs]
        spread = torch.tensor([estimate.value for estimate in estimates]).std().item()
        claimed = torch.tensor([estimate.se for estimate in estimates]).square().mean().sqrt()
        # The sd of 200 values is off by 5 %; 25 % is five of these.
        assert 0.75 < claimed.item() / spread < 1.25, name


def test_global_latents_have_joint_weights():
    exact = NormalHierarchy.simulate(6)
    found = evidence(exact.model, exact.guide, exact.x, num_particles=10, num_repeats=5)
    assert found.per_datum is None
    assert found.k_hat.values.shape == ()
    assert found.draws.shape == (50,)


@pytest.mark.parametrize("chunk_size", [100_000, 3000])
def test_chunks_of_rows_hold_every_datum_once(chunk_size):
    exact = NormalLocal.simulate(50)
    found = evidence(
        exact.model,
        exact.guide,
        exact.x,
        num_particles=25,
        num_repeats=4,
        chunk_size=chunk_size,
    )
    torch.testing.assert_close(
        found.per_datum["elbo"].value, exact.log_evidence_per_datum(), rtol=0, atol=1e-10
    )


def test_masked_data_add_nothing():
    exact = dataclasses.replace(NormalLocal.simulate(6), mask=torch.arange(6) < 4)
    found = evidence(exact.model, exact.guide, *exact.args, num_particles=10, num_repeats=3)
    assert abs(found.elbo.value - exact.log_evidence().item()) < 1e-10
    assert found.per_datum["elbo"].value[4:].abs().max() < 1e-10


def test_two_data_plates_count_once_each():
    x, y = torch.randn(3), torch.randn(4)

    def model(x, y):
        for name, data in (("a", x), ("b", y)):
            with pyro.plate(f"plate_{name}", len(data)):
                z = pyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))
                pyro.sample(name, dist.Normal(z, 1.0), obs=data)

    def guide(x, y):
        for name, data in (("a", x), ("b", y)):
            with pyro.plate(f"plate_{name}", len(data)):
                pyro.sample(f"z_{name}", dist.Normal(data / 2, 0.5**0.5))

    found = evidence(model, guide, x, y, num_particles=10, num_repeats=3)
    log_p = Normal(0.0, 2**0.5).log_prob(torch.cat([x, y]))
    torch.testing.assert_close(found.per_datum["iwae"].value, log_p)


def test_leaves_no_trace():
    exact = NormalLocal.simulate(8)
    pyro.param("theirs", torch.tensor(2.0), constraint=dist.constraints.positive)
    encoder = torch.nn.Sequential(
        torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
    )

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = encoder

        def forward(self, x):
            return self.layers(x[:, None])

    guide = px.AutoAmortized(exact.model, Encoder())
    guide.setup(exact.x)
    encoder[2].eval()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    modes = [module.training for module in guide.modules()]
    store = dict(pyro.get_param_store().items())
    state = torch.get_rng_state()
    found = evidence(exact.model, guide, exact.x, num_particles=10, num_repeats=3, seed=5)
    again = evidence(exact.model, guide, exact.x, num_particles=10, num_repeats=3, seed=5)
    assert found.elbo == again.elbo
    torch.testing.assert_close(torch.get_rng_state(), state)
    assert [module.training for module in guide.modules()] == modes
    for name, value in guide.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert dict(pyro.get_param_store().items()) == store
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_state_is_restored_after_an_error():
    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        raise RuntimeError("broken model")

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken model"):
        evidence(model, guide, torch.zeros(3), seed=1)
    torch.testing.assert_close(torch.get_rng_state(), state)
    drawn = [len(pyro.plate("data", 100, 7).indices) for _ in range(2)]
    assert drawn == [7, 7]


def test_nan_in_the_data_raises():
    exact = NormalLocal(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"NaN|support"):
        evidence(exact.model, scaled(NormalLocal(torch.zeros(2)), 1.0), exact.x)


def test_too_few_repeats_raise():
    exact = EXACT["local"]
    with pytest.raises(ValueError, match="num_repeats >= 1; got 1000 and 0"):
        evidence(exact.model, exact.guide, *exact.args, num_repeats=0)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(-31.5987, 0.0123), "-31.599 ± 0.012"),
        (Estimate(-83521.4, 14.2), "-83521 ± 14"),
        (Estimate(1.0, 0.0), "1.00 ± 0.00"),
        (Estimate(1.0, math.inf), "1.00 ± inf"),
        (Estimate(-5.859e31, 2.638e31), "-5.86e+31 ± 2.6e+31"),
        (Estimate(-math.inf, math.nan), "-inf"),
    ],
)
def test_estimates_print_two_digits_of_their_error(estimate, text):
    assert str(estimate) == text


def test_rows_are_not_cut_where_model_or_guide_hold_a_table():
    exact = NormalLocal.simulate(50, scale=0.7)
    noise = torch.linspace(0.5, 1.5, 50)

    def model(x):
        with pyro.plate("data", len(x)) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, noise[rows]), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)) as rows:
            variance = 1 / (1 + noise[rows] ** -2)
            pyro.sample("z", dist.Normal(variance * x / noise[rows] ** 2, variance.sqrt()))

    found = evidence(model, guide, exact.x, num_particles=10, num_repeats=3, chunk_size=600)
    expected = Normal(0.0, (1 + noise**2).sqrt()).log_prob(exact.x)
    torch.testing.assert_close(found.per_datum["iwae"].value, expected, rtol=0, atol=1e-10)


def test_rows_are_cut_where_they_can_be(monkeypatch):
    exact = NormalLocal.simulate(50)
    seen = []

    def model(x):
        seen.append(len(x))
        exact.model(x)

    evidence(model, exact.guide, exact.x, num_particles=50, num_repeats=2, chunk_size=2000)
    assert 20 in seen
    assert max(seen) == 50
