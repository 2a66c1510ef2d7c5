import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from guides.radon import HouseEncoder
from models import radon


@pytest.fixture
def houses() -> radon.Houses:
    return radon.data(num_counties=6)


def dense(houses: radon.Houses, sigma: float, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p(y | σ, τ), and the mean of the slope of the floor, from a dense covariance."""
    y, x = houses.y[houses.mask], houses.x[houses.mask]
    county = houses.mask.nonzero()[:, 0]
    linear = torch.stack([torch.ones_like(y), houses.u[county], x], -1)
    same = (county[:, None] == county).double()
    covariance = 4 * linear @ linear.T + tau**2 * same + sigma**2 * torch.eye(len(y))
    log_p = dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)
    return log_p, 4 * x @ torch.linalg.solve(covariance, y)


def test_data() -> None:
    houses = radon.data()
    assert houses.y.shape == houses.x.shape == houses.mask.shape == (85, 116)
    assert int(houses.mask.sum()) == 919
    assert float(houses.y[0, 0]) == pytest.approx(math.log(2.2))
    assert set(houses.x[houses.mask].tolist()) == {0.0, 1.0}
    assert (houses.y[~houses.mask] == 0).all()


@pytest.mark.parametrize(("sigma", "tau"), [(0.7, 0.3), (1.2, 0.05)])
def test_given_the_scales(houses: radon.Houses, sigma: float, tau: float) -> None:
    log_p, mean, _ = radon._given_scales(houses, torch.tensor([sigma]), torch.tensor([tau]))
    expected, floor = dense(houses, sigma, tau)
    torch.testing.assert_close(log_p[0], expected)
    torch.testing.assert_close(mean[0, 2], floor)


def test_the_grid_is_fine_enough_and_wide_enough() -> None:
    houses = radon.data()
    coarse, fine = (radon.exact_posterior(houses, num_points=num) for num in (30, 45))
    assert coarse.log_evidence == pytest.approx(fine.log_evidence, abs=1e-3)
    for name, mean in fine.mean.items():
        torch.testing.assert_close(coarse.mean[name], mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(coarse.sd[name], fine.sd[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("centred", [False, True])
def test_log_joint_by_hand(houses: radon.Houses, *, centred: bool) -> None:

    model = partial(radon.model, centred=centred)
    sigma, tau = 0.8, 0.4
    values = {"sigma": torch.tensor(sigma), "tau": torch.tensor(tau)}
    slopes = torch.randn(3)
    values |= dict(zip(("intercept", "uranium", "floor"), slopes, strict=True))
    eta = torch.randn(6)
    a = slopes[0] + slopes[1] * houses.u + tau * eta
    values |= {"a": a} if centred else {"eta": eta}
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*houses)
    y, x = houses.y[houses.mask], houses.x[houses.mask]
    county = houses.mask.nonzero()[:, 0]
    likelihood = dist.Normal(a[county] + slopes[2] * x, sigma).log_prob(y).sum()
    prior = dist.Normal(0.0, 2.0).log_prob(slopes).sum()
    prior = prior + dist.HalfNormal(1.0).log_prob(torch.tensor([sigma, tau])).sum()
    local = dist.Normal(0.0, 1.0).log_prob(eta).sum() - (6 * math.log(tau) if centred else 0)
    torch.testing.assert_close(trace.log_prob_sum(), likelihood + prior + local)


def test_the_encoder_does_not_look_at_padding(houses: radon.Houses) -> None:
    encoder = HouseEncoder()
    filled = houses._replace(y=houses.y.masked_fill(~houses.mask, 1e6))
    torch.testing.assert_close(encoder(*filled), encoder(*houses))
