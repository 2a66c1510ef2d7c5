"""Priors that nothing can be drawn from, and supports that no bijection reaches."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from awkward import (
    EVERY_GUIDE,
    X,
    one_local,
    steps,
)
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    Trace_ELBO,
)
from pyro.infer.autoguide import (
    init_to_value,
)
from pyro.infer.reparam import LocScaleReparam, ProjectedNormalReparam

import pyro_ext as px

FLAT = {
    "real": (constraints.real, ()),
    "positive": (constraints.positive, ()),
    "positive vector": (constraints.positive, (3,)),
    "interval": (constraints.interval(1.0, 2.0), (2,)),
    "simplex": (constraints.simplex, (3,)),
    "ordered": (constraints.ordered_vector, (3,)),
    "corr_cholesky": (constraints.corr_cholesky, (3, 3)),
}
OUR_LOSSES = {
    "ELBO": px.ELBO(2),
    "stl": px.ELBO(2, estimator="stl"),
    "IWAE": px.IWAE(3, estimator="dreg"),
    "WakeSleep": px.WakeSleep(3),
}


@EVERY_GUIDE
@pytest.mark.parametrize("flat", FLAT.values(), ids=FLAT)
def test_a_flat_prior(build, flat):
    support, event_shape = flat

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ImproperUniform(support, (), event_shape))
            loc = z.flatten(z.dim() - len(event_shape)).sum(-1) if event_shape else z
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide = build(model)
    assert support.check(guide(X)["z"]).all()
    for loss in OUR_LOSSES.values():
        guide.zero_grad()
        loss.differentiable_loss(model, guide, X).backward()
        assert all(param.grad.isfinite().all() for param in guide.parameters())
    steps(model, guide, Trace_ELBO(), X)


def test_a_flat_prior_adds_nothing_to_the_density():
    """A normal likelihood with a flat prior: the exact posterior has constant weights."""

    def model(x):
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    start = init_to_value(values={"mu": X.mean()})
    guide = px.AutoJoint(model, init_loc_fn=start, init_scale=len(X) ** -0.5)
    log_w = px.log_weights(model, guide, X, num_particles=9, joint=True).terms[0].log_w
    torch.testing.assert_close(log_w, log_w[:1].expand(9))


@pytest.mark.parametrize(
    ("prior", "match"),
    [
        (dist.ImproperUniform(constraints.simplex, (), ()), r"site 'z' to have a shape .*Simplex"),
        (dist.ImproperUniform(constraints.sphere, (), (3,)), r"one to one; got site 'z'.*reparam"),
        (dist.ImproperUniform(constraints.boolean, (), ()), r"continuous .*'z'.*hide=\['z'\]"),
    ],
    ids=["shape", "sphere", "discrete"],
)
def test_a_flat_prior_without_a_bijection(prior, match):
    with pytest.raises(ValueError, match=match):
        px.AutoJoint(lambda: pyro.sample("z", prior)).setup()


def test_a_spherical_site():
    def model():
        pyro.sample("z", dist.ProjectedNormal(torch.ones(3)))

    with pytest.raises(ValueError, match=r"one to one; got site 'z' with support Sphere.*reparam"):
        px.AutoJoint(model).setup()
    projected = poutine.reparam(model, {"z": ProjectedNormalReparam()})
    steps(projected, px.AutoJoint(projected), Trace_ELBO())


@EVERY_GUIDE
def test_reparameterized_models(build):
    model = poutine.reparam(one_local, {"z": LocScaleReparam()})
    guide = build(model)
    assert set(guide(X)) == {"z_decentered"}
    steps(model, guide, px.ELBO(3), X)
