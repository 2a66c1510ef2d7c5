"""Pyro's own contract of its autoguides, kept by ours.

What the documentation of ``pyro.infer.autoguide`` and of its base classes promises, and what the
tests of Pyro's guides check, one row a promise:

=========================  ======================================================================
promise                    test
=========================  ======================================================================
shapes of sites            test_shapes
every site is scored       test_scores
factors, deterministic     test_factors_and_deterministic_sites
plates: nested, side by    test_shapes, over models with both
side
sequential plates: error   test_errors.py: test_a_sequential_plate
subsampled plates          test_subsampling
``create_plates``          test_subsampling
replay of subsamples       test_replayed_plates
``median``, ``quantiles``  test_median_and_quantiles, and ``check_guide`` for their values
``init_loc_fn``            test_autoguides.py: test_initializers_of_pyro
``init_scale``             test_the_initial_scale
initializers see improper  test_flat_priors.py
priors
latents of size 0          test_a_latent_without_elements
models without latents:    test_errors.py: test_a_model_without_latents
error
discrete, spherical        test_errors.py: test_a_discrete_site; test_flat_priors.py
sites: error, or reparam
``AutoGuideList``          test_lists.py
custom guides in a list    test_lists.py: test_a_function_in_a_list
discrete latents           test_lists.py: test_discrete_latents_*
blocked models             test_autoguides.py: test_a_blocked_model
``call()`` and the JIT     test_modules.py: test_call_returns_a_tuple_that_the_jit_traces
serialization, copies      test_modules.py: test_saving, test_the_parameter_store_saves
``load_state_dict``        test_errors.py: test_load_before_setup
inside a ``PyroModule``    test_modules.py: test_inside_a_module
``module_local_params``    test_modules.py: test_local_parameters
``to``, ``double``         test_modules.py: test_cast_after_svi_has_started
``Predictive``             test_predictive
Pyro's losses              test_losses_of_pyro, test_the_mean_field_loss_is_exact
``_unpack_latent``,        test_neutra.py
``get_posterior``,
``get_transform``,
``NeuTraReparam``
``condition``, ``replay``  test_given_values.py
reparameterizers           test_flat_priors.py: test_reparameterized_models
one process, many guides   test_modules.py: test_guides_of_two_shapes
regression smoke           test_a_linear_regression
=========================  ======================================================================
"""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from awkward import (
    EVERY_FAMILY,
    EVERY_FAMILY_AND_A_FLOW,
    EVERY_GUIDE,
    EVERY_SOURCE,
    GUIDES,
    LOCAL_MODELS,
    X,
    awkward_globals,
    awkward_locals,
    one_global,
    one_local,
    shapes,
    steps,
)
from pyro import poutine
from pyro.infer import (
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    init_to_value,
)

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.structure import sample_sites

MODELS = {f.__name__: f for f in (one_global, awkward_globals, *LOCAL_MODELS.values())}


@EVERY_FAMILY_AND_A_FLOW
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_shapes(model, family):
    sites = dict(sample_sites(poutine.trace(model).get_trace(X)))
    expected = {n: tuple(s["value"].shape) for n, s in sites.items() if not s["is_observed"]}
    builders = GUIDES.values() if model in LOCAL_MODELS.values() else [GUIDES["joint"]]
    for build in builders:
        guide = build(model, family=family)
        assert shapes(guide(X)) == expected
        trace = poutine.trace(guide).get_trace(X)
        for name in expected:
            assert trace.nodes[name]["fn"].batch_shape == sites[name]["fn"].batch_shape
            assert trace.nodes[name]["fn"].event_shape == sites[name]["fn"].event_shape


@EVERY_FAMILY_AND_A_FLOW
@EVERY_GUIDE
def test_scores(build, family):
    """Pyro's: the density of each draw, no more than once, and none of it where it is masked."""
    guide = build(awkward_locals, family=family)
    trace = poutine.trace(guide).get_trace(X)
    trace.compute_log_prob()
    log_det = {n: trace.nodes[n]["log_prob"] for n in guide(X)}
    assert all((value != 0).any() for n, value in log_det.items() if n != "w")
    assert (log_det["w"] == 0).all()
    masked = poutine.trace(poutine.mask(guide, mask=False)).get_trace(X)
    assert masked.log_prob_sum() == 0


def test_factors_and_deterministic_sites():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("prior", -((z - 1) ** 2))
        pyro.deterministic("twice", 2 * z)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, pyro.param("sd", torch.tensor(1.0))), obs=x)

    guide = px.AutoJoint(model)
    assert set(guide(X)) == {"z"}
    steps(model, guide, Trace_ELBO(), X)


def test_a_latent_without_elements():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([0]).to_event(1))

    assert shapes(px.AutoJoint(model)()) == {"z": (0,)}


@pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES)
def test_the_initial_scale(build):
    guide = build(one_local, init_scale=0.3, init_loc_fn=init_to_value(values={"z": 2 * X}))
    if isinstance(guide, px.AutoAmortized):
        guide.setup(X)
        torch.nn.init.zeros_(guide.head.weight)
        mean = (2 * X).mean()
    else:
        mean = 2 * X
    draws = guide.sample_posterior(4000, X)["z"]
    assert_mean(draws, mean)
    assert_mean((draws - mean) ** 2, 0.09)


