"""A guide scores latents that `poutine.condition` and `poutine.replay` give it."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from awkward import (
    EVERY_FAMILY_AND_A_FLOW,
    EVERY_GUIDE,
    LOCAL_MODELS,
    Encoder,
    X,
    awkward_globals,
    awkward_locals,
    one_local,
)
from pyro import poutine
from pyro.infer import CSIS, ReweightedWakeSleep
from pyro.infer.autoguide import AutoGuideList

import pyro_ext as px
from pyro_ext.structure import sample_sites

NESTING = 2


def prior_draws(model, x=X):
    """Return values that no guide drew."""
    trace = poutine.trace(model).get_trace(x)
    return latents(trace)


def latents(trace):
    return {n: site["value"] for n, site in sample_sites(trace) if not site["is_observed"]}


def ready(guide, x=X):
    guide.setup(x)
    with torch.no_grad():
        for param in guide.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return guide


def scored(guide, values, x=X):
    """Return the trace of the guide at the given values."""
    return poutine.trace(poutine.condition(guide, data=values)).get_trace(x)


CASES = [*LOCAL_MODELS.values(), awkward_globals]


@EVERY_FAMILY_AND_A_FLOW
@EVERY_GUIDE
@pytest.mark.parametrize("model", CASES, ids=lambda model: model.__name__)
def test_conditioned_values_are_scored(build, family, model):
    if model is awkward_globals:
        guide = ready(px.AutoJoint(model, family=family))
    else:
        guide = ready(build(model, family=family))
    values = prior_draws(model)
    trace = scored(guide, values)
    torch.testing.assert_close(trace.log_prob_sum(), guide.log_prob(values, X))
    assert all(trace.nodes[name]["value"] is value for name, value in values.items())
    assert all(trace.nodes[name]["is_observed"] for name in values)


@EVERY_GUIDE
@pytest.mark.parametrize("model", LOCAL_MODELS.values(), ids=LOCAL_MODELS)
def test_a_replayed_trace_of_the_model_is_scored(build, model):
    guide = ready(build(model))
    model_trace = poutine.trace(model).get_trace(X)
    values = latents(model_trace)
    trace = poutine.trace(poutine.replay(guide, trace=model_trace)).get_trace(X)
    torch.testing.assert_close(trace.log_prob_sum(), guide.log_prob(values, X))
    assert not any(trace.nodes[name]["is_observed"] for name in values)
    pyro.util.check_model_guide_match(model_trace, trace)


@EVERY_GUIDE
@pytest.mark.parametrize("model", LOCAL_MODELS.values(), ids=LOCAL_MODELS)
def test_particles_are_scored_one_by_one(build, model):
    guide = ready(build(model))
    with pyro.plate("particles", 3, dim=-NESTING - 1):
        draws = prior_draws(model)
        trace = scored(guide, draws)
    trace.compute_log_prob()
    total = sum(site["log_prob"].reshape(3, -1).sum(-1) for _, site in sample_sites(trace))
    own = prior_draws(model)
    one_by_one = torch.stack(
        [
            guide.log_prob({k: v[i].reshape(own[k].shape) for k, v in draws.items()}, X)
            for i in range(3)
        ]
    )
    torch.testing.assert_close(total, one_by_one)


def conditioned_on_globals(name, model):
    if name == "per datapoint":
        return px.AutoPerDatapoint(model, plate="data", condition_on_globals=True)
    return px.AutoAmortized(model, Encoder(), plate="data", condition_on_globals=True)


@pytest.mark.parametrize("name", ["per datapoint", "amortized"])
@pytest.mark.parametrize("model", [awkward_locals, LOCAL_MODELS["locals_at_2"]])
def test_given_globals_condition_the_local_latents(name, model):
    guide = ready(conditioned_on_globals(name, model))
    values = prior_draws(model)
    torch.testing.assert_close(scored(guide, values).log_prob_sum(), guide.log_prob(values, X))
    (top, value), *_ = values.items()
    globals_only = {top: value}
    trace = scored(guide, globals_only)
    assert trace.nodes[top]["is_observed"]
    drawn = latents(trace)
    torch.testing.assert_close(trace.log_prob_sum(), guide.log_prob(globals_only | drawn, X))
    with pyro.plate("particles", 3, dim=-NESTING - 1):
        together = prior_draws(model)
        trace = scored(guide, together)
    trace.compute_log_prob()
    total = sum(site["log_prob"].reshape(3, -1).sum(-1) for _, site in sample_sites(trace))
    for i in range(3):
        one = {k: v[i].reshape(values[k].shape) for k, v in together.items()}
        torch.testing.assert_close(total[i], guide.log_prob(one, X))


@EVERY_GUIDE
def test_a_value_broadcasts_over_the_plate(build):
    guide = ready(build(one_local))
    trace = scored(guide, {"z": torch.tensor(0.3)})
    expected = guide.log_prob({"z": torch.full((5,), 0.3)}, X)
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_a_mini_batch_is_scored_with_its_scale():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    guide = ready(px.AutoPerDatapoint(model))
    model_trace = poutine.trace(model).get_trace(X)
    rows = model_trace.nodes["data"]["value"]
    trace = poutine.trace(poutine.replay(guide, trace=model_trace)).get_trace(X)
    whole = torch.zeros(5).index_copy(0, rows, model_trace.nodes["z"]["value"])
    alone = guide.log_prob({"z": whole}, X) - guide.log_prob({"z": torch.zeros(5)}, X)
    others = scored_rows(guide, torch.zeros(5), rows)
    torch.testing.assert_close(trace.log_prob_sum(), 2.5 * (alone + others))


def scored_rows(guide, z, rows):
    loc, raw = guide.local_params.detach().split(1, dim=-1)
    sd = torch.nn.functional.softplus(raw) + torch.finfo(raw.dtype).eps
    return dist.Normal(loc.squeeze(-1), sd.squeeze(-1)).log_prob(z)[rows].sum()


@EVERY_GUIDE
def test_the_guides_own_trace_replays_as_before(build):
    guide = ready(build(awkward_locals))
    trace = poutine.trace(guide).get_trace(X)
    again = poutine.trace(poutine.replay(guide, trace=trace)).get_trace(X)
    torch.testing.assert_close(again.log_prob_sum(), trace.log_prob_sum())
    vectors = guide.auxiliary({n: trace.nodes[n]["value"] for n in prior_draws(awkward_locals)}, X)
    conditioned = poutine.trace(poutine.condition(guide, data=vectors)).get_trace(X)
    torch.testing.assert_close(conditioned.log_prob_sum(), trace.log_prob_sum())


def test_handlers_take_back_what_they_gave():
    guide = ready(px.AutoPerDatapoint(one_local))
    values = prior_draws(one_local)
    hidden = poutine.condition(poutine.block(guide, hide=["z"]), data=values)
    unconditioned = poutine.uncondition(poutine.condition(guide, data=values))
    for drawn in (hidden, unconditioned):
        assert not torch.equal(drawn(X)["z"], values["z"])


def test_in_a_list():
    guide = AutoGuideList(awkward_locals)
    guide.append(px.AutoJoint(poutine.block(awkward_locals, expose=["scale"])))
    guide.append(px.AutoPerDatapoint(poutine.block(awkward_locals, hide=["scale"]), plate="data"))
    guide(X)
    values = prior_draws(awkward_locals)
    total = scored(guide, values).log_prob_sum()
    top, rest = guide
    local = {name: value for name, value in values.items() if name != "scale"}
    expected = top.log_prob({"scale": values["scale"]}, X) + rest.log_prob(local, X)
    torch.testing.assert_close(total, expected)
    only = scored(guide, {"scale": values["scale"]})
    assert not only.nodes["rate"]["is_observed"]


@EVERY_GUIDE
def test_some_sites_of_a_group_are_not_enough(build):
    guide = ready(build(awkward_locals))
    values = prior_draws(awkward_locals)
    match = r"'rate'.*, which are drawn together.*missing \[.*'w'\].*condition the model"
    with pytest.raises(ValueError, match=match):
        scored(guide, {name: values[name] for name in ("rate", "part")})


@EVERY_GUIDE
@pytest.mark.parametrize("z", [torch.zeros(4), torch.zeros(3, 4)], ids=lambda z: str(z.shape))
def test_a_value_of_the_wrong_shape(build, z):
    guide = ready(build(one_local))
    with pytest.raises(ValueError, match=r"site 'z': expected a value of shape \(5,\).*condition"):
        scored(guide, {"z": z})


def test_the_forward_divergence_fits_the_moments():
    """The maximum of E_p[log q] over normals q has the mean and covariance of p, exactly."""

    def model():
        mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
        pyro.sample("tau", dist.LogNormal(0.3 * mu, 0.5))

    with pyro.plate("particles", 200, dim=-1):
        model_trace = poutine.trace(model).get_trace()
    guide = px.AutoJoint(model, family=px.FullCovariance())
    guide.setup()
    optimizer = torch.optim.LBFGS(
        guide.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def loss():
        optimizer.zero_grad()
        with pyro.plate("particles", 200, dim=-1):
            trace = poutine.trace(poutine.replay(guide, trace=model_trace)).get_trace()
        value = -trace.log_prob_sum() / 200
        value.backward()
        return value

    optimizer.step(loss)
    values = [model_trace.nodes[name]["value"] for name in ("mu", "tau")]
    z = torch.stack([values[0], values[1].log()], dim=-1)
    posterior = guide.get_posterior()
    torch.testing.assert_close(posterior.mean, z.mean(0), rtol=1e-5, atol=1e-5)
    covariance = torch.cov(z.T, correction=0)
    torch.testing.assert_close(posterior.covariance_matrix, covariance, rtol=1e-4, atol=1e-5)


def dreaming(observations):
    with pyro.plate("data", 5):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=observations["x"])


class DreamEncoder(Encoder):
    def forward(self, observations):
        return super().forward(observations["x"])


def test_compiled_inference_has_the_gradient_of_log_prob():
    """Pyro's CSIS: the gradient of -log q(latents | data) at draws of the model."""
    guide = px.AutoAmortized(dreaming, DreamEncoder())
    guide.setup({"x": X})
    csis = CSIS(dreaming, guide, pyro.optim.Adam({"lr": 0.01}))
    dreams = [csis._sample_from_joint(observations={"x": X}) for _ in range(3)]
    value = csis.loss_and_grads(True, dreams, observations={"x": X})  # noqa: FBT003
    found = {name: param.grad.clone() for name, param in guide.named_parameters()}
    guide.zero_grad()
    seen = [{name: dream.nodes[name]["value"] for name in ("z", "x")} for dream in dreams]
    ours = -sum(guide.log_prob({"z": d["z"]}, observations={"x": d["x"]}) for d in seen) / 3
    ours.backward()
    assert abs(value - ours.item()) < 1e-10
    for name, param in guide.named_parameters():
        torch.testing.assert_close(found[name], param.grad)
    before = copy.deepcopy(guide.state_dict())
    csis.step(observations={"x": X})
    assert all((value != before[name]).any() for name, value in guide.state_dict().items())


