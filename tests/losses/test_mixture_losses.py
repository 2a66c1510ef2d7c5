"""Mixture guides in every loss: particles shared out among the components, against brute force.

The first tests are exact: the draws of a loss are recorded, and its value and gradient computed
again from them in plain torch. The others compare with the objective by quadrature.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from reference import gauss_hermite, log_normal
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

import pyro_ext as px
from helpers import assert_mean
from pyro_ext._strata import Stratified
from pyro_ext.families.family import positive
from pyro_ext.families.mixture import Mixture, MixtureDistribution

FAMILY = Mixture(px.Diagonal(), num_components=2)
X = torch.tensor([0.4, -0.3, 1.5])
NOISE = 0.8
KINDS = ("global", "local", "both")


class Pair(nn.Module):
    """A model and its guide, each latent a mixture of two normals far from the posterior."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.prior = torch.tensor(0.3, requires_grad=True)
        generator = torch.Generator().manual_seed(1)
        rows = 0.5 * torch.randn(4, FAMILY.num_params(1), generator=generator)
        rows = rows + torch.tensor([1.2, -0.6, -0.9, 0.3, 0.8, 0.1])
        self.shared, self.table = nn.Parameter(rows[0]), nn.Parameter(rows[1:])

    @property
    def params(self) -> list[Tensor]:
        used = {"global": [self.shared], "local": [self.table], "both": [self.shared, self.table]}
        return [self.prior, *used[self.kind]]

    def model(self, x: Tensor) -> None:
        level = self.prior
        if self.kind != "local":
            level = pyro.sample("mu", dist.Normal(level, torch.ones(1)).to_event(1)).squeeze(-1)
        with pyro.plate("data", len(x), dim=-1):
            mean = level
            if self.kind != "global":
                prior = dist.Normal(level.unsqueeze(-1), torch.ones(1)).to_event(1)
                mean = pyro.sample("z", prior).squeeze(-1)
            pyro.sample("x", dist.Normal(response(mean), NOISE), obs=x)

    def forward(self, x: Tensor) -> None:
        if self.kind != "local":
            pyro.sample("mu", FAMILY.distribution(self.shared, 1))
        if self.kind != "global":
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", FAMILY.distribution(self.table, 1))


def response(z: Tensor) -> Tensor:
    return z + 0.3 * z**2


