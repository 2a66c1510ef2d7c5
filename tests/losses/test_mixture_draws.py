"""Mixture guides in every loss against brute force: the particles shared out among components.

The draws of a loss are recorded, and its value and gradient computed again from them in plain
torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from losses.mixture_pairs import KINDS, NOISE, Pair, X, bound_of, log_q, normals, response
from reference import log_normal
from torch import Tensor

import pyro_ext as px
from pyro_ext._strata import Stratified
from pyro_ext.families.mixture import MixtureDistribution


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


# ---------------------------------------------------------------------- independent draws


def test_public_weights_are_independent_draws(record: Record) -> None:
    pair = Pair("local")
    log_w = px.log_weights(pair.model, pair, X, num_particles=4)
    assert not record.chosen
    assert all(term.log_strata is None for term in log_w.terms)
    assert not log_w.guide_trace.nodes["z"]["fn"].has_rsample


def test_plates_that_change_are_looked_at_again(record: Record) -> None:
    pair, loss = Pair("global"), px.ELBO(2)
    loss.differentiable_loss(pair.model, pair, X)
    for kind in ("local", "both", "local"):
        pair.kind = kind
        record.chosen.clear()
        record.drawn.clear()
        value = loss.differentiable_loss(pair.model, pair, X)
        torch.testing.assert_close(value, -brute_force(loss, pair, record))
