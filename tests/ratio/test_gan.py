"""Generator losses for a normal generator and normal data: all expectations by quadrature."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pyro_ext import ratio as pr

NODES, WEIGHTS = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(150))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
DATA = Normal(torch.tensor(0.4), torch.tensor(0.8))


def generator(theta):
    return Normal(theta[0], theta[1].exp())


def logits_of_best_critic(x, theta):
    """Log p_data / p_gen, of a critic that stays still."""
    return DATA.log_prob(x) - generator(theta.detach()).log_prob(x)


def weighted(logits):
    """Logits for which the mean of a function e^logit is its expectation by quadrature."""
    return logits + (WEIGHTS * len(WEIGHTS)).log()


@pytest.mark.parametrize("theta", [(0.0, 0.3), (0.9, 0.0), (0.4, math.log(0.8))])
@pytest.mark.parametrize("way", ["path", "score"])
def test_maximum_likelihood_has_the_gradient_of_the_likelihood(theta, way):
    theta = torch.tensor(theta).requires_grad_()
    loc, scale = theta[0].detach(), theta[1].detach().exp()
    x = generator(theta).loc + generator(theta).scale * NODES
    if way == "score":
        x = x.detach()
    logits = weighted(logits_of_best_critic(x, theta))
    log_prob = generator(theta).log_prob(x) if way == "score" else None
    (gradient,) = torch.autograd.grad(pr.maximum_likelihood(logits, log_prob), theta)
    gap = DATA.mean - loc
    exact = torch.stack([gap / scale**2, (DATA.variance + gap**2) / scale**2 - 1])
    torch.testing.assert_close(gradient, -exact, atol=1e-8, rtol=1e-8)


def test_the_score_form_has_the_value_of_the_path_form_and_stops_the_ratio():
    logits = torch.randn(9).requires_grad_()
    log_prob = torch.randn(9).requires_grad_()
    value = pr.maximum_likelihood(logits, log_prob)
    torch.testing.assert_close(value, pr.maximum_likelihood(logits))
    of_logits, of_log_prob = torch.autograd.grad(value, (logits, log_prob), allow_unused=True)
    assert of_logits is None
    torch.testing.assert_close(of_log_prob, -logits.detach().exp() / 9)


def test_ratio_of_the_best_critic():
    d = torch.tensor([0.1, 0.5, 0.9])
    logits = d.logit()
    torch.testing.assert_close(pr.maximum_likelihood(logits), -(d / (1 - d)).mean())
    torch.testing.assert_close(pr.minimax(logits), (1 - d).log().mean())
    torch.testing.assert_close(pr.non_saturating(logits), -d.log().mean())


def test_gradient_at_a_sure_critic():
    logits = torch.tensor([-30.0]).requires_grad_()
    (of_minimax,) = torch.autograd.grad(pr.minimax(logits), logits)
    (of_other,) = torch.autograd.grad(pr.non_saturating(logits), logits)
    assert -1e-12 < float(of_minimax) < 0
    assert float(of_other) == pytest.approx(-1)


def test_minimax_descends_the_jensen_shannon_divergence():
    """With the best critic, d/dθ of the loss is 2 d JSD/dθ, by differences of the JSD."""
    theta = torch.tensor([0.0, 0.3]).requires_grad_()
    x = generator(theta).loc + generator(theta).scale * NODES
    logits = logits_of_best_critic(x, theta)
    value = -(WEIGHTS * torch.nn.functional.softplus(logits)).sum()
    (gradient,) = torch.autograd.grad(value, theta)
    grid = torch.linspace(-15, 15, 200_001)

    def divergence(loc):
        log_q = Normal(torch.as_tensor(loc), torch.tensor(0.3).exp()).log_prob(grid)
        log_p = DATA.log_prob(grid)
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        both = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
        return float(both.sum()) * 30 / 200_000 / 2

    slope = (divergence(1e-4) - divergence(-1e-4)) / 2e-4
    assert float(gradient[0]) == pytest.approx(2 * slope, abs=1e-6)
