"""q(θ) Π q(z_i | θ, x_i): exact where q(θ) Π q(z_i) has a known gap."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.autoguide import AutoSemiAmortized
from pyro_ext.families.family import inverse_positive
from pyro_ext.testing import NormalHierarchy, check_guide

X = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4])
EXACT = NormalHierarchy(X, 0.7, 0.5, 2.0)


class Features(nn.Module):
    """The datum, and a record of the calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.unsqueeze(-1)


def one_top(x):
    top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(top.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def awkward(x):
    """Globals in a plate of their own, positive and simplex sites, a plate inside the data's."""
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
    with pyro.plate("group", 3, dim=-2):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        part = pyro.sample("part", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("component", 2, dim=-2):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = w.sum(-1).sum(-2, keepdim=True) + part[..., 0] + shift.sum(-2, keepdim=True)
        pyro.sample("x", dist.Normal(loc, 0.5 + tau), obs=x)


def data_at_2(x):
    """The data plate at -2, globals in a plate at -1."""
    with pyro.plate("group", 3, dim=-1):
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(top.sum(-1, keepdim=True), 1.0))
        with pyro.plate("repeat", 2, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.unsqueeze(-1).expand(-1, 2))


MODELS = {f.__name__: f for f in (one_top, awkward, data_at_2)}
GUIDES = {
    "per datapoint": px.AutoPerDatapoint,
    "amortized": lambda model, **kw: px.AutoAmortized(model, Features(), **kw),
    "semi-amortized": lambda model, **kw: AutoSemiAmortized(model, Features(), **kw),
}
EVERY_GUIDE = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES)
EVERY_MODEL = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def conditioned(build, model=EXACT.model, **options):
    return build(model, plate="data", condition_on_globals=True, **options)


def disturb(guide, scale=0.3):
    """Let π depend on the globals."""
    with torch.no_grad():
        for param in guide.parameters():
            param.add_(scale * torch.randn_like(param))


def ready(build, model=EXACT.model, **options):
    torch.manual_seed(0)
    guide = conditioned(build, model, **options)
    guide.setup(X)
    disturb(guide)
    return guide


@EVERY_MODEL
@EVERY_GUIDE
def test_the_contract(build, model):
    check_guide(lambda: conditioned(build, model), model, X)


@pytest.mark.parametrize("family", [px.FullCovariance(), px.LowRank(rank=1)], ids=repr)
@EVERY_GUIDE
def test_the_contract_of_other_families(build, family):
    check_guide(
        lambda: conditioned(build, one_top, family=family, global_family=family), one_top, X
    )


# ---------------------------------------------------------------------- exact


def gap_of_mean_field():
    """KL of the best q(mu) Π q(z_i): ½ (Σ log Λ_dd - log det Λ) for the posterior's Λ."""
    precision = EXACT.posterior().covariance.inverse()
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet())


