"""Guides as modules: the JIT, files, Pyro's parameter store, local parameters, dtypes."""

import copy
import io
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from awkward import (
    EVERY_FAMILY_AND_A_FLOW,
    EVERY_GUIDE,
    GUIDES,
    X,
    awkward_locals,
    one_local,
    steps,
)
from pyro.infer import (
    Trace_ELBO,
)
from pyro.nn import PyroModule

import pyro_ext as px


@EVERY_GUIDE
def test_call_returns_a_tuple_that_the_jit_traces(build):
    guide = build(awkward_locals)
    drawn = guide(X)
    assert [v.shape for v in guide.call(X)] == [drawn[name].shape for name in sorted(drawn)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(guide, {"call": (X,)}, check_trace=False)
    torch.manual_seed(0)
    expected = guide.call(X)
    torch.manual_seed(0)
    for left, right in zip(traced.call(X), expected, strict=True):
        torch.testing.assert_close(left, right)


@EVERY_FAMILY_AND_A_FLOW
@EVERY_GUIDE
def test_saving(build, family):
    """``torch.save`` of parameters, read with ``weights_only``, and of the guide itself."""
    guide = build(awkward_locals, family=family)
    steps(awkward_locals, guide, Trace_ELBO(), X)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    fresh = build(awkward_locals, family=family)
    fresh.setup(X)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    whole = io.BytesIO()
    torch.save(guide, whole)
    whole.seek(0)
    for other in (fresh, torch.load(whole, weights_only=False), copy.deepcopy(guide)):
        for name, value in other.median(X).items():
            assert torch.equal(value, guide.median(X)[name])


@pytest.mark.parametrize("clear", [True, False])
@EVERY_GUIDE
def test_the_parameter_store_saves(build, clear, tmp_path):
    guide = build(one_local)
    steps(one_local, guide, Trace_ELBO(), X)
    saved = copy.deepcopy(guide.state_dict())
    store = pyro.get_param_store()
    store.save(tmp_path / "store")
    steps(one_local, guide, Trace_ELBO(), X)
    if clear:
        pyro.clear_param_store()
    store.load(tmp_path / "store")
    guide(X)
    assert all(torch.equal(value, saved[n]) for n, value in guide.state_dict().items())
    steps(one_local, guide, Trace_ELBO(), X)


def test_a_parameter_store_of_another_guide():
    guide = px.AutoJoint(one_local)
    guide(X)
    (name,) = pyro.get_param_store()
    pyro.clear_param_store()
    pyro.param(name, torch.zeros(3))
    with pytest.raises(ValueError, match=rf"'{name}'.* shape \(10,\); got \(3,\).*clear_param"):
        guide(X)


@EVERY_GUIDE
def test_inside_a_module(build):
    class Both(PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = build(one_local)

        def forward(self, x):
            return self.inner(x)

    first, second = Both(), Both()
    steps(one_local, first, Trace_ELBO(), X)
    after = copy.deepcopy(first.state_dict())
    steps(one_local, second, Trace_ELBO(), X)
    assert all(torch.equal(value, after[name]) for name, value in first.state_dict().items())


@EVERY_GUIDE
def test_local_parameters(build):
    with pyro.settings.context(module_local_params=True):
        guide = build(awkward_locals)
        for loss in (Trace_ELBO(), px.ELBO(3), px.IWAE(3, estimator="dreg")):
            steps(awkward_locals, guide, loss, X)
        for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
            steps(awkward_locals, other, Trace_ELBO(), X)
        assert len(pyro.get_param_store()) == 0


@EVERY_GUIDE
def test_cast_after_svi_has_started(build):
    """With a new optimizer: the state of torch's Adam stays in the old dtype."""

    def model(x):
        top = pyro.sample("top", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(top.unsqueeze(-1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = build(model)
    steps(model, guide, Trace_ELBO(), X)
    for dtype in (torch.float32, torch.float64):
        guide.to(dtype)
        steps(model, guide, Trace_ELBO(), X.to(dtype))
        assert guide(X.to(dtype))["z"].dtype == dtype
        assert guide.median(X.to(dtype))["z"].dtype == dtype


def test_guides_of_two_shapes():
    for build in GUIDES.values():
        for x in (X, X[:3]):
            steps(one_local, build(one_local), Trace_ELBO(), x)
