"""Discrete latents: score-function gradients against the exact sum over configurations.

The reference enumerates every K-tuple of what a draw can be. A reparameterized site beside a
discrete one is a quadrature node more. The guides are far from the
posterior.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from cases import bound_of
from losses.discrete_cases import (
    CASES,
    FEW,
    MANY,
    ROWS,
    SCORE,
    Coin,
    Die,
    check,
    draws_of,
    enumerated,
    exact_gradient,
    log_bernoulli,
)
from pyro import poutine
from reference import log_normal
from torch import Tensor, nn

import pyro_ext as px
from helpers import assert_mean

FEW_ENOUGH = [
    (kind, name) for kind in CASES for name in SCORE if name != "IWAE(3)" or "normal" not in kind
]
"""Beside quadrature nodes, three particles have too many configurations to enumerate."""


@pytest.mark.parametrize(("kind", "name"), FEW_ENOUGH)
def test_gradient_is_the_enumerated_one(kind: str, name: str) -> None:
    """Finds a score that is missing, a baseline that sees its own draw, a path that is cut."""
    case, loss = CASES[kind](), SCORE[name]
    check(draws_of(loss, case, MANY, rows=ROWS), enumerated(loss, case), case)


def test_wake_sleep_is_its_enumerated_gradient() -> None:
    """Its draws are never differentiated: discrete sites need nothing special."""
    case, loss = Coin(), px.WakeSleep(2)
    prob, log_w = case.outcomes(FEW)
    tuples = torch.cartesian_prod(torch.arange(2), torch.arange(2)).T
    shares = torch.softmax(log_w.detach()[tuples], 0)
    log_q = prob.log()[tuples]
    wake = (prob.detach()[tuples].prod(0) * (shares * log_q).sum(0)).sum()
    exact = enumerated(px.IWAE(2), case)
    exact[2:] = -100 * torch.autograd.grad(wake, case.phi)[0]
    check(draws_of(loss, case, MANY, rows=ROWS), exact, case)


# ---------------------------------------------------------------------- plates


@pytest.mark.parametrize("name", ["ELBO", "IWAE"])
def test_mini_batches_are_scaled(name: str) -> None:
    case, loss = Coin(), SCORE[name]
    found = []
    for _ in range(ROWS):
        rows = torch.randperm(len(MANY))[:60]
        with px.MiniBatch("data", len(MANY), rows, sliced=True):
            found.append(draws_of(loss, case, MANY[rows], rows=1)[0])
    check(torch.stack(found), enumerated(loss, case), case)


class GlobalCoin(nn.Module):
    """A global coin over two data plates, each with coins of its own: x of one, y of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3, 1.1]))
        self.phi = nn.Parameter(torch.tensor([-0.4, 0.6, 0.9]))

    def model(self, x: Tensor, y: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=self.theta[0]))
        for name, data in (("x", x), ("y", y)):
            with pyro.plate(f"plate_{name}", len(data)):
                b = pyro.sample(f"b_{name}", dist.Bernoulli(logits=self.theta[1] * g - 0.5))
                pyro.sample(name, dist.Normal(b + g, 1.0), obs=data)

    def forward(self, x: Tensor, y: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=self.phi[0]))
        for name, data in (("x", x), ("y", y)):
            with pyro.plate(f"plate_{name}", len(data)):
                logits = self.phi[1] * data + self.phi[2] * g
                pyro.sample(f"b_{name}", dist.Bernoulli(logits=logits))

    def bound(self, loss: Any, x: Tensor, y: Tensor) -> Tensor:
        """E over g of its log weight and of the local bounds inside it."""
        b = torch.tensor([0.0, 1.0])[:, None]
        total = torch.zeros(())
        for g in (torch.tensor(0.0), torch.tensor(1.0)):
            log_q = log_bernoulli(g, self.phi[0])
            inside = log_bernoulli(g, self.theta[0]) - log_q
            for data in (x, y):
                local_q = log_bernoulli(b, self.phi[1] * data + self.phi[2] * g)
                prior = log_bernoulli(b, self.theta[1] * g - 0.5)
                log_w = prior + log_normal(data, b + g, 1.0) - local_q
                inner = loss.particles.inner
                local = reference.expected_bound(bound_of(loss), local_q.exp(), log_w, inner)
                inside = inside + local.sum()
            total = total + log_q.exp() * inside
        return total


