"""Lower bounds, exact log evidence and upper bounds, on every model whose evidence is known."""

from itertools import pairwise

import pytest
from diagnostics.models import MODELS, Z_LIMIT, with_data
from pyro import poutine

import pyro_ext as px
from helpers import assert_at_most
from models import eight_schools, linear_gaussian

LINEAR = linear_gaussian.LinearGaussian.random(num_features=4, latent_dim=2)

# Model, its arguments, and its log evidence as a function of these.
CASES = {
    **{
        name: (exact.model, exact.args, lambda *x, e=exact: with_data(e, x).log_evidence())
        for name, exact in MODELS.items()
    },
    "linear Gaussian": (LINEAR, (linear_gaussian.data(10, model=LINEAR),), LINEAR.log_evidence),
    "eight schools": (
        eight_schools.model,
        tuple(eight_schools.data()),
        lambda *x: eight_schools.exact_posterior(*x).log_evidence,
    ),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)


def prior(model):
    return poutine.block(model, hide_fn=lambda site: bool(site.get("is_observed")))


@EVERY_CASE
def test_bounds_of_one_set_of_weights_enclose_the_evidence(name):
    model, args, log_evidence = CASES[name]
    log_p = float(log_evidence(*args))
    found = px.evidence(model, prior(model), *args, num_particles=1000, num_repeats=20, seed=0)
    for bound in (*found.ladder.values(), found.elbo, found.iwae):
        assert bound.value < log_p + Z_LIMIT * bound.se
    assert found.cubo.value > log_p - Z_LIMIT * found.cubo.se
    assert list(found.ladder) == [1, 10, 100, 1000, 10_000]
    for low, high in pairwise(found.ladder.values()):
        assert low.value < high.value + Z_LIMIT * high.se
    assert found.ladder[1].value == pytest.approx(found.elbo.value)
    for estimate in (found.log_evidence, found.jackknife, found.psis):
        assert abs(estimate.value - log_p) < Z_LIMIT * estimate.se


@EVERY_CASE
def test_chains_both_ways_enclose_the_evidence_of_simulated_data(name):
    model, args, log_evidence = CASES[name]
    found = px.bdmc(
        model,
        prior(model),
        *args,
        num_chains=30,
        num_temperatures=15,
        num_leapfrog=3,
        seed=3,
    )
    log_p = float(log_evidence(*found.simulated.args))
    assert_at_most(found.log_weights.reshape(30, -1).sum(1), log_p)
    assert found.upper.value > log_p - Z_LIMIT * found.upper.se
    assert found.lower.value < found.upper.value
