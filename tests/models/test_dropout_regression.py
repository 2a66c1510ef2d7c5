import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from helpers import assert_mean
from models import dropout_regression as dropout

KEEPS = pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])


@pytest.fixture
def data() -> dropout.Data:
    return dropout.data()


@KEEPS
def test_dropout_is_a_penalty_for_any_weights(data: dropout.Data, keep: float) -> None:
    for w in torch.randn(5, 10):
        torch.testing.assert_close(
            dropout.dropout_loss(*data, w, keep=keep), dropout.penalized_loss(*data, w, keep=keep)
        )


@KEEPS
def test_expectation_over_all_masks_of_a_row(keep: float) -> None:
    x, y, w = torch.randn(1, 4), torch.randn(1), torch.randn(4)
    masks = torch.cartesian_prod(*4 * [torch.tensor([0.0, 1.0])])
    weights = dist.Bernoulli(keep).log_prob(masks).sum(-1).exp()
    exact = (weights * (y - (masks * x) @ w).square()).sum()
    torch.testing.assert_close(dropout.penalized_loss(x, y, w, keep=keep), exact)


@KEEPS
def test_masks_are_drawn_with_that_probability(data: dropout.Data, keep: float) -> None:
    x, y = data.x[:50], data.y[:50]
    w = torch.randn(10)
    drawn = dropout.dropout_loss_by_masks(x, y, w, keep=keep, num_masks=5000)
    assert_mean(drawn, dropout.penalized_loss(x, y, w, keep=keep))


@KEEPS
def test_the_solution_is_the_minimum(data: dropout.Data, keep: float) -> None:
    w = dropout.dropout_solution(*data, keep=keep).requires_grad_()
    loss = dropout.dropout_loss(*data, w, keep=keep)
    (gradient,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(gradient, torch.zeros(10), rtol=0, atol=1e-8)


@KEEPS
def test_the_posterior_is_that_of_the_model(data: dropout.Data, keep: float) -> None:
    """log p(w, y) - log p(w | y) is the same at every w: the evidence."""
    x, y = data
    mean, covariance = dropout.posterior(x, y, keep=keep, sigma=0.6)
    exact = dist.MultivariateNormal(mean, covariance)
    model = partial(dropout.model, keep=keep, sigma=0.6)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.sample("w", exact)

    (term,) = px.log_weights(model, guide, x, y, num_particles=7, joint=True).terms
    torch.testing.assert_close(term.log_w, term.log_w[:1].expand(7), rtol=0, atol=1e-8)
    scale = 0.6 / ((1 - keep) / keep * x.square().sum(0)).sqrt()
    covariance = (x * scale**2) @ x.T + 0.36 * torch.eye(len(y))
    marginal = dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)
    torch.testing.assert_close(term.log_w[0], marginal)


def test_data_are_centred_in_units_of_their_own(data: dropout.Data) -> None:
    torch.testing.assert_close(data.x.mean(0), torch.zeros(10), rtol=0, atol=1e-10)
    sd = data.x.std(0, correction=0)
    assert float(sd.min()) == pytest.approx(0.25)
    assert float(sd.max()) == pytest.approx(2.0)
    assert float(data.y.var(correction=0)) == pytest.approx(1.0)
    assert math.isfinite(float(data.y.sum()))


@pytest.mark.parametrize("keep", [0.0, 1.0, 1.5])
def test_impossible_probability(data: dropout.Data, keep: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0 < keep < 1; got .* Write: keep=0.5"):
        dropout.posterior(*data, keep=keep)