@pytest.mark.parametrize(
    "loss",
    [
        px.ELBO(400, estimator="score"),
        px.IWAE(2, estimator="vimco", num_outer=400),
        px.MIWAE(400, 1, estimator="vimco"),
        px.CIWAE(2, estimator="vimco", num_outer=400),
        px.Renyi(3, estimator="vimco", num_outer=400),
    ],
    ids=repr,
)
def test_a_global_discrete_latent_is_charged_with_both_plates(loss: Any) -> None:
    case, y = GlobalCoin(), torch.tensor([0.4, 2.1])
    exact = exact_gradient(case.bound(loss, FEW, y), case)
    check(draws_of(loss, case, FEW, y, rows=ROWS), exact, case)


@pytest.mark.parametrize(
    "loss", [px.ELBO(1, estimator="score"), px.IWAE(2, estimator="vimco")], ids=repr
)
def test_a_single_draw_of_a_global_discrete_latent(loss: Any) -> None:
    """No baseline for it: unbiased all the same."""
    case, y = GlobalCoin(), torch.tensor([0.4, 2.1])
    exact = exact_gradient(case.bound(loss, FEW, y), case)
    check(draws_of(loss, case, FEW, y, rows=400), exact, case)


class GlobalNormal(nn.Module):
    """A continuous global latent, on which the coins of the data depend in model and guide."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3, 1.1]))
        self.phi = nn.Parameter(torch.tensor([-0.4, 0.6, 0.9]))

    def model(self, x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.theta[0], 1.0))
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=mu))
            pyro.sample("x", dist.Normal(self.theta[1] * b + mu, 1.0), obs=x)

    def forward(self, x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.phi[0], 0.7))
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=self.phi[1] * x + self.phi[2] * mu))

    def bound(self, loss: Any, x: Tensor) -> Tensor:
        eps, weights = reference.gauss_hermite(40)
        mu = (self.phi[0] + 0.7 * eps)[:, None]
        b = torch.tensor([0.0, 1.0])[:, None, None]
        log_q = log_bernoulli(b, self.phi[1] * x + self.phi[2] * mu)
        log_p = log_bernoulli(b, mu) + log_normal(x, self.theta[1] * b + mu, 1.0)
        local = reference.expected_bound(
            bound_of(loss), log_q.exp(), log_p - log_q, loss.particles.inner
        )
        shared = log_normal(mu, self.theta[0], 1.0) - log_normal(mu, self.phi[0], 0.7)
        return weights @ (shared[:, 0] + local.sum(-1))


@pytest.mark.parametrize(
    "loss",
    [
        px.ELBO(400, estimator="score"),
        px.IWAE(2, estimator="vimco", num_outer=400),
        px.Renyi(2, alpha=2.0, estimator="vimco", num_outer=400),
    ],
    ids=repr,
)
def test_discrete_local_latents_with_a_continuous_global(loss: Any) -> None:
    case = GlobalNormal()
    exact = exact_gradient(case.bound(loss, FEW), case)
    check(draws_of(loss, case, FEW, rows=ROWS), exact, case)


# ---------------------------------------------------------------------- baselines


def test_without_its_baseline_vimco_is_unbiased_and_noisier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, loss = Coin(), px.IWAE(5, estimator="vimco")
    with_baseline = draws_of(loss, case, MANY, rows=ROWS)[:, 2:]

    def signal(log_w: Tensor, bound: Any, *, several_outer: bool) -> Tensor:
        return bound(log_w).expand(log_w.shape)

    monkeypatch.setattr("pyro_ext.losses.score._signal", signal)
    without = draws_of(loss, case, MANY, rows=ROWS)[:, 2:]
    exact = enumerated(loss, case)[2:]
    assert_mean(with_baseline, exact)
    assert_mean(without, exact)
    assert (without.var(0) > 3 * with_baseline.var(0)).all()


def test_a_baseline_that_sees_its_own_draw_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of all weights instead of the others': shrinks the gradient."""
    case, loss = Coin(), px.IWAE(2, estimator="vimco")

    def signal(log_w: Tensor, bound: Any, *, several_outer: bool) -> Tensor:
        return bound(log_w) - torch.stack([bound(log_w[k : k + 1]) for k in range(2)]).mean(0)

    monkeypatch.setattr("pyro_ext.losses.score._signal", signal)
    draws = draws_of(loss, case, MANY, rows=ROWS)
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws[:, 2:], enumerated(loss, case)[2:])


