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
        (lambda: px.nuts(one, num_samples=0), "nuts: .*got 0 and 2. Write: num_samples=1000"),
        (lambda: px.nuts(one, num_chains=0), "nuts: .*got 1000 and 0"),
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
