"""Supports that move: with another latent, with the model's arguments, with a parameter."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import pyro_ext as px

X = torch.linspace(0.1, 1.0, 6)

GUIDES: dict[str, Callable[..., Any]] = {
    "AutoJoint": px.AutoJoint,
    "AutoPerDatapoint": px.AutoPerDatapoint,
    "AutoAmortized": lambda model: px.AutoAmortized(model, lambda x: x.unsqueeze(-1)),
    "AutoNormal": pyro_auto.AutoNormal,
    "AutoDiagonalNormal": pyro_auto.AutoDiagonalNormal,
}
EVERY_GUIDE = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES.keys())
MESSAGE = r"Auto\w+: .* site 'z' to keep the support .*; got other bounds.*deterministic\('z'"


def rows(x: Tensor, prior: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def above_a_latent(x: Tensor) -> None:
    low = pyro.sample("low", dist.LogNormal(0.0, 1.0))
    rows(x, dist.Pareto(low, 3.0))


def below_the_data(x: Tensor) -> None:
    rows(x, dist.Uniform(0.0, x.max()))


def flat_below_the_data(x: Tensor) -> None:
    support = constraints.independent(constraints.interval(0.0, x.max().item()), 1)
    mu = pyro.sample("z", dist.ImproperUniform(support, (), (2,)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x)


def below_a_parameter(x: Tensor) -> None:
    high = pyro.param("high", torch.tensor(5.0), constraint=constraints.positive)
    rows(x, dist.Uniform(0.0, high))


def fixed(x: Tensor) -> None:
    rows(x, dist.Uniform(0.0, torch.arange(1.0, 1.0 + len(x))))


@EVERY_GUIDE
@pytest.mark.parametrize("particles", [1, 5])
def test_bounds_by_another_latent_raise(build: Callable[..., Any], particles: int) -> None:
    """Silent otherwise: z keeps to the bounds of the first look, whatever the other latent is."""
    with pytest.raises(ValueError, match=MESSAGE):
        px.ELBO(particles).loss(above_a_latent, build(above_a_latent), X)


@EVERY_GUIDE
def test_bounds_by_the_arguments_raise_where_they_move(build: Callable[..., Any]) -> None:
    guide = build(below_the_data)
    assert px.ELBO(3).loss(below_the_data, guide, X) > 0
    assert px.ELBO(3).loss(below_the_data, guide, X.clone()) > 0
    with pytest.raises(ValueError, match=MESSAGE):
        px.ELBO(3).loss(below_the_data, guide, 2 * X)
    with pytest.raises(ValueError, match=MESSAGE):
        px.evidence(below_the_data, guide, 2 * X, num_particles=10)


def test_bounds_that_are_numbers_raise_where_they_move() -> None:
    guide = px.AutoJoint(flat_below_the_data)
    assert px.ELBO().loss(flat_below_the_data, guide, X) > 0
    with pytest.raises(ValueError, match=MESSAGE):
        px.ELBO().loss(flat_below_the_data, guide, 2 * X)


def test_bounds_by_a_parameter_raise_where_it_moves() -> None:
    guide = px.AutoPerDatapoint(below_a_parameter)
    svi = pyro.infer.SVI(below_a_parameter, guide, pyro.optim.Adam({"lr": 0.01}), px.ELBO())
    svi.step(X)
    with pytest.raises(ValueError, match=MESSAGE):
        svi.step(X)


@pytest.mark.parametrize("auto", [True, False])
def test_a_fit_raises(auto: bool) -> None:  # noqa: FBT001
    def model(x: Tensor) -> None:
        high = pyro.sample("high", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", dist.Uniform(0.0, high))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    options = {} if auto else {"guide": px.AutoJoint(model), "loss": px.ELBO(), "num_steps": 2}
    with pytest.raises(ValueError, match=MESSAGE):
        px.fit(model, data=X, progress=False, **options)


@EVERY_GUIDE
def test_bounds_that_stay_do_not_raise(build: Callable[..., Any]) -> None:
    guide = build(fixed)
    assert all(px.ELBO(n).loss(fixed, guide, X) > 0 for n in (1, 5))


def test_a_messenger_follows_the_bounds() -> None:
    guide = pyro_auto.AutoNormalMessenger(above_a_latent)
    assert px.ELBO(3).loss(above_a_latent, guide, X) > 0


@pytest.mark.parametrize("make", [px.AutoJoint, pyro_auto.AutoNormal])
def test_the_support_of_data_may_change(make):
    def model(total, k):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(total)):
            pyro.sample("k", dist.Binomial(total, p), obs=k)

    guide, total = make(model), torch.arange(1.0, 11.0)
    for rows in (slice(5), slice(5, 10)):
        px.ELBO().loss(model, guide, total[rows], (total[rows] / 2).floor())
