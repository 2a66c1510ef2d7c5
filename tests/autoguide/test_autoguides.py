"""The contract of the automatic guides, over awkward models, and how they meet Pyro's tools."""

import copy
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from awkward import (
    EVERY_GUIDE,
    EVERY_SOURCE,
    FAMILIES,
    GUIDES,
    SOURCES,
    Encoder,
    X,
    awkward_locals,
    one_global,
    one_local,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from torch import nn

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.testing import NormalHierarchy, check_guide


def test_one_row():
    for source in SOURCES.values():
        check_guide(lambda source=source: source(awkward_locals), awkward_locals, X[:1])


@EVERY_GUIDE
def test_the_joint_density_integrates_to_one(build):
    """E_q[exp(log r - log q)] = 1 for a normal r on the unconstrained sites."""
    guide = build(one_local, family=px.FullCovariance(), init_scale=0.5)
    guide.setup(X)
    center = guide.median(X)["z"]
    wide = torch.distributions.Normal(center, 0.6)
    z = wide.sample((20_000,))
    weight = (guide.log_prob({"z": z}, X) - wide.log_prob(z).sum(-1)).detach().exp()
    assert_mean(weight, 1.0)


def test_log_prob_has_gradients_for_latents_and_parameters():
    guide = px.AutoPerDatapoint(awkward_locals, plate="data")
    guide.setup(X)
    values = {k: v.requires_grad_() for k, v in guide.sample_posterior(3, X).items()}
    guide.log_prob(values, X).sum().backward()
    assert all(value.grad.isfinite().all() for value in values.values())
    assert all(param.grad.isfinite().all() for param in guide.parameters())


def test_log_prob_of_a_constrained_site_has_the_jacobian():
    def model():
        pyro.sample("tau", dist.LogNormal(0.0, 1.0))

    guide = px.AutoJoint(
        model, init_scale=0.7, init_loc_fn=init_to_value(values={"tau": torch.tensor(1.5)})
    )
    tau = torch.tensor([0.1, 1.0, 4.0])
    exact = dist.LogNormal(torch.tensor(1.5).log(), 0.7).log_prob(tau)
    torch.testing.assert_close(guide.log_prob({"tau": tau}), exact)


def test_parameters_exist_before_the_first_step():
    for build in GUIDES.values():
        guide = build(awkward_locals)
        guide.setup(X)
        optimizer = torch.optim.SGD(guide.parameters(), lr=1e-3)
        before = copy.deepcopy(guide.state_dict())
        px.ELBO(3).differentiable_loss(awkward_locals, guide, X).backward()
        optimizer.step()
        after = guide.state_dict()
        assert before.keys() == after.keys()
        assert all((before[name] != after[name]).any() for name in before)


def test_numbers_of_parameters():
    joint = px.AutoJoint(awkward_locals, family=px.FullCovariance())
    joint.setup(X)
    dim = 1 + 5 * (1 + 2 + 2 * 2)
    assert joint.num_params == 2 * dim + dim * (dim - 1) // 2
    local = px.AutoPerDatapoint(awkward_locals, plate="data")
    local.setup(X)
    assert local.num_params == 2 + 5 * 2 * 7
    amortized = px.AutoAmortized(awkward_locals, Encoder(4), plate="data")
    amortized.setup(X)
    assert amortized.num_params == 2 + (4 + 4) + (4 * 14 + 14)


def test_a_single_latent_has_the_same_start_in_every_family():
    for family in FAMILIES.values():
        guide = px.AutoJoint(one_global, family=family, init_scale=0.3)
        torch.manual_seed(0)
        guide.setup(X)
        draws = guide.sample_posterior(4000, X)["mu"]
        assert_mean(draws, guide.median(X)["mu"])
        assert_mean((draws - draws.mean()) ** 2, 0.09)


INITIALIZERS = {
    "feasible": init_to_feasible,
    "mean": init_to_mean,
    "median": init_to_median,
    "sample": init_to_sample,
    "uniform": init_to_uniform,
    "value": init_to_value(values={"scale": torch.tensor(2.5)}),
    "generated": init_to_generated(
        generate=lambda: init_to_value(values={"scale": torch.tensor(2.5)})
    ),
}


@EVERY_GUIDE
@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_of_pyro(build, name):
    guide = build(awkward_locals, init_loc_fn=INITIALIZERS[name])
    guide.setup(X)
    median = guide.median(X)
    assert all(value.isfinite().all() for value in median.values())
    if name in ("value", "generated"):
        torch.testing.assert_close(median["scale"], torch.tensor(2.5))


def test_the_start_of_a_datum_is_its_own():
    start = init_to_value(values={"z": X})
    guide = px.AutoPerDatapoint(one_local, init_loc_fn=start)
    guide.setup(X)
    torch.testing.assert_close(guide.median(X)["z"], X)


def test_the_start_of_a_permuted_batch_is_not_another_datums():
    def model(x, rows):
        with pyro.plate("data", 5, subsample=rows):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    rows = torch.tensor([4, 2, 0, 1, 3])
    guide = px.AutoPerDatapoint(model, init_loc_fn=init_to_value(values={"z": X[rows]}))
    guide.setup(X[rows], rows)
    ordered = guide.median(X, torch.arange(5))["z"]
    assert not torch.equal(ordered, X[rows])


def test_two_guides_share_nothing():
    """In SVI, through Pyro's store, where parameters of one name would be the same."""
    for build in GUIDES.values():
        first, second = build(one_local), build(one_local)
        adam = {"lr": 0.1}
        SVI(one_local, first, pyro.optim.Adam(adam), px.ELBO()).step(X)
        before = copy.deepcopy(first.state_dict())
        step = SVI(one_local, second, pyro.optim.Adam(adam), px.ELBO()).step
        step(X), step(X)
        assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
        ours = {p.data_ptr() for p in first.parameters()}
        assert not ours & {p.data_ptr() for p in second.parameters()}


def test_pickle_keeps_the_model():
    for build in GUIDES.values():
        guide = build(one_local)
        guide.setup(X)
        loaded = pickle.loads(pickle.dumps(guide))
        assert loaded.model is one_local
        assert px.ELBO().loss(loaded.model, loaded, X) > 0
        assert guide.model is one_local


def test_deepcopy_does_not_copy_the_model():
    class Model(nn.Module):
        def forward(self, x):
            one_local(x)

    model = Model()
    guide = px.AutoPerDatapoint(model)
    guide.setup(X)
    assert copy.deepcopy(guide).model is model


@EVERY_GUIDE
def test_cast_between_dtypes(build):
    def model(x):
        top = pyro.sample("top", dist.Normal(x.new_zeros(2), x.new_ones(())).to_event(1))
        loc = x.new_ones(len(x), 2) @ top.unsqueeze(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc.squeeze(-1), x.new_ones(())))
            pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x)

    guide = build(model).float()
    guide.setup(X.float())
    guide.float()
    assert guide(X.float())["z"].dtype == torch.float32
    guide.double()
    assert guide(X)["z"].dtype == torch.float64
    assert guide.median(X)["top"].dtype == torch.float64
    assert px.ELBO().loss(model, guide, X) > 0