def bound_after_fit(guide, num_steps=300):
    px.fit(
        EXACT.model,
        guide,
        px.ELBO(16, estimator="stl"),
        X,
        partial(Adam, lr=0.1),
        schedule=partial(CosineAnnealingLR, T_max=num_steps),
        num_steps=num_steps,
        seed=0,
        progress=False,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        return px.log_weights(EXACT.model, guide, X, num_particles=4000, joint=True).terms[0].log_w


@EVERY_GUIDE
def test_it_holds_the_exact_posterior(build):
    """With p(mu | x) p(z_i | mu, x_i) in the guide, every weight is the evidence."""
    guide = conditioned(build)
    guide.setup(X)
    precision = 1 / EXACT.local_scale**2 + 1 / EXACT.scale**2
    of_x, of_mu = 1 / (precision * EXACT.scale**2), 1 / (precision * EXACT.local_scale**2)
    mean, covariance = EXACT.posterior()
    raw = inverse_positive(torch.tensor(precision**-0.5))
    with torch.no_grad():
        top = torch.stack([mean[0], inverse_positive(covariance[0, 0].sqrt())])
        guide.global_params.copy_(top)
        if isinstance(guide, px.AutoPerDatapoint):
            rows = torch.stack([of_x * X, raw.expand(5), torch.full((5,), of_mu), torch.zeros(5)])
            guide.local_params.copy_(rows.T)
        else:
            guide.head.weight.copy_(torch.tensor([[of_x], [0.0]]))
            guide.head.bias.copy_(torch.tensor([0.0, raw]))
            guide.response.linear.weight.copy_(torch.tensor([[of_mu], [0.0]]))
        log_w = px.log_weights(EXACT.model, guide, X, num_particles=50, joint=True).terms[0].log_w
    torch.testing.assert_close(log_w, EXACT.log_evidence().expand(50), rtol=1e-12, atol=0)


def test_the_exact_posterior_is_reached():
    log_w = bound_after_fit(conditioned(px.AutoPerDatapoint))
    assert abs(log_w.mean() - EXACT.log_evidence()) < 1e-3


@pytest.mark.slow
def test_an_encoder_reaches_the_exact_posterior():
    log_w = bound_after_fit(conditioned(GUIDES["amortized"]), num_steps=1000)
    assert abs(log_w.mean() - EXACT.log_evidence()) < 1e-3


def test_without_it_the_known_gap_stays():
    gap = gap_of_mean_field()
    assert gap > 0.3
    log_w = bound_after_fit(px.AutoPerDatapoint(EXACT.model))
    assert_mean(log_w, (EXACT.log_evidence() - gap).item())


def exact_elbo(guide):
    """ELBO of the guide at hand in closed form, from the joint normal that it is."""
    mean, precision = EXACT.posterior().mean, EXACT.posterior().covariance.inverse()
    q_mu = guide._posterior(guide.groups[0], guide.global_params)
    size = guide.groups[1].num_params
    params = guide.local_params[:, :size]
    slope = guide.local_params[:, size:]
    loc, raw = params.unbind(-1)
    a, raw_slope = slope.unbind(-1)
    assert not raw_slope.any()  # so that q is jointly normal
    scale = nn.functional.softplus(raw)
    center = torch.cat([q_mu.mean, loc + a * q_mu.mean])
    column = torch.cat([torch.ones(1), a]) * q_mu.stddev
    rest = torch.diag(torch.cat([torch.zeros(1), scale])) @ torch.eye(len(X) + 1)[:, 1:]
    factor = torch.cat([column.unsqueeze(-1), rest], -1)
    covariance = factor @ factor.T
    q = torch.distributions.MultivariateNormal(center, covariance)
    p = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    return EXACT.log_evidence() - torch.distributions.kl_divergence(q, p)


def jointly_normal():
    guide = ready(px.AutoPerDatapoint)
    with torch.no_grad():
        guide.local_params[:, 3] = 0.0
    return guide


ESTIMATORS = {
    "reparam": px.ELBO(200),
    "stl": px.ELBO(200, estimator="stl"),
    "kl": px.ELBO(200, form="kl"),
    "iwae-1-dreg": px.IWAE(1, num_outer=200, estimator="dreg"),
}


@pytest.mark.parametrize("loss", ESTIMATORS.values(), ids=ESTIMATORS)
def test_gradients_have_the_exact_mean(loss):
    guide = jointly_normal()
    params = [guide.global_params, guide.local_params]
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-exact_elbo(guide), params)])
    # The slope of the raw scale acts on the scale, where the closed form does not hold.
    known = torch.ones(len(X), 4)
    known[:, 3] = 0.0
    known = torch.cat([torch.ones(2), known.flatten()]).bool()
    rows = []
    for _ in range(100):
        value = loss.differentiable_loss(EXACT.model, guide, X)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, params)]))
    assert_mean(torch.stack(rows)[:, known], exact[known])


@pytest.mark.parametrize("name", ["per datapoint", "amortized"])
def test_dreg_has_the_mean_of_reparam(name):
    """K local particles in each draw of the globals, whose path into q(z | θ) has to be scaled."""
    guide = ready(GUIDES[name])
    params = list(guide.parameters())
    means = []
    for estimator in ("reparam", "dreg"):
        loss = px.IWAE(3, num_outer=500, estimator=estimator)
        rows = []
        for _ in range(100):
            value = loss.differentiable_loss(EXACT.model, guide, X)
            grads = torch.autograd.grad(value, params)
            rows.append(torch.cat([g.flatten() for g in grads]))
        means.append(torch.stack(rows))
    assert_mean(means[0] - means[1], 0.0)


# ---------------------------------------------------------------------- density and summaries


