"""Automatic fits of models that are hard to look at, or have no posterior."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_ext as px
from pyro_ext.training.auto.correct import weighted
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.start import paths, starting_points

auto = partial(px.fit, optim="auto", progress=False, seed=0)


def far_modes():
    """Two modes a thousand of their sds apart, whose curvature is NaN nearly everywhere else."""
    z = pyro.sample("z", dist.Normal(0.0, 1000.0))
    heights = [-0.5 * ((z - centre) / 0.5) ** 2 for centre in (-500.0, 500.0)]
    pyro.factor("f", torch.logaddexp(*heights))


def test_paths_climb_where_the_curvature_is_not_a_number():
    density = Density(far_modes, ())
    starts = starting_points(density, 8, 0)
    assert density.hessian(starts).isnan().any()
    ends = torch.cat([candidate.end for candidate in paths(density, starts, 0)])
    torch.testing.assert_close(ends, 500 * starts.flatten().sign(), rtol=0, atol=0.1)


def test_a_mode_that_others_do_not_lead_to_is_not_trusted():
    verdict = auto(far_modes).verdict
    assert verdict.grade == "not to be trusted"
    assert "other mode(s) with 50.0% of the mass" in str(verdict)


def test_starts_are_where_the_density_is_not_zero():
    """It is zero for all |z| < 1, to which starts that fail are drawn."""

    def ring():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(z.abs() > 1, 0.0, -torch.inf))

    density = Density(ring, ())
    points = starting_points(density, 8, 0)
    assert 0 < len(points) < 8
    assert torch.isfinite(density.value(points)).all()


@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_weights_of_an_exact_guide_have_no_tail(size):
    """Rounding alone tells them apart, so that many of the largest are equal."""
    generator = torch.Generator().manual_seed(0)
    ties = torch.randint(3, (4000,), generator=generator)
    pool = weighted(torch.zeros(4000, 1), -20.0 + size * ties)
    assert pool.k_hat == 0
    torch.testing.assert_close(pool.weights, torch.full((4000,), 1 / 4000), rtol=1e-6, atol=0)


def flat():
    pyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))


def ridge(x):
    one, two = (pyro.sample(name, dist.ImproperUniform(constraints.real, (), ())) for name in "ab")
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal((one + two).unsqueeze(-1), 1.0), obs=x)


def spike(x):
    """The likelihood of equal data is unbounded where the scale goes to 0."""
    mu, scale = pyro.sample("mu", dist.Normal(0.0, 10.0)), pyro.sample("s", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


IMPROPER = {
    "flat": (flat, None),
    "ridge": (ridge, torch.linspace(-2, 3, 10)),
    "spike": (spike, torch.full((10,), 3.0)),
}


@pytest.mark.parametrize("name", IMPROPER)
def test_a_posterior_that_is_none_is_named(name):
    model, data = IMPROPER[name]
    match = r"fit: expected a posterior that a normal can follow; got \d+ of 20000 draws without"
    with pytest.raises(ValueError, match=match):
        auto(model, data=data)
