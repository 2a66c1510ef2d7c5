"""Latents that round to the edge of their support, or are too fine for the guide's precision."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.testing import NormalGlobal


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


def fitted(unit, at=0.0):
    """Fit a mean in single precision, in other units; return the run and the exact sd."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(at, unit))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, unit), obs=x)

    x = torch.linspace(-1.0, 1.0, 10)
    sd = NormalGlobal(x).posterior()[1].sqrt().item() * unit
    run = px.fit(model, data=(at + unit * x).float(), seed=0, progress=False)
    return run, sd


@pytest.fixture
def single():
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("unit", [1e-6, 1e-4, 1.0, 1e6])
def test_the_guide_has_small_sds_in_single_precision(unit):
    run, sd = fitted(unit)
    (found,) = run.guide.get_posterior().stddev.tolist()
    assert found == pytest.approx(sd, rel=1e-3)
    assert run.verdict.grade == "trusted"


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize(("unit", "at"), [(1e-8, 0.0), (1e-3, 1e5)])
def test_what_single_precision_cannot_hold_is_not_trusted(unit, at):
    run, _ = fitted(unit, at)
    assert run.verdict.grade == "not to be trusted"
    assert "torch.float32 is too coarse" in str(run.verdict)
