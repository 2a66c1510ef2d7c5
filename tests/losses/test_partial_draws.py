"""Guide sites whose gradient is not that of their path alone: rejection, factors, masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from cases import LOSSES, bound_of
from losses.discrete_cases import (
    FEW,
    MANY,
    ROWS,
    SCORE,
    Coin,
    check,
    draws_of,
    enumerated,
    log_bernoulli,
)
from losses.pairs import every_loss
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionGamma, ShapeAugmentedGamma
from torch import Tensor

import pyro_ext as px
from helpers import assert_mean

NUM = 200
PRIOR = 0.5


class Exponential(dist.Rejector):
    """Proposals of another rate; how many are rejected depends on the parameter."""

    support = dist.constraints.positive

    def __init__(self, rate: Tensor) -> None:
        proposed = rate.sqrt()
        super().__init__(
            dist.Exponential(proposed), lambda z: (proposed - rate) * z, (proposed / rate).log()
        )


def latent(fn: Any) -> None:
    with pyro.plate("data", NUM):
        pyro.sample("z", fn)


def prior() -> None:
    latent(dist.Exponential(PRIOR))


def gradients(loss: Any, model: Any, guide: Callable[[Tensor], None], rows: int = 60) -> Tensor:
    """Independent draws of the gradient by one parameter, of each element."""
    rate = torch.tensor(2.0, requires_grad=True)
    draws = [
        torch.autograd.grad(loss.differentiable_loss(model, lambda: guide(rate)), rate)[0]
        for _ in range(rows)
    ]
    return torch.stack(draws) / NUM


def exact(loss: Any) -> Tensor:
    """By quadrature over the uniform numbers that exponential draws are made of."""
    points, weights = map(torch.tensor, np.polynomial.legendre.leggauss(120))
    rate = torch.tensor(2.0, requires_grad=True)
    z = -torch.log((1 - points) / 2) / rate
    log_w = dist.Exponential(PRIOR).log_prob(z) - dist.Exponential(rate).log_prob(z)
    bound = reference.expected_bound(
        bound_of(loss), weights[:, None] / 2, log_w[:, None], loss.particles.inner
    )
    return torch.autograd.grad(-bound.sum(), rate)[0]


# ---------------------------------------------------------------------- rejection


WRAPPED: dict[str, Callable[[Tensor], Any]] = {
    "number": Exponential,
    "vector": lambda rate: Exponential(rate.expand(NUM)),
    "event": lambda rate: Exponential(rate.expand(NUM, 1)).to_event(1),
    "transform": lambda rate: dist.TransformedDistribution(
        Exponential(2 * rate), dist.transforms.AffineTransform(0.0, 2.0)
    ),
    "mask": lambda rate: Exponential(rate.expand(NUM)).mask(torch.ones(NUM, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_rejected_proposals_count(name: str) -> None:
    """Path and entropy alone are off: each draw is accepted with a probability that moves, too."""
    loss = px.ELBO(2, estimator="score")
    event = name == "event"

    def model() -> None:
        flat = dist.Exponential(PRIOR)
        latent(flat.expand((1,)).to_event(1) if event else flat)

    draws = gradients(loss, model, lambda rate: latent(WRAPPED[name](rate)))
    closed = 1 / 2 - PRIOR / 4  # of KL(Exp(r) || Exp(PRIOR)) at r = 2
    torch.testing.assert_close(exact(loss), torch.tensor(closed), rtol=0, atol=1e-3)
    assert_mean(draws, closed)


@pytest.mark.parametrize(
    "loss",
    [
        px.ELBO(1, estimator="score"),
        px.IWAE(2, estimator="vimco"),
        px.MIWAE(3, 2, estimator="vimco"),
        px.Renyi(2, estimator="vimco"),
    ],
    ids=repr,
)
def test_rejected_proposals_count_in_every_bound(loss: Any) -> None:
    assert_mean(gradients(loss, prior, lambda rate: latent(Exponential(rate)), 200), exact(loss))


@pytest.mark.parametrize(
    "family", [RejectionGamma, pytest.param(ShapeAugmentedGamma, marks=pytest.mark.slow)]
)
def test_gammas_by_rejection(family: Any) -> None:
    def guide(concentration: Tensor) -> None:
        latent(family(concentration.expand(NUM), torch.ones(NUM)))

    loss = px.ELBO(2, estimator="score")
    draws = gradients(loss, lambda: latent(dist.Gamma(5.0, 1.0)), guide, 300)
    assert_mean(draws, (2 - 5) * torch.polygamma(1, torch.tensor(2.0)))


@every_loss
def test_other_estimators_refuse_rejection(name: str) -> None:
    rate = torch.tensor(2.0, requires_grad=True)

    def guide() -> None:
        latent(Exponential(pyro.param("rate", lambda: rate)))

    if name.endswith(("-score", "-vimco", "-wake")):
        LOSSES[name](3).loss_and_grads(prior, guide)
    else:
        message = r"site 'z', Exponential, which is not\. Write: px\.\w+\(estimator="
        with pytest.raises(ValueError, match=message):
            LOSSES[name](3).loss_and_grads(prior, guide)
    assert isinstance(LOSSES[name](3).loss(prior, guide), float)


# ---------------------------------------------------------------------- factors of a guide


class CoinByHand(Coin):
    """The coin is tossed with a uniform number, and a factor has its probability."""

    def forward(self, x: Tensor) -> None:
        logits = self.phi[0] + self.phi[1] * x
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Uniform(0.0, 1.0), infer={"is_auxiliary": True})
            b = (u < logits.sigmoid()).to(u.dtype)
            pyro.factor("q", dist.Bernoulli(logits=logits).log_prob(b), has_rsample=False)
            pyro.sample("b", dist.Delta(b))


@pytest.mark.parametrize("name", SCORE)
def test_factor_of_a_draw_by_hand(name: str) -> None:
    loss, case = SCORE[name], CoinByHand()
    check(draws_of(loss, case, MANY, rows=ROWS), enumerated(loss, case), case)


class CoinByTorch(Coin):
    """The coin is tossed where Pyro does not see it."""

    def forward(self, x: Tensor) -> None:
        logits = self.phi[0] + self.phi[1] * x
        with pyro.plate("data", len(x)):
            b = torch.bernoulli(logits.sigmoid()).detach()
            pyro.factor("q", dist.Bernoulli(logits=logits).log_prob(b), has_rsample=False)
            pyro.sample("b", dist.Delta(b))


def test_factor_of_a_draw_that_pyro_does_not_see() -> None:
    """One particle alone: Pyro's Trace_ELBO leaves the factor itself out of what it weighs by."""
    case, loss = CoinByTorch(), px.ELBO(estimator="score")
    prob, log_w = case.outcomes(FEW)
    exact = torch.cat(torch.autograd.grad(-(prob * log_w).sum(), [case.theta, case.phi]))
    check(draws_of(loss, case, FEW, rows=1000), exact, case)


