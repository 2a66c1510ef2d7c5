"""Brute force in plain torch, without Pyro's handlers: what the package is tested against."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Gaussian",
    "Hierarchy",
    "ciwae",
    "elbo",
    "expected_bound",
    "expected_elbo",
    "expected_iwae",
    "expected_wake",
    "gauss_hermite",
    "iwae",
    "jackknife",
    "log_normal",
    "parameter",
    "renyi",
]


def log_normal(value: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """Log density of a normal, written out."""
    scale = torch.as_tensor(scale)
    return -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def elbo(log_w: Tensor) -> Tensor:
    """Mean of log weights over dim 0, in a loop."""
    total = log_w[0]
    for row in log_w[1:]:
        total = total + row
    return total / len(log_w)


def iwae(log_w: Tensor) -> Tensor:
    """Log of the mean weight over dim 0, in a loop, in units of the largest."""
    largest = log_w.detach().amax(0)
    total = (log_w[0] - largest).exp()
    for row in log_w[1:]:
        total = total + (row - largest).exp()
    return (total / len(log_w)).log() + largest


def ciwae(log_w: Tensor, beta: float) -> Tensor:
    """Convex combination of the two above."""
    return beta * elbo(log_w) + (1 - beta) * iwae(log_w)


def renyi(log_w: Tensor, alpha: float) -> Tensor:
    """Log of the mean power of the weights, divided by the power."""
    return iwae(log_w * (1 - alpha)) / (1 - alpha)


def jackknife(log_w: Tensor) -> Tensor:
    """The estimate of all weights, and of all but one in turn."""
    count = len(log_w)
    without = [iwae(torch.cat([log_w[:k], log_w[k + 1 :]])) for k in range(count)]
    return count * iwae(log_w) - (count - 1) * elbo(torch.stack(without))


def gauss_hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights, which sum to one, of the standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.tensor(points), torch.tensor(weights / weights.sum())


def expected_elbo(log_w: Callable[[Tensor], Tensor], nodes: int = 40) -> Tensor:
    """E log w(eps) of each element; ``log_w`` maps noise ``(nodes,)`` to ``(nodes, *batch)``."""
    eps, weights = gauss_hermite(nodes)
    return torch.einsum("i,i...->...", weights, log_w(eps))


def expected_iwae(log_w: Callable[[Tensor], Tensor], nodes: int = 100) -> Tensor:
    """E log (w(eps_1) + w(eps_2)) / 2 of each element: the bound with K = 2, by 2-D quadrature."""
    eps, weights = gauss_hermite(nodes)
    rows = log_w(eps)
    pairs = torch.logaddexp(rows[:, None], rows[None]) - math.log(2)
    return torch.einsum("i,j,ij...->...", weights, weights, pairs)


def expected_bound(
    bound: Callable[[Tensor], Tensor], prob: Tensor, log_w: Tensor, particles: int = 2
) -> Tensor:
    """E bound(log w_1, .., log w_K) of each element, over all K-tuples of what a draw can be.

    Args:
        bound: A bound, of log weights ``(K, *batch)``.
        prob: Probability of each outcome, a quadrature weight or that of a discrete value, shape
            ``(outcomes, *batch)``, or ``(outcomes, 1)``.
        log_w: Log weight of each, shape ``(outcomes, *batch)``.
        particles: Number K.
    """
    outcomes = range(len(log_w))
    tuples = torch.cartesian_prod(*[torch.tensor(outcomes)] * particles).reshape(-1, particles).T
    joint_prob = prob[tuples].prod(0)
    return (joint_prob * bound(log_w[tuples])).sum(0)


def expected_wake(log_q: Tensor, log_w: Tensor, particles: int = 2) -> Tensor:
    """E of the self-normalized log q, by quadrature in the standard normal; only log q flows.

    Args:
        log_q: Log density of the guide at the nodes, whose values do not depend on the guide.
        log_w: Log weights, both of shape ``(nodes, *batch)``.
        particles: Number K.
    """
    _, weights = gauss_hermite(len(log_w))
    nodes = torch.tensor(range(len(log_w)))
    tuples = torch.cartesian_prod(*[nodes] * particles).reshape(-1, particles).T
    shares = torch.softmax(log_w.detach()[tuples], 0)
    return torch.einsum("i,i...->...", weights[tuples].prod(0), (shares * log_q[tuples]).sum(0))


def parameter(value: float) -> Tensor:
    """A scalar leaf that a module can hold."""
    return nn.Parameter(torch.tensor(value))


@dataclass(frozen=True)
class Gaussian:
    """z ~ N(prior, 1), x ~ N(slope z, noise), q(z | x) = N(shift + gain x, exp(log_sd)).

    The guide is far from the posterior, so that a wrong estimator is far from the right gradient.
    """

    prior: Tensor = field(default_factory=lambda: parameter(0.3))
    slope: Tensor = field(default_factory=lambda: parameter(1.2))
    shift: Tensor = field(default_factory=lambda: parameter(-0.4))
    gain: Tensor = field(default_factory=lambda: parameter(0.2))
    log_sd: Tensor = field(default_factory=lambda: parameter(0.1))
    noise: float = 0.8

    @property
    def model_params(self) -> tuple[Tensor, ...]:
        return self.prior, self.slope

    @property
    def guide_params(self) -> tuple[Tensor, ...]:
        return self.shift, self.gain, self.log_sd

    @property
    def params(self) -> tuple[Tensor, ...]:
        return self.model_params + self.guide_params

    def log_p(self, z: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        likelihood = log_normal(x, self.slope * z, self.noise)
        if mask is not None:
            likelihood = torch.where(mask, likelihood, torch.zeros(()))
        return log_normal(z, self.prior, 1.0) + likelihood

    def log_q(self, z: Tensor, x: Tensor) -> Tensor:
        return log_normal(z, self.shift + self.gain * x, self.log_sd.exp())

    def log_w(self, eps: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log weights of noise ``(nodes,)`` for data ``(n,)``, shape ``(nodes, n)``."""
        z = self.shift + self.gain * x + self.log_sd.exp() * eps[:, None]
        return self.log_p(z, x, mask) - self.log_q(z, x)

    def log_evidence(self, x: Tensor) -> Tensor:
        sd = (self.slope**2 + self.noise**2).sqrt()
        return log_normal(x, self.slope * self.prior, sd).sum()


