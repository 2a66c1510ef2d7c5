"""Rows that a mask hides, with latents of their own: what no datum depends on adds nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_ext as px
from helpers import assert_mean

X = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.0, 3.0])
SHOWN = torch.tensor([True, False, True, True, False, True])


def evidence():
    """log p of the shown data, of a normal mean with a normal prior."""
    x = X[SHOWN]
    covariance = torch.eye(len(x)) + torch.ones(len(x), len(x))
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x)


def masked(x, shown):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=shown)


def ragged(x, shown):
    with pyro.plate("data", len(x)), poutine.mask(mask=shown):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("make", [px.AutoJoint, px.AutoPerDatapoint])
def test_a_bound_stays_below_the_evidence(make):
    guide = make(masked)
    svi = pyro.infer.SVI(masked, guide, pyro.optim.Adam({"lr": 0.05}), px.ELBO(10))
    for _ in range(400):
        svi.step(X, SHOWN)
    bound = torch.tensor([-px.ELBO(100).loss(masked, guide, X, SHOWN) for _ in range(50)])
    assert bound.mean() < evidence() + 4 * bound.std() / 50**0.5
    # Mu depends on all six free values: a mean field is log(11 / 5) / 2 below the evidence.
    assert bound.mean() > evidence() - 0.394 - 0.25


def test_the_exact_answer_has_the_evidence_of_the_rows_that_are_shown():
    def guide(x, shown):
        loc = torch.where(shown, x / 2, 0.0)
        scale = torch.where(shown, 0.5**0.5, 1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    expected = dist.Normal(0.0, 2.0**0.5).log_prob(X[SHOWN]).sum()
    loss = torch.tensor(px.ELBO().loss(ragged, guide, X, SHOWN))
    torch.testing.assert_close(-loss, expected)


def test_masks_on_both_sides_leave_the_hidden_rows_out():
    def guide(x, shown):
        with pyro.plate("data", len(x)), poutine.mask(mask=shown):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    expected = dist.Normal(0.0, 2.0**0.5).log_prob(X[SHOWN]).sum()
    torch.testing.assert_close(torch.tensor(-px.ELBO().loss(ragged, guide, X, SHOWN)), expected)


def test_masks_of_distributions_are_masks():
    def model(x, shown):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).mask(shown))
            pyro.sample("x", dist.Normal(z, 1.0).mask(shown), obs=x)

    def exact(x, shown):
        with pyro.plate("data", len(x)):
            scale = torch.where(shown, 0.5**0.5, 1.0)
            pyro.sample("z", dist.Normal(torch.where(shown, x / 2, 0.0), scale))

    def masked_too(x, shown):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).mask(shown))

    expected = dist.Normal(0.0, 2.0**0.5).log_prob(X[SHOWN]).sum()
    for guide in (exact, masked_too):
        loss = torch.tensor(px.ELBO().loss(model, guide, X, SHOWN))
        torch.testing.assert_close(-loss, expected)


def test_a_flat_prior_stays_flat():
    def model(x):
        with poutine.mask(mask=False):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(x.mean(), len(x) ** -0.5))

    draws = torch.tensor([-px.ELBO().loss(model, guide, X) for _ in range(20)])
    n, rest = len(X), (X - X.mean()).square().sum()
    log_2pi = torch.log(torch.tensor(2 * torch.pi))
    expected = -(n - 1) / 2 * log_2pi - rest / 2 - torch.log(torch.tensor(float(n))) / 2
    torch.testing.assert_close(draws, expected.expand(20))


def test_the_automatic_fit_finds_the_posterior():
    run = px.fit(masked, data=(X, SHOWN), optim="auto", seed=0)
    draws = run.guide.sample_posterior(4000, X, SHOWN)["mu"].flatten()
    assert_mean(draws, X[SHOWN].sum() / (1 + SHOWN.sum()))