@pytest.mark.parametrize(
    "loss",
    [
        px.ELBO(2, estimator="score"),
        px.IWAE(2, estimator="vimco"),
        px.MIWAE(2, 1, estimator="vimco"),
    ],
    ids=repr,
)
def test_one_draw_for_all_particles_is_refused(loss: Any) -> None:
    """Its baseline, the other particles, would be itself: a gradient of zero."""
    message = r"guide site 'q': expected .*each particle.*got one.*Write: pyro.sample\('q_"
    with pytest.raises(ValueError, match=message):
        loss.loss_and_grads(case := CoinByTorch().model, CoinByTorch(), FEW)
    assert isinstance(loss.loss(case, CoinByTorch(), FEW), float)


def factored(has_rsample: bool | None) -> Callable[[], None]:  # noqa: FBT001
    def guide() -> None:
        half = pyro.sample(
            "half",
            dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5),
            infer={"is_auxiliary": True},
        )
        pyro.sample("z", dist.Delta(2 * half))
        pyro.factor("jacobian", torch.tensor(-2.0).exp(), has_rsample=has_rsample)

    return guide


def normal() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_factor_says_whether_it_is_of_a_path() -> None:
    message = r"guide site 'jacobian': expected has_rsample.*got none\. Write: pyro\.factor\('jac"
    for loss in (px.ELBO(), px.ELBO(estimator="score"), px.IWAE(3, estimator="dreg")):
        with pytest.raises(ValueError, match=message):
            loss.loss_and_grads(normal, factored(None))
        loss.loss_and_grads(normal, factored(has_rsample=True))
    for loss in (px.ELBO(), px.IWAE(3), px.PIWAE(2, 2)):
        with pytest.raises(ValueError, match=r"site 'jacobian', Unit, which is not"):
            loss.loss_and_grads(normal, factored(has_rsample=False))


# ---------------------------------------------------------------------- masks


class CoinBehindAMask(Coin):
    """Prior and guide of some coins do not count, and they are tossed all the same."""

    shown = torch.tensor([True, False, False])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=self.shown.repeat(len(x) // 3)):
                b = pyro.sample("b", dist.Bernoulli(logits=self.theta[0]))
            pyro.sample("x", dist.Normal(self.theta[1] * b, 1.0), obs=x)

    def forward(self, x: Tensor) -> None:
        with poutine.mask(mask=self.shown.repeat(len(x) // 3)):
            super().forward(x)

    def outcomes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b = torch.tensor([0.0, 1.0])[:, None]
        log_q = log_bernoulli(b, self.phi[0] + self.phi[1] * x)
        prior = (log_bernoulli(b, self.theta[0]) - log_q).where(self.shown, 0.0)
        return log_q.exp(), prior + reference.log_normal(x, self.theta[1] * b, 1.0)


@pytest.mark.parametrize("name", SCORE)
def test_draws_behind_a_mask_move_what_is_shown(name: str) -> None:
    loss, case = SCORE[name], CoinBehindAMask()
    check(draws_of(loss, case, MANY, rows=ROWS), enumerated(loss, case), case)