def normals(params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, means and scales of π, each of shape ``(*batch, 2)``."""
    each = params[..., 2:].unflatten(-1, (2, 2))
    return params[..., :2], each[..., 0], positive(each[..., 1])


def log_q(z: Tensor, params: Tensor) -> Tensor:
    logits, loc, scale = normals(params)
    return MixtureSameFamily(Categorical(logits=logits), Normal(loc, scale)).log_prob(z)


@dataclass
class Record:
    """What the mixtures of one pass drew: components and values, in the order of the sites."""

    chosen: list[Tensor] = field(default_factory=list)
    drawn: list[Tensor] = field(default_factory=list)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    seen = Record()
    share_out, rsample = Stratified._share_out, MixtureDistribution.rsample

    def watched_share_out(self: Any, shape: Any) -> Tensor:
        seen.chosen.append(share_out(self, shape))
        return seen.chosen[-1]

    def watched_rsample(self: Any, shape: Any = ()) -> Tensor:
        seen.drawn.append(rsample(self, shape))
        return seen.drawn[-1]

    monkeypatch.setattr(Stratified, "_share_out", watched_share_out)
    monkeypatch.setattr(MixtureDistribution, "rsample", watched_rsample)
    return seen


def again(params: Tensor, chosen: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return a draw computed anew from its noise, and log C α of its component."""
    logits, loc, scale = (part.expand(*chosen.shape, 2) for part in normals(params))

    def pick(part: Tensor) -> Tensor:
        return part.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

    noise = ((drawn.squeeze(-1) - pick(loc)) / pick(scale)).detach()
    return pick(loc) + pick(scale) * noise, math.log(2) + pick(torch.log_softmax(logits, -1))


def bound_of(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The bound of log weights and log strata, in loops."""
    name = type(loss).__name__

    def elbo(log_w: Tensor, log_s: Tensor) -> Tensor:
        return reference.elbo(log_s.exp() * log_w)

    def iwae(log_w: Tensor, log_s: Tensor) -> Tensor:
        return reference.iwae(log_w + log_s)

    if name in ("ELBO", "Annealed"):
        return elbo
    if name == "CIWAE":
        return lambda w, s: loss.beta * elbo(w, s) + (1 - loss.beta) * iwae(w, s)
    if name in ("Renyi", "CUBO"):
        order = loss.order if name == "CUBO" else 1 - loss.alpha
        return lambda w, s: iwae(order * w, s) / order
    return iwae


def brute_force(loss: Any, pair: Pair, seen: Record) -> Tensor:
    """Return what the loss estimates from the recorded draws, by the formula of its docstring.

    All tensors are ``(outer, inner)``, then the datum.
    """
    outer, inner = loss.particles.outer, loss.particles.inner
    beta = loss.beta if isinstance(loss, px.Annealed) else 1.0
    stop = (lambda t: t.detach()) if loss.estimator == "stl" else (lambda t: t)
    draws = [
        again(params, chosen, drawn)
        for params, chosen, drawn in zip(pair.params[1:], seen.chosen, seen.drawn, strict=True)
    ]
    bound = bound_of(loss)
    if pair.kind == "global":
        mu, log_s = (part.reshape(outer, inner) for part in draws[0])
        log_p = log_normal(X, response(mu[..., None]), NOISE).sum(-1)
        log_w = log_p + beta * (log_normal(mu, pair.prior, 1.0) - log_q(mu, stop(pair.shared)))
        return combine(bound, log_w, log_s)
    z, log_s = (part.reshape(outer, inner, 3) for part in draws[-1])
    log_p = log_normal(X, response(z), NOISE)
    if pair.kind == "local":
        log_p = log_p + beta * log_normal(z, pair.prior, 1.0)
        return combine(bound, log_p - beta * log_q(z, stop(pair.table)), log_s)
    mu, log_s_mu = (part.reshape(outer) for part in draws[0])
    log_w_mu = beta * (log_normal(mu, pair.prior, 1.0) - log_q(mu, stop(pair.shared)))
    log_p = log_p + beta * log_normal(z, mu[:, None, None], 1.0)
    log_w = log_p - beta * log_q(z, stop(pair.table))
    each = torch.stack([combine(bound, log_w[m : m + 1], log_s[m : m + 1]) for m in range(outer)])
    return (log_s_mu.exp() * (log_w_mu + each)).mean()


def combine(bound: Callable[[Tensor, Tensor], Tensor], log_w: Tensor, log_s: Tensor) -> Tensor:
    """Mean over outer draws of the bound of each datum; one particle only counts outside."""
    outer, inner = log_w.shape[:2]
    if inner == 1:
        return (log_s.exp() * log_w).sum() / outer
    return torch.stack([bound(log_w[m], log_s[m]).sum() for m in range(outer)]).mean()


def losses(kind: str, count: int) -> dict[str, Any]:
    """Every loss with every estimator that shares out particles."""
    many = {"num_outer": 4} if kind == "both" else {}
    found: dict[str, Any] = {}
    for name in ("reparam", "stl"):
        found[f"ELBO-{name}"] = px.ELBO(count, estimator=name)
        found[f"Annealed-{name}"] = px.Annealed(px.ELBO(count, estimator=name), 0.4)
        found[f"IWAE-{name}"] = px.IWAE(count, estimator=name, **many)
        found[f"CIWAE-{name}"] = px.CIWAE(count, beta=0.3, estimator=name, **many)
        found[f"Renyi-{name}"] = px.Renyi(count, alpha=0.5, estimator=name, **many)
        found[f"Renyi(1 - 1e-4)-{name}"] = px.Renyi(count, alpha=1 - 1e-4, estimator=name, **many)
        found[f"MIWAE-{name}"] = px.MIWAE(2, count, estimator=name)
        found[f"MIWAE(2, 1)-{name}"] = px.MIWAE(2, 1, estimator=name)
    if kind != "both":
        found["CUBO-reparam"] = px.CUBO(count)
    return found


CASES = [
    pytest.param(kind, loss, id=f"{kind}-{name}-{count}")
    for kind in KINDS
    for count in (2, 4)
    for name, loss in losses(kind, count).items()
    if "MIWAE(2, 1)" not in name or (kind != "both" and count == 2)
]


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_value_and_gradient_are_brute_force(kind: str, loss: Any, record: Record) -> None:
    """Finds strata left out, squared, taken of the wrong axis, or scaled by β."""
    pair = Pair(kind)
    value = loss.differentiable_loss(pair.model, pair, X)
    assert len(record.drawn) == len(pair.params) - 1
    expected = brute_force(loss, pair, record) * (1 if loss.upper else -1)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(value, pair.params)
    wanted = torch.autograd.grad(expected, pair.params)
    for grad, right in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize(("outer", "inner"), [(2, 2), (3, 4), (4, 1)])
def test_piwae_is_brute_force(kind: str, outer: int, inner: int, record: Record) -> None:
    """The model climbs the bound of all particles, the guide the mean of the others."""
    pair, loss = Pair(kind), px.PIWAE(outer, inner)
    value = loss.differentiable_loss(pair.model, pair, X)
    grads = torch.autograd.grad(value, pair.params)
    expected = -brute_force(loss, pair, record)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad(expected, pair.params)[1:]
    torch.testing.assert_close(grads[1:], wanted, rtol=1e-7, atol=1e-9)
    flat = -brute_force(px.IWAE(outer * inner), pair, record)
    torch.testing.assert_close(grads[0], torch.autograd.grad(flat, pair.params)[0])


# ---------------------------------------------------------------------- against the objective


def expected_elbo(pair: Pair, nodes: int = 60) -> Tensor:
    """The ELBO of a mixture, summed over its components and integrated over each."""
    eps, weights = gauss_hermite(nodes)

    def mean(h: Callable[[Tensor], Tensor], params: Tensor) -> Tensor:
        logits, loc, scale = normals(params)
        values = h(loc[..., None] + scale[..., None] * eps)
        return (torch.softmax(logits, -1) * (values @ weights)).sum(-1)

    def wide(params: Tensor) -> Tensor:
        return params[..., None, None, :]

    def local(mu: Tensor, data: Tensor, table: Tensor) -> Tensor:
        def log_w(z: Tensor) -> Tensor:
            log_p = log_normal(data, response(z), NOISE) + log_normal(z, mu, 1.0)
            return log_p - log_q(z, wide(table))

        return mean(log_w, table)

    def whole(mu: Tensor) -> Tensor:
        log_w = log_normal(mu, pair.prior, 1.0) - log_q(mu, wide(pair.shared))
        if pair.kind == "global":
            return log_w + log_normal(X, response(mu)[..., None], NOISE).sum(-1)
        every = local(mu[..., None, None, None], X[:, None, None], pair.table)
        return log_w + every.sum(-1)

    if pair.kind == "local":
        return local(pair.prior, X[:, None, None], pair.table).sum()
    return mean(whole, pair.shared)


def expected_bound(pair: Pair, bound: Any, nodes: int = 60) -> Tensor:
    """E bound of one particle of each of the two components, by 2-D quadrature."""
    eps, weights = gauss_hermite(nodes)
    params = pair.table if pair.kind == "local" else pair.shared
    logits, loc, scale = normals(params)
    z = loc[..., None] + scale[..., None] * eps
    log_w = log_normal(z, pair.prior, 1.0) - log_q(z, params[..., None, None, :])
    if pair.kind == "local":
        log_w = log_w + log_normal(X[:, None, None], response(z), NOISE)
    else:
        log_w = log_w + log_normal(X, response(z)[..., None], NOISE).sum(-1)
    first, second = log_w[..., 0, :, None], log_w[..., 1, None, :]
    pairs = torch.stack(torch.broadcast_tensors(first, second))
    log_s = math.log(2) + torch.log_softmax(logits, -1).movedim(-1, 0)
    values = bound(pairs, log_s[..., None, None].expand_as(pairs))
    return torch.einsum("i,j,...ij->...", weights, weights, values).sum()


def gradients(loss: Any, pair: Pair, rows: int) -> Tensor:
    return torch.stack(
        [flat(loss.differentiable_loss(pair.model, pair, X), pair) for _ in range(rows)]
    )


def flat(value: Tensor, pair: Pair) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(value, pair.params)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["reparam", "stl"])
@pytest.mark.parametrize("count", [2, 4])
def test_elbo_gradient_is_unbiased(kind: str, estimator: str, count: int) -> None:
    """By all parameters, the logits too; finds a score that is left out, or counted twice."""
    pair = Pair(kind)
    draws = gradients(px.ELBO(count, estimator=estimator), pair, rows=120)
    assert_mean(draws, -flat(expected_elbo(pair), pair))


@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize(
    "loss", [px.IWAE(2), px.CIWAE(2, beta=0.3), px.Renyi(2), px.MIWAE(2, 2), px.CUBO(2)], ids=repr
)
def test_gradient_is_that_of_the_stratified_bound(kind: str, loss: Any) -> None:
    pair = Pair(kind)
    expected = expected_bound(pair, bound_of(loss)) * (1 if loss.upper else -1)
    assert_mean(gradients(loss, pair, rows=120), flat(expected, pair))


def test_particles_that_all_count_alike_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, loss = Pair("local"), px.IWAE(2)
    exact = -flat(expected_bound(pair, bound_of(loss)), pair)
    assert_mean(gradients(loss, pair, rows=120), exact)
    monkeypatch.setattr(loss, "_bound", lambda log_w, *, log_strata: px.bounds.iwae(log_w))
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(gradients(loss, pair, rows=120), exact)


@pytest.mark.parametrize("kind", KINDS)
def test_score_and_strata_agree_and_strata_have_less_variance(kind: str) -> None:
    """Many particles each, for the rows of the score function to be near normal."""
    pair = Pair(kind)
    strata, score = (
        gradients(px.ELBO(500, estimator=name), pair, rows=60) for name in ("stl", "score")
    )
    assert_mean(score, -flat(expected_elbo(pair), pair))
    assert strata[:, 1:].var(0).sum() < score[:, 1:].var(0).sum()  # measured: 2.5, 6.9, 4.3 times


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize("loss", ["ELBO", "IWAE", "CIWAE", "Renyi", "MIWAE"])
def test_stl_is_silent_at_a_posterior_that_is_a_mixture(kind: str, loss: str, count: int) -> None:
    truth = Pair(kind)
    params = truth.params[1].detach()

    def model(x: Tensor) -> None:
        if kind == "global":
            z = pyro.sample("mu", dist.Normal(0.0, torch.ones(1)).to_event(1))
            pyro.factor("x", log_q(z.squeeze(-1), params) - dist.Normal(0, 1).log_prob(z)[..., 0])
            return
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, torch.ones(1)).to_event(1))
            pyro.factor("x", log_q(z.squeeze(-1), params) - dist.Normal(0, 1).log_prob(z)[..., 0])

    def gradient(estimator: str) -> Tensor:
        options = {"num_outer": 2} if loss == "MIWAE" else {}
        made = getattr(px, loss)(num_particles=count, estimator=estimator, **options)
        value = made.differentiable_loss(model, truth, X)
        return torch.autograd.grad(value, truth.params[1])[0]

    assert gradient("stl").abs().max() < 1e-12
    assert gradient("reparam").abs().max() > 1e-3


# ---------------------------------------------------------------------- independent draws


def test_public_weights_are_independent_draws(record: Record) -> None:
    pair = Pair("local")
    log_w = px.log_weights(pair.model, pair, X, num_particles=4)
    assert not record.chosen
    assert all(term.log_strata is None for term in log_w.terms)
    assert not log_w.guide_trace.nodes["z"]["fn"].has_rsample


@pytest.mark.parametrize("loss", [px.ELBO(3), px.IWAE(3), px.JackknifeIWAE(2)], ids=repr)
def test_a_value_needs_no_multiple(loss: Any) -> None:
    """Without a gradient independent draws serve, of any number."""
    pair = Pair("local")
    assert math.isfinite(loss.loss(pair.model, pair, X))


def test_the_value_is_the_same_with_strata_and_without() -> None:
    pair = Pair("both")
    exact = -expected_elbo(pair).detach()
    for count in (1, 2):
        values = [px.ELBO(count).loss(pair.model, pair, X) for _ in range(100)]
        assert_mean(torch.tensor(values)[:, None], exact)


def test_wake_sleep_and_pyros_losses_take_mixtures() -> None:
    pair = Pair("local")
    for loss in (px.WakeSleep(3), px.IWAE(3, estimator="vimco")):
        assert flat(loss.differentiable_loss(pair.model, pair, X), pair).isfinite().all()
    theirs = pyro.infer.Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)
    draws = torch.stack(
        [flat(theirs.differentiable_loss(pair.model, pair, X), pair) for _ in range(120)]
    )
    assert_mean(draws, -flat(expected_elbo(pair), pair))


# ---------------------------------------------------------------------- plates


def test_a_mini_batch_is_scaled_outside() -> None:
    pair = Pair("local")
    rows = torch.tensor([0, 2])

    def model(x: Tensor) -> None:
        with pyro.plate("data", 3, subsample=rows, dim=-1):
            z = pyro.sample("z", dist.Normal(pair.prior, torch.ones(1)).to_event(1)).squeeze(-1)
            pyro.sample("x", dist.Normal(response(z), NOISE), obs=x[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3, subsample=rows, dim=-1):
            pyro.sample("z", FAMILY.distribution(pair.table[rows], 1))

    loss = px.ELBO(4)
    draws = torch.stack(
        [flat(loss.differentiable_loss(model, guide, X), pair)[:1] for _ in range(120)]
    )
    assert_mean(draws, -1.5 * _only(pair, rows))


def _only(pair: Pair, rows: Tensor) -> Tensor:
    """Gradient of the ELBO of some rows by the model's parameter: E of the posterior's score."""
    logits, loc, _ = normals(pair.table[rows])
    mean = (torch.softmax(logits, -1) * loc).sum(-1)
    return (mean - pair.prior).sum().detach()


def test_plates_that_change_are_looked_at_again(record: Record) -> None:
    pair, loss = Pair("global"), px.ELBO(2)
    loss.differentiable_loss(pair.model, pair, X)
    for kind in ("local", "both", "local"):
        pair.kind = kind
        record.chosen.clear()
        record.drawn.clear()
        value = loss.differentiable_loss(pair.model, pair, X)
        torch.testing.assert_close(value, -brute_force(loss, pair, record))


def test_elements_that_the_model_joins_are_an_error() -> None:
    pair = Pair("local")

    def model(x: Tensor) -> None:
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(pair.prior, torch.ones(1)).to_event(1)).squeeze(-1)
            pyro.sample("x", dist.Normal(response(z), NOISE), obs=x)
        pyro.sample("sum", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.zeros(1))

    with pytest.raises(ValueError, match=r"guide site 'z'.*'data'.*estimator='score'"):
        px.ELBO(2).differentiable_loss(model, pair, X)
    assert px.ELBO(2, estimator="score").differentiable_loss(model, pair, X).isfinite()


# ---------------------------------------------------------------------- whole guides


@pytest.mark.parametrize("seed", range(3))
def test_both_modes_are_found(seed: int) -> None:
    """Modes at -2 and 2, with shares of 0.3 and 0.7; ``stl`` has no noise there."""
    share, places = torch.tensor([0.3, 0.7]), torch.tensor([-2.0, 2.0])
    target = MixtureSameFamily(Categorical(share), Normal(places, torch.tensor([0.5, 0.8])))

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 3.0))
        pyro.factor("x", target.log_prob(z) - dist.Normal(0.0, 3.0).log_prob(z))

    guide = px.AutoJoint(model, family=FAMILY)

    def adam(params: Any) -> torch.optim.Adam:
        return torch.optim.Adam(params, lr=0.05)

    loss = px.ELBO(4, estimator="stl")
    px.fit(model, guide, loss, optim=adam, num_steps=500, seed=seed, progress=False)
    logits, loc, scale = normals(next(iter(guide.parameters())).detach())
    order = loc.argsort()
    found = torch.stack([torch.softmax(logits, -1), loc, scale])[:, order]
    wanted = torch.stack([share, places, torch.tensor([0.5, 0.8])])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)


def test_mixtures_of_both_groups_train() -> None:
    pair = Pair("both")
    guide = px.AutoPerDatapoint(
        pair.model, family=Mixture(px.FullCovariance()), global_family=FAMILY
    )
    for loss in (px.ELBO(2, estimator="stl"), px.IWAE(4, num_outer=2)):
        guide.zero_grad() if guide.prototype_trace else None
        loss.loss_and_grads(pair.model, guide, X)
        assert all((p.grad != 0).all() for p in guide.parameters())


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("loss", "kind", "match"),
    [
        (px.ELBO(3), "local", r"num_particles to be a multiple of 2.*'z'; got 3.*ELBO\(num_p.*=4"),
        (px.ELBO(), "global", r"multiple of 2.*'mu'; got 1. Write: px.ELBO\(num_particles=2\)"),
        (px.IWAE(3), "local", r"num_particles .*'z'; got 3. Write: px.IWAE\(num_particles=4\)"),
        (px.IWAE(4), "both", r"num_outer .*'mu'; got 1. Write: px.IWAE\(num_outer=2\)"),
        (px.Annealed(px.ELBO(3), 0.5), "local", r"Write: px.ELBO\(num_particles=4\)"),
        (px.PIWAE(2, 3), "local", r"Write: px.PIWAE\(num_particles=4\)"),
        (px.IWAE(4, estimator="dreg"), "local", r"'z' is a mixture.*estimator='reparam'"),
        (px.CUBO(4, estimator="dreg"), "global", r"'mu' is a mixture.*estimator='reparam'"),
        (px.PIWAE(2, 4, estimator="dreg"), "local", r"'z' is a mixture.*estimator='reparam'"),
        (px.JackknifeIWAE(3), "local", r"'z' is a mixture.*px.IWAE\(num_particles=4\)"),
        (px.IWAE(4, joint=True), "local", r"guide site 'z'.*Write: joint=False"),
        (px.CUBO(4, joint=True), "both", r"guide site 'z'.*Write: joint=False"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_out_is_an_error(loss: Any, kind: str, match: str) -> None:
    pair = Pair(kind)
    with pytest.raises(ValueError, match=match):
        loss.differentiable_loss(pair.model, pair, X)


def test_a_mixture_inside_another_distribution_is_an_error() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(2, 1), 1.0).to_event(2))

    def guide() -> None:
        q = FAMILY.distribution(torch.zeros(2, FAMILY.num_params(1)), 1)
        pyro.sample("z", q.to_event(1))

    with pytest.raises(ValueError, match=r"guide site 'z': expected the mixture itself.*poutine"):
        px.ELBO(2).differentiable_loss(model, guide)