@EVERY_FAMILY_AND_A_FLOW
@EVERY_GUIDE
def test_median_and_quantiles(build, family):
    guide = build(awkward_locals, family=family)
    median, quantiles = guide.median(X), guide.quantiles([0.1, 0.5, 0.9], X)
    assert shapes(median) == shapes(guide(X))
    assert shapes(quantiles) == {name: (3, *shape) for name, shape in shapes(median).items()}
    for low, middle, high in quantiles.values():
        assert (low < middle).all()
        assert (middle < high).all()


@pytest.mark.parametrize("name", ["per datapoint", "amortized"])
@pytest.mark.parametrize("by_plates", [False, True], ids=["", "create_plates"])
def test_subsampling(name, by_plates):
    seen = []

    def model(x, rows=None):
        with pyro.plate("data", 5, subsample_size=2, subsample=rows) as index:
            seen.append(index)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def create_plates(x, rows=None):
        return pyro.plate("data", 5, subsample_size=2, subsample=rows)

    plates = create_plates if by_plates else None
    if name == "amortized":
        encode = lambda x, rows=None: x.unsqueeze(-1)  # noqa: E731
        guide = px.AutoAmortized(model, encode, create_plates=plates)
    else:
        guide = px.AutoPerDatapoint(model, create_plates=plates)
    for _ in range(3):
        steps(model, guide, Trace_ELBO(), X, number=1)
        pair = poutine.trace(guide).get_trace(X)
        assert pair.nodes["z"]["fn"].batch_shape == (2,)
    assert shapes(guide.median(X)) == {"z": (5,)}
    if not by_plates:
        rows = torch.tensor([4, 1])
        trace = poutine.trace(guide).get_trace(X, rows)
        poutine.trace(poutine.replay(model, trace=trace)).get_trace(X, rows)
        assert torch.equal(seen[-1], rows)


@EVERY_SOURCE
def test_replayed_plates(source):
    """The rows that the guide drew are the model's."""

    def model(x):
        with pyro.plate("data", 5, subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    guide = source(model)
    for _ in range(5):
        drawn = poutine.trace(guide).get_trace(X)
        replayed = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(X)
        assert torch.equal(drawn.nodes["data"]["value"], replayed.nodes["data"]["value"])


@EVERY_GUIDE
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(build, parallel):
    """Sites of the model with draws in front; the guide's own vectors are not among them."""
    guide = build(awkward_locals)
    predict = Predictive(awkward_locals, guide=guide, num_samples=7, parallel=parallel)
    drawn = predict(X)
    assert shapes(drawn) == {
        "scale": (7, 1, 1),
        "rate": (7, 1, 5),
        "part": (7, 1, 5, 3),
        "w": (7, 2, 5, 2),
        "x": (7, 5),
    }
    assert len(drawn["rate"].unique()) == 35
    from_draws = Predictive(awkward_locals, guide.sample_posterior(7, X), parallel=parallel)(X)
    assert shapes(from_draws) == {"x": (7, 5)}


LOSSES = {
    "Trace": Trace_ELBO(),
    "Trace, vectorized": Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=2),
    "TraceGraph": TraceGraph_ELBO(),
    "TraceMeanField": TraceMeanField_ELBO(3, vectorize_particles=True, max_plate_nesting=2),
    "Renyi": RenyiELBO(alpha=0.5, num_particles=2),
    "Renyi, vectorized": RenyiELBO(
        alpha=0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=2
    ),
}


@EVERY_FAMILY_AND_A_FLOW
@EVERY_GUIDE
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_pyro(build, family, name):
    steps(awkward_locals, build(awkward_locals, family=family), copy.copy(LOSSES[name]), X)


@EVERY_GUIDE
@pytest.mark.parametrize("model", LOCAL_MODELS.values(), ids=LOCAL_MODELS)
def test_the_mean_field_loss_is_exact(build, model):
    """Pyro drops the Jacobian of constrained sites for its own guides; not for these."""
    guide = build(model)
    guide.setup(X)
    values = []
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        torch.manual_seed(0)
        values.append(loss.loss(model, guide, X))
    torch.testing.assert_close(*values)


@EVERY_FAMILY
def test_a_linear_regression(family):
    """Pyro's smoke test, with the exact posterior mean of the weights."""
    torch.manual_seed(0)
    features = torch.randn(50, 2)
    target = features @ torch.tensor([1.0, -2.0]) + 0.1 * torch.randn(50)

    def model(features, target):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, 10.0))
        loc = (features * weights.unsqueeze(-2)).sum(-1) + bias.unsqueeze(-1)
        with pyro.plate("data", 50):
            pyro.sample("y", dist.Normal(loc, 0.1), obs=target)

    guide = px.AutoJoint(model, family=family, init_scale=0.01)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.3, "lrd": 0.97}), Trace_ELBO())
    for _ in range(250):
        assert torch.tensor(svi.step(features, target)).isfinite()
    design = torch.cat([features, torch.ones(50, 1)], dim=-1)
    precision = design.T @ design / 0.01 + torch.eye(3) / 100
    exact = torch.linalg.solve(precision, design.T @ target / 0.01)
    sd = precision.inverse().diagonal().sqrt()
    median = guide.median(features, target)
    found = torch.cat([median["weights"], median["bias"].unsqueeze(0)])
    assert ((found - exact) / sd).abs().max() < 1