@pytest.mark.parametrize("particles", [2, 4])
def test_particles_without_mass(particles: int) -> None:
    """The model rules out tails: value finite if one particle is heads, and so is the gradient."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.factor("heads", torch.where(b > 0, 0.0, -torch.inf))

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logits", torch.tensor(0.5))))

    loss = px.IWAE(particles, estimator="vimco")
    values = []
    for _ in range(40):
        values.append(loss.loss_and_grads(model, guide))
        grad = pyro.param("logits").grad
        # Neither is finite where no particle is heads.
        assert grad.isfinite() == math.isfinite(values[-1])
        pyro.param("logits").grad = None
    assert len({round(value, 6) for value in values if math.isfinite(value)}) > 1


@pytest.mark.parametrize(
    "loss",
    [px.PIWAE(2, 2), px.PIWAE(2, 2, estimator="dreg"), px.CUBO(2), px.JackknifeIWAE(2)],
    ids=repr,
)
def test_integer_valued_sites_raise_as_others_do(loss: Any) -> None:
    """They cannot be leaves of a graph; the message is about the estimator all the same."""
    case = Die()
    message = r"got site 'c', Categorical, which is not\. Write: px\.ELBO\(estimator='score'\)"
    with pytest.raises(ValueError, match=message):
        loss.loss_and_grads(case.model, case, FEW)
    assert math.isfinite(loss.loss(case.model, case, FEW))


# ---------------------------------------------------------------------- Pyro's own


def test_pyros_renyi_elbo_has_no_gradient_where_ours_is_the_enumerated_one() -> None:
    """``RenyiELBO(alpha=0)`` is the same bound: its guide gradient is exactly zero."""
    case = Coin()
    pyros = pyro.infer.RenyiELBO(
        alpha=0.0, num_particles=2, max_plate_nesting=1, vectorize_particles=True
    )
    for _ in range(5):
        pyros.loss_and_grads(case.model, case, FEW)
    assert case.phi.grad is None or torch.equal(case.phi.grad, torch.zeros(2))
    loss = px.IWAE(2, estimator="vimco")
    exact = enumerated(loss, case)
    assert (exact[2:].abs() > 1).all()
    check(draws_of(loss, case, MANY, rows=ROWS), exact, case)


def test_our_guides_work_under_enumeration() -> None:
    """TraceEnum_ELBO sums the discrete site out: the ELBO of the marginal model, draw for draw."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu + 2 * b, 1.0), obs=x)

    def marginal(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        parts = dist.Normal(torch.stack([mu, mu + 2], -1), 1.0)
        mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), parts)
        with pyro.plate("data", len(x)):
            pyro.sample("x", mixture, obs=x)

    guide = px.AutoJoint(poutine.block(model, hide=["b"]))
    guide.setup(FEW)
    enumerating = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    trace_elbo = pyro.infer.Trace_ELBO(max_plate_nesting=1)
    found = []
    for loss, target in ((enumerating, model), (trace_elbo, marginal)):
        pyro.set_rng_seed(4)
        value = loss.differentiable_loss(target, guide, FEW)
        found.append((value, *torch.autograd.grad(value, list(guide.parameters()))))
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), enumerating)
    before = [p.detach().clone() for p in guide.parameters()]
    svi.step(FEW)
    for old, new in zip(before, guide.parameters(), strict=True):
        assert not torch.equal(old, new)
