"""Latents that round to the edge of their support: the verdict says so."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px


def at_the_edges():
    pyro.sample("z", dist.Beta(0.05, 0.05))


def at_the_lower_edge():
    """The same pole, where numbers are dense: 1e-20 is not 0."""
    pyro.sample("z", dist.Beta(0.2, 3.0))


def well_inside():
    pyro.sample("z", dist.Beta(2.0, 3.0))
    pyro.sample("p", dist.Dirichlet(torch.ones(3)))


def test_a_density_that_is_cut_off_by_rounding_is_not_trusted():
    """A twelfth of the mass lies above the largest number below 1: the mean is 0.09 sd low."""
    verdict = px.fit(at_the_edges, seed=0, progress=False).verdict
    assert verdict.grade == "not to be trusted"
    (reason,) = verdict.reasons
    assert "round to the edge of their support" in reason


@pytest.mark.parametrize("model", [at_the_lower_edge, well_inside])
def test_what_is_resolved_passes(model):
    verdict = px.fit(model, seed=0, progress=False).verdict
    assert verdict.grade != "not to be trusted"
    assert "round" not in str(verdict)
