"""Models with discrete latents whose draws can be enumerated, and their exact gradients."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import reference
import torch
from cases import bound_of
from reference import log_normal
from torch import Tensor, nn

import pyro_ext as px
from helpers import assert_mean

__all__ = [
    "CASES",
    "FEW",
    "MANY",
    "ROWS",
    "SCORE",
    "Coin",
    "Die",
    "check",
    "draws_of",
    "enumerated",
    "exact_gradient",
    "log_bernoulli",
]

FEW = torch.tensor([0.7, -1.2, 1.9])
MANY = FEW.repeat(100)
ROWS = 80
SCORE: dict[str, Any] = {
    "ELBO": px.ELBO(2, estimator="score"),
    "ELBO(1)": px.ELBO(1, estimator="score"),
    "IWAE": px.IWAE(2, estimator="vimco"),
    "IWAE(1)": px.IWAE(1, estimator="vimco"),
    "IWAE(3)": px.IWAE(3, estimator="vimco"),
    "MIWAE": px.MIWAE(3, 2, estimator="vimco"),
    "MIWAE(1)": px.MIWAE(1, 2, estimator="vimco"),
    "CIWAE": px.CIWAE(2, beta=0.3, estimator="vimco"),
    "Renyi(-1)": px.Renyi(2, alpha=-1.0, estimator="vimco"),
    "Renyi": px.Renyi(2, alpha=0.5, estimator="vimco"),
    "Renyi(2)": px.Renyi(2, alpha=2.0, estimator="vimco"),
    "Annealed": px.Annealed(
        px.ELBO(2, estimator="score"), px.LinearSchedule(1.0, 1.0, num_steps=1)
    ),
}


def log_bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    return value * logits - nn.functional.softplus(logits)


class Case(nn.Module):
    """A guide (``forward``) with the model and the outcomes of one draw."""

    theta: nn.Parameter
    phi: nn.Parameter

    def __init__(self, theta: list[float], phi: list[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta))
        self.phi = nn.Parameter(torch.tensor(phi))

    def model(self, x: Tensor) -> None:
        raise NotImplementedError

    def outcomes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probability and log weight of what a draw of each element can be."""
        raise NotImplementedError


class Coin(Case):
    """b ~ Bernoulli, x ~ N(theta b, 1)."""

    def __init__(self) -> None:
        super().__init__([0.3, 1.5], [-0.4, 0.6])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=self.theta[0]))
            pyro.sample("x", dist.Normal(self.theta[1] * b, 1.0), obs=x)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=self.phi[0] + self.phi[1] * x))

    def outcomes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b = torch.tensor([0.0, 1.0])[:, None]
        log_q = log_bernoulli(b, self.phi[0] + self.phi[1] * x)
        log_p = log_bernoulli(b, self.theta[0]) + log_normal(x, self.theta[1] * b, 1.0)
        return log_q.exp(), log_p - log_q


class Die(Case):
    """c ~ Categorical over three means."""

    def __init__(self) -> None:
        super().__init__([-1.0, 0.2, 1.5], [0.3, -0.2, 0.5])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(self.theta[c], 1.0), obs=x)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=self.phi * x[:, None]))

    def outcomes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_q = torch.log_softmax(self.phi * x[:, None], -1).T
        log_p = log_normal(x, self.theta[:, None], 1.0) - torch.tensor(3.0).log()
        return log_q.exp(), log_p - log_q


class CoinThenNormal(Case):
    """b ~ Bernoulli, z ~ N(theta b, 1), x ~ N(z, 0.8); q(b) q(z | b)."""

    def __init__(self) -> None:
        super().__init__([0.3, 1.5], [-0.4, 0.6, 0.3, 0.8])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=self.theta[0]))
            z = pyro.sample("z", dist.Normal(self.theta[1] * b, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=self.phi[0] + self.phi[1] * x))
            pyro.sample("z", dist.Normal(self.phi[2] * x + self.phi[3] * b, 0.9))

    def outcomes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eps, weights = reference.gauss_hermite(30)
        b = torch.tensor([0.0, 1.0])[:, None, None]
        z = self.phi[2] * x + self.phi[3] * b + 0.9 * eps[:, None]
        log_b = log_bernoulli(b, self.phi[0] + self.phi[1] * x)
        log_q = log_b + log_normal(z, self.phi[2] * x + self.phi[3] * b, 0.9)
        prior = log_bernoulli(b, self.theta[0]) + log_normal(z, self.theta[1] * b, 1.0)
        log_w = prior + log_normal(x, z, 0.8) - log_q
        prob = log_b.exp() * weights[:, None]
        return prob.flatten(0, 1), log_w.flatten(0, 1)


class NormalThenCoin(Case):
    """z ~ N(theta, 1), b ~ Bernoulli(z), x ~ N(z + 2 b, 0.8): q(z) q(b | z)."""

    def __init__(self) -> None:
        super().__init__([0.3, 0.7], [-0.4, 0.6, 0.3])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.theta[0], 1.0))
            b = pyro.sample("b", dist.Bernoulli(logits=self.theta[1] * z))
            pyro.sample("x", dist.Normal(z + 2 * b, 0.8), obs=x)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.phi[0] + self.phi[1] * x, 0.9))
            pyro.sample("b", dist.Bernoulli(logits=self.phi[2] * z))

    def outcomes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eps, weights = reference.gauss_hermite(30)
        b = torch.tensor([0.0, 1.0])[:, None, None]
        z = self.phi[0] + self.phi[1] * x + 0.9 * eps[:, None]
        log_b = log_bernoulli(b, self.phi[2] * z)
        log_q = log_b + log_normal(z, self.phi[0] + self.phi[1] * x, 0.9)
        prior = log_normal(z, self.theta[0], 1.0) + log_bernoulli(b, self.theta[1] * z)
        log_w = prior + log_normal(x, z + 2 * b, 0.8) - log_q
        prob = log_b.exp() * weights[:, None]
        return prob.flatten(0, 1), log_w.flatten(0, 1)


CASES: dict[str, Callable[[], Case]] = {
    "coin": Coin,
    "die": Die,
    "coin then normal": CoinThenNormal,
    "normal then coin": NormalThenCoin,
}


def draws_of(loss: Any, case: Any, *args: Tensor, rows: int) -> Tensor:
    """Independent gradients of the loss by theta and phi, shape ``(rows, params)``."""
    found = []
    for _ in range(rows):
        value = loss.differentiable_loss(case.model, case, *args)
        found.append(torch.cat(torch.autograd.grad(value, [case.theta, case.phi])))
    return torch.stack(found)


def exact_gradient(bound: Tensor, case: Any) -> Tensor:
    return -torch.cat(torch.autograd.grad(bound, [case.theta, case.phi]))


def enumerated(loss: Any, case: Case) -> Tensor:
    prob, log_w = case.outcomes(FEW)
    bound = reference.expected_bound(bound_of(loss), prob, log_w, loss.particles.inner)
    return len(MANY) // len(FEW) * exact_gradient(bound.sum(), case)


def check(draws: Tensor, exact: Tensor, case: Any) -> None:
    """Model and guide apart."""
    for part in (slice(0, len(case.theta)), slice(len(case.theta), None)):
        assert_mean(draws[:, part], exact[part])