@pytest.mark.parametrize(
    ("insomnia", "vectorize"), [(0.0, False), (0.5, False), (1.0, False), (1.0, True)]
)
def test_reweighted_wake_sleep_of_pyro(insomnia, vectorize):
    guide = px.AutoAmortized(dreaming, DreamEncoder())
    guide.setup({"x": X})
    loss = ReweightedWakeSleep(
        num_particles=3,
        insomnia=insomnia,
        model_has_params=False,
        vectorize_particles=vectorize,
        max_plate_nesting=1,
    )
    _, phi = loss.loss_and_grads(dreaming, guide, observations={"x": X})
    assert torch.tensor(phi).isfinite()
    assert all(param.grad.abs().sum() > 0 for param in guide.parameters())


def test_the_sleep_phase_of_pyro_scores_the_dream():
    guide = px.AutoAmortized(dreaming, DreamEncoder())
    guide.setup({"x": X})
    loss = ReweightedWakeSleep(
        num_sleep_particles=1, insomnia=0.0, model_has_params=False, vectorize_particles=False
    )
    torch.manual_seed(1)
    _, phi = loss.loss(dreaming, guide, observations={"x": X})
    torch.manual_seed(1)
    dream = poutine.trace(poutine.uncondition(dreaming)).get_trace({"x": X})
    z, x = dream.nodes["z"]["value"], dream.nodes["x"]["value"]
    torch.testing.assert_close(phi, -guide.log_prob({"z": z}, {"x": x}))
