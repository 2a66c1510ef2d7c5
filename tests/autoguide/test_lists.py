"""Ours in Pyro's AutoGuideList, beside its own guides, and discrete latents beside ours."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from awkward import (
    EVERY_GUIDE,
    EVERY_SOURCE,
    Encoder,
    X,
    awkward_locals,
    one_local,
    shapes,
    steps,
)
from pyro import poutine
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoNormal,
)
from pyro.ops.indexing import Vindex

import pyro_ext as px


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(Vindex(loc)[..., k], 1.0), obs=x)


def shifted(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z + 2 * k, 1.0), obs=x)


def test_discrete_latents_summed_out_beside_a_joint_guide():
    model = config_enumerate(mixture)
    guide = px.AutoJoint(poutine.block(model, hide=["k"]), family=px.FullCovariance())
    steps(model, guide, TraceEnum_ELBO(max_plate_nesting=1), X)
    assert shapes(guide.median(X)) == {"weights": (2,), "loc": (2,)}


@EVERY_SOURCE
def test_discrete_latents_summed_out_beside_local_guides(source):
    model = config_enumerate(shifted)
    guide = source(poutine.block(model, hide=["k"]))
    for loss in (
        TraceEnum_ELBO(max_plate_nesting=1),
        TraceEnum_ELBO(3, max_plate_nesting=1, vectorize_particles=True),
    ):
        steps(model, guide, loss, X)


def test_summing_out_agrees_with_the_marginal_model():
    def marginal(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            parts = torch.stack(
                [
                    dist.Normal(z + 2 * k, 1.0).log_prob(x) + torch.tensor(p).log()
                    for k, p in ((0, 0.7), (1, 0.3))
                ]
            )
            pyro.factor("x", parts.logsumexp(0))

    model = config_enumerate(shifted)
    guide = px.AutoPerDatapoint(poutine.block(model, hide=["k"]))
    guide.setup(X)
    values = []
    for this, loss in ((model, TraceEnum_ELBO(max_plate_nesting=1)), (marginal, Trace_ELBO())):
        torch.manual_seed(0)
        values.append(loss.loss(this, guide, X))
    torch.testing.assert_close(*values)


@EVERY_GUIDE
@pytest.mark.parametrize(
    "loss",
    [
        TraceEnum_ELBO(max_plate_nesting=1),
        px.ELBO(3, estimator="score"),
        px.IWAE(3, estimator="vimco"),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_discrete_latents_in_a_list(build, loss):
    guide = AutoGuideList(shifted)
    guide.append(build(poutine.block(shifted, hide=["k"])))
    guide.append(AutoDiscreteParallel(poutine.block(shifted, expose=["k"])))
    steps(shifted, guide, loss, X)


def mixed_list():
    guide = AutoGuideList(awkward_locals)
    guide.append(px.AutoJoint(poutine.block(awkward_locals, expose=["scale"])))
    guide.append(AutoNormal(poutine.block(awkward_locals, expose=["rate"])))
    guide.append(AutoDelta(poutine.block(awkward_locals, expose=["part"])))
    view = poutine.block(awkward_locals, expose=["w"])
    guide.append(px.AutoAmortized(view, Encoder(), plate="data"))
    return guide


def test_a_list_of_their_guides_and_ours():
    guide = mixed_list()
    for loss in (Trace_ELBO(), px.ELBO(3), TraceGraph_ELBO()):
        steps(awkward_locals, guide, loss, X)
    expected = {"scale": (), "rate": (5,), "part": (5, 3), "w": (2, 5, 2)}
    assert shapes(guide.median(X)) == expected
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert shapes(other(X)) == expected


def test_lists_share_nothing():
    """Pyro names all lists alike; a second one must not start at the fit of the first."""

    def build(family):
        guide = AutoGuideList(one_local)
        guide.append(px.AutoPerDatapoint(one_local, family=family))
        return guide

    first, second = build(px.Diagonal()), build(px.FullCovariance(factor="dense"))
    steps(one_local, first, Trace_ELBO(), X)
    after = copy.deepcopy(first.state_dict())
    steps(one_local, second, Trace_ELBO(), X)
    assert all(torch.equal(value, after[name]) for name, value in first.state_dict().items())


def test_a_function_in_a_list():
    def of_scale(x):
        return {"scale": pyro.sample("scale", dist.Gamma(2.0, 1.0))}

    guide = AutoGuideList(awkward_locals)
    guide.append(of_scale)
    guide.append(px.AutoPerDatapoint(poutine.block(awkward_locals, hide=["scale"]), plate="data"))
    assert set(guide(X)) == {"scale", "rate", "part", "w"}
    steps(awkward_locals, guide, Trace_ELBO(), X)