@dataclass(frozen=True)
class Hierarchy:
    """mu ~ N(0, 1), z_i ~ N(level + mu, 1), x_i ~ N(z_i, noise).

    The guide is q(mu) = N(loc, exp(log_sd)), q(z | mu, x) = N(gain x + pull mu, exp(local)): its
    local latents depend on the global one.
    """

    level: Tensor = field(default_factory=lambda: parameter(0.2))
    loc: Tensor = field(default_factory=lambda: parameter(0.2))
    log_sd: Tensor = field(default_factory=lambda: parameter(-0.1))
    gain: Tensor = field(default_factory=lambda: parameter(0.3))
    pull: Tensor = field(default_factory=lambda: parameter(0.9))
    local: Tensor = field(default_factory=lambda: parameter(0.1))
    noise: float = 0.7

    @property
    def params(self) -> tuple[Tensor, ...]:
        return self.level, self.loc, self.log_sd, self.gain, self.pull, self.local

    def global_log_w(self, mu: Tensor) -> Tensor:
        return log_normal(mu, 0.0, 1.0) - log_normal(mu, self.loc, self.log_sd.exp())

    def local_log_w(self, mu: Tensor, z: Tensor, x: Tensor) -> Tensor:
        log_p = log_normal(z, self.level + mu, 1.0) + log_normal(x, z, self.noise)
        return log_p - log_normal(z, self.gain * x + self.pull * mu, self.local.exp())

    def expected_bound(
        self, x: Tensor, inner: Callable[[Callable[[Tensor], Tensor]], Tensor], nodes: int = 30
    ) -> Tensor:
        """E over mu of the global log weight plus the sum of local bounds, by quadrature."""
        eps, weights = gauss_hermite(nodes)
        mu = self.loc + self.log_sd.exp() * eps

        def local(noise: Tensor) -> Tensor:
            centre = self.gain * x + self.pull * mu[:, None]
            z = centre + self.local.exp() * noise[:, None, None]
            return self.local_log_w(mu[:, None], z, x)

        return weights @ (self.global_log_w(mu) + inner(local).sum(-1))