@EVERY_MODEL
@EVERY_GUIDE
def test_log_prob_is_that_of_the_trace(build, model):
    guide = ready(build, model)
    names = [site.name for group in guide.groups for site in group.packing.sites]
    for _ in range(3):
        trace = poutine.trace(guide).get_trace(X)
        values = {name: trace.nodes[name]["value"] for name in names}
        torch.testing.assert_close(guide.log_prob(values, X), trace.log_prob_sum())
        torch.testing.assert_close(
            poutine.trace(poutine.condition(guide, data=values)).get_trace(X).log_prob_sum(),
            trace.log_prob_sum(),
        )


@EVERY_MODEL
@EVERY_GUIDE
def test_weights_of_particles_are_those_of_each_alone(build, model):
    guide = ready(build, model)
    with torch.no_grad():
        lw = px.log_weights(model, guide, X, num_particles=6, joint=True)
    log_q = lw.terms[0].log_q
    torch.testing.assert_close(log_q, guide.log_prob(lw.latents, X).detach())


def test_the_local_draw_follows_the_global_one():
    guide = jointly_normal()
    draws = guide.sample_posterior(20_000, X)
    z_of_mu = guide.local_params[:, 0] + guide.local_params[:, 2] * draws["mu"].unsqueeze(-1)
    scale = nn.functional.softplus(guide.local_params[:, 1])
    standard = ((draws["z"] - z_of_mu) / scale).detach()
    assert_mean(standard, 0.0)
    assert_mean(standard**2, 1.0)
    assert_mean(standard * draws["mu"].unsqueeze(-1), 0.0)


@EVERY_GUIDE
def test_the_median_is_at_the_global_median(build):
    guide = ready(build)
    median = guide.median(X)
    values = {"mu": median["mu"], "z": median["z"].clone().requires_grad_()}
    (slope,) = torch.autograd.grad(guide.log_prob(values, X), values["z"])
    torch.testing.assert_close(slope, torch.zeros(5))  # the mode of a normal
    torch.testing.assert_close(guide.quantiles([0.5], X)["z"][0], median["z"])


# ---------------------------------------------------------------------- start and cost


@EVERY_GUIDE
def test_it_starts_as_the_unconditioned_guide(build):
    def draws(*, condition_on_globals):
        torch.manual_seed(0)
        guide = build(EXACT.model, condition_on_globals=condition_on_globals)
        guide.setup(X)
        torch.manual_seed(1)
        return guide.sample_posterior(4, X)

    plain, given = (draws(condition_on_globals=flag) for flag in (False, True))
    assert torch.equal(plain["mu"], given["mu"])
    torch.testing.assert_close(plain["z"], given["z"])


@pytest.mark.parametrize("loss", [px.ELBO(2), px.IWAE(3, estimator="dreg")], ids=repr)
@EVERY_GUIDE
def test_every_parameter_has_moved_after_two_steps(build, loss):
    guide = conditioned(build)
    guide.setup(X)
    start = copy.deepcopy(guide.state_dict())
    optimizer = Adam(guide.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        loss.differentiable_loss(EXACT.model, guide, X).backward()
        optimizer.step()
    for name, value in guide.state_dict().items():
        assert (value != start[name]).any(), name


@pytest.mark.parametrize("estimator", ["reparam", "stl", "dreg"])
@pytest.mark.parametrize("name", ["amortized", "semi-amortized"])
def test_the_encoder_runs_once_per_step(name, estimator):
    guide = ready(GUIDES[name])
    loss = px.IWAE(3, num_outer=4, estimator=estimator)
    loss.differentiable_loss(EXACT.model, guide, X)
    guide.encoder.calls = 0
    loss.differentiable_loss(EXACT.model, guide, X).backward()
    assert guide.encoder.calls == 1


@EVERY_GUIDE
def test_no_globals_is_an_error(build):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(
        ValueError,
        match=r"outside plate 'data'.*got sites \['z'\], which are all inside.*on_globals=False",
    ):
        conditioned(build, model).setup(X)


@EVERY_GUIDE
def test_mini_batches(build):
    guide = ready(build)
    rows = torch.tensor([3, 1])
    values = guide.sample_posterior(1, X)
    with px.MiniBatch("data", len(X), rows, sliced=True):
        trace = poutine.trace(poutine.condition(guide, data={"mu": values["mu"][0]})).get_trace(
            X[rows]
        )
    assert trace.nodes["z"]["value"].shape == (2,)
    run = px.fit(
        EXACT.model, guide, px.ELBO(), X, num_steps=3, batch_size=2, seed=0, progress=False
    )
    assert run.sample(4)["z"].shape == (4, 5)