@EVERY_GUIDE
def test_a_mean_field_run_of_trace_elbo_agrees_with_ours(build):
    """Same expectation, by the difference of two independent sets of estimates."""
    guide = build(awkward_locals)
    guide.setup(X)
    ours = torch.tensor([px.ELBO(20).loss(awkward_locals, guide, X) for _ in range(50)])
    pyros = Trace_ELBO(20, max_plate_nesting=2, vectorize_particles=True)
    theirs = torch.tensor([pyros.loss(awkward_locals, guide, X) for _ in range(50)])
    assert_mean(ours - theirs, 0.0)


def test_two_of_our_guides_in_a_list():
    exact = NormalHierarchy(X, 0.7, 0.5, 2.0)
    guide = AutoGuideList(exact.model)
    guide.append(px.AutoJoint(poutine.block(exact.model, expose=["mu"])))
    guide.append(px.AutoPerDatapoint(poutine.block(exact.model, expose=["z"])))
    guide(X)
    assert {name for name, _ in guide.named_parameters()} == {"0.params", "1.local_params"}
    optim = partial(torch.optim.Adam, lr=0.05)
    run = px.fit(exact.model, guide, px.ELBO(8), X, optim, num_steps=400, seed=0, progress=False)
    mean, covariance = exact.posterior()
    draws = run.sample(4000)
    sd = 1 / covariance.inverse().diagonal().sqrt()
    torch.testing.assert_close(draws["mu"].mean(), mean[0], rtol=0, atol=0.06)
    torch.testing.assert_close(draws["z"].mean(0), mean[1:], rtol=0, atol=0.06)
    torch.testing.assert_close(draws["z"].std(0), sd[1:], rtol=0.25, atol=0)


