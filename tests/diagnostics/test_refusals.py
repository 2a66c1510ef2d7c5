"""Calls of diagnostics that cannot be answered: the message says what to write."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.testing import NormalLocal

EXACT = NormalLocal(torch.linspace(-1, 1, 5))
PAIR = (EXACT.model, EXACT.guide, EXACT.x)
RUN = px.fit(EXACT.model, px.AutoPerDatapoint(EXACT.model), data=EXACT.x, num_steps=2, seed=0)


def one():
    pyro.sample("mu", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: px.evidence(*PAIR, num_particles=5, num_repeats=2),
            r"evidence: expected num_particles \* num_repeats >= 25 draws; got 5 \* 2. Write",
        ),
        (lambda: px.k_hat_joint(*PAIR, num_samples=0), "k_hat_joint: .*num_samples >= 25; got 0"),
        (
            lambda: px.k_hat_per_datapoint(*PAIR, num_samples=24),
            "k_hat_per_datapoint: .*num_samples >= 25; got 24. Write: num_samples=1000",
        ),
        (lambda: px.rates(*PAIR, num_samples=1), "rates: .*num_samples >= 2; got 1"),
        (lambda: px.gaps(RUN, num_samples=0), "gaps: .*num_samples >= 25; got 0"),
        (
            lambda: px.gaps(RUN, log_evidence=torch.zeros(5), num_samples=1),
            "gaps: .*num_samples >= 2; got 1",
        ),
        (lambda: px.nuts(one, num_samples=0), "nuts: .*got 0, 2 and 1000. Write: num_samples"),
        (lambda: px.nuts(one, num_chains=0), "nuts: .*got 1000, 0 and 1000"),
        (lambda: px.nuts(one, warmup_steps=-1), "nuts: .*warmup_steps >= 0; got 1000, 2 and -1"),
        (lambda: px.importance_resample(px.to_datatree(*PAIR), 0), "num_samples >= 1; got 0"),
        (lambda: px.distances({"z": torch.zeros(1)}, {"z": (0.0, 1.0)}), "10 draws or .*got 1"),
        (lambda: px.k_hat(torch.tensor(1.0)), r"25 particles in the first dim; got shape \(\)"),
        (lambda: px.bdmc(*PAIR, start="posterior"), "bdmc: expected start to be 'guide' or"),
    ],
)
def test_numbers_and_names(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: px.evidence(RUN, EXACT.x[:2]),
            r"evidence: expected a run alone.*Write: px.evidence\(run.model, run.guide, x\)",
        ),
        (lambda: px.importance_resample(RUN), r"got Run. Write: .*px.to_datatree\(run\)"),
        (lambda: px.compare({1: RUN}), r"names of runs.*got 1. Write: px.compare\({'1': run}\)"),
        (
            lambda: px.compare({"a": RUN}, reference=RUN),
            r"got Run. Write: .*px.to_datatree\(run\)",
        ),
        (lambda: px.from_draws(torch.zeros(3)), r"got Tensor. Write: px.from_draws\({'mu'"),
        (lambda: px.k_hat(torch.arange(30)), "floating-point numbers; got torch.int64. Write"),
    ],
)
def test_objects_of_another_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_loo_of_ties():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Bernoulli(0.4))

    with pytest.raises(ValueError, match=r"loo: expected .*; got ties, .*Write: px.evidence"):
        px.loo(model, guide, EXACT.x, num_samples=200, seed=0)


NUMBERS = {
    "k_hat_joint": lambda n: px.k_hat_joint(*PAIR, num_samples=n),
    "k_hat_per_datapoint": lambda n: px.k_hat_per_datapoint(*PAIR, num_samples=n),
    "evidence": lambda n: px.evidence(*PAIR, num_particles=n, num_repeats=1, seed=n),
    "ais": lambda n: px.ais(*PAIR, num_chains=4, num_temperatures=n, num_leapfrog=1),
    "rates": lambda n: px.rates(*PAIR, num_samples=n, chunk_size=n),
    "gaps": lambda n: px.gaps(RUN, num_samples=n, num_steps=2),
    "sbc": lambda n: px.sbc(*PAIR, num_simulations=n, num_draws=9),
    "to_datatree": lambda n: px.to_datatree(*PAIR, num_samples=n),
    "nuts": lambda n: px.nuts(one, num_samples=n, warmup_steps=2),
    "compare": lambda n: px.compare({"a": RUN}, num_samples=n),
    "importance_resample": lambda n: px.importance_resample(px.to_datatree(*PAIR), n),
}


@pytest.mark.filterwarnings("ignore:.*not to be trusted")
@pytest.mark.parametrize("owner", NUMBERS)
def test_numbers_are_whole_whatever_their_type(owner):
    assert repr(NUMBERS[owner](3e1)) is not None
    with pytest.raises(TypeError, match=r"to be a whole number; got 30\.5\. Write"):
        NUMBERS[owner](30.5)
