"""What a console shows of a result is what print shows: no tensors."""

import pytest
import torch

import pyro_ext as px
from pyro_ext.testing import NormalLocal

EXACT = NormalLocal(torch.linspace(-1, 1, 30))
PAIR = (EXACT.model, EXACT.guide, EXACT.x)
RUN = px.fit(EXACT.model, px.AutoPerDatapoint(EXACT.model), data=EXACT.x, num_steps=5, seed=0)
DRAWS = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: px.evidence(*PAIR, num_particles=30, seed=0), "log evidence"),
        (lambda: px.ais(*PAIR, num_chains=4, num_temperatures=2, seed=0), "lower bound"),
        (lambda: px.sbc(*PAIR, num_simulations=20, seed=0), "no fault found in 30 simulations"),
        (lambda: px.rates(*PAIR, num_samples=30, seed=0), "active dimensions"),
        (lambda: px.gaps(RUN, num_samples=30, num_steps=100, seed=0), "amortization gap"),
        (lambda: px.distances({"mu": DRAWS[0]}, {"mu": DRAWS[1]}), "worst sd ratio"),
        (lambda: px.compare({"free": RUN}, num_samples=100), "Only one guide"),
    ],
)
def test_a_console_shows_what_print_shows(call, line):
    found = call()
    assert repr(found) == str(found)
    assert line in repr(found)
    assert "tensor(" not in repr(found)