def test_with_a_delta_of_pyro_in_a_list():
    """The MAP of mu given the best q of z, which is the mean here, all being normal."""
    exact = NormalHierarchy(X, 0.7, 0.5, 2.0)
    guide = AutoGuideList(exact.model)
    guide.append(AutoDelta(poutine.block(exact.model, expose=["mu"])))
    guide.append(px.AutoPerDatapoint(poutine.block(exact.model, expose=["z"])))
    optim = partial(torch.optim.Adam, lr=0.05)
    px.fit(exact.model, guide, px.ELBO(8), X, optim, num_steps=400, seed=0, progress=False)
    expected = exact.posterior().mean[0]
    torch.testing.assert_close(guide[0].median()["mu"], expected, rtol=0, atol=0.1)
    guide_copy = copy.deepcopy(guide[1])
    assert guide_copy.sample_posterior(2, X)["z"].shape == (2, 5)


def test_a_blocked_model():
    """One site each, whether the plate's own site is hidden or not; together by hand."""
    for view in (
        poutine.block(awkward_locals, expose=["rate", "w"]),
        poutine.block(awkward_locals, hide=["part", "scale"]),
    ):
        for source in SOURCES.values():
            guide = source(view)
            guide.setup(X)
            draws = guide.sample_posterior(3, X)
            assert {name: tuple(v.shape) for name, v in draws.items()} == {
                "rate": (3, 5),
                "w": (3, 2, 5, 2),
            }
            assert guide(X)["rate"].shape == (5,)
            assert guide.log_prob(draws, X).shape == (3,)


def test_a_blocked_plate_that_shows_a_part_is_an_error():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match=r"AutoPerDatapoint: .*poutine.block hides them.*expose"):
        px.AutoPerDatapoint(poutine.block(model, expose=["z"])).setup(X)


@EVERY_SOURCE
def test_the_encoder_runs_once_per_call_and_particles_share_it(source):
    guide = source(one_local)
    guide.setup(X)
    if not hasattr(guide, "encoder"):
        return
    loss = px.IWAE(50, estimator="dreg")
    loss.loss(one_local, guide, X)  # the first calls also look at the pair's plates
    loss.differentiable_loss(one_local, guide, X)
    guide.encoder.calls.clear()
    loss.loss(one_local, guide, X)
    assert guide.encoder.calls == [(5,)]
    guide.encoder.calls.clear()
    loss.differentiable_loss(one_local, guide, X).backward()
    assert guide.encoder.calls == [(5,)]
    guide.encoder.calls.clear()
    guide.sample_posterior(100, X)
    assert guide.encoder.calls == [(5,)]


def test_an_encoder_may_be_a_function():
    guide = px.AutoAmortized(one_local, lambda x: x.unsqueeze(-1))
    check_guide(lambda: copy.deepcopy(guide), one_local, X)


def test_keyword_arguments_reach_model_and_encoder():
    def model(x, *, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    seen = []

    def encoder(x, *, scale):
        seen.append(scale)
        return x.unsqueeze(-1)

    guide = px.AutoAmortized(model, encoder)
    assert px.ELBO().loss(model, guide, X, scale=2.0) > 0
    assert guide.sample_posterior(3, X, scale=2.0)["z"].shape == (3, 5)
    assert set(seen) == {2.0}
