"""Adversarial losses of models that take one draw at a time."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from one_draw import MODELS, SLOWER, X, Y, guide_of, regression, unbatched, with_auxiliary
from torch import Tensor
from weight_pairs import close

import pyro_ext as px
from helpers import assert_mean
from pyro_ext._checks import Pair
from pyro_ext.ratio.latents import Draws, Elements

pytestmark = pytest.mark.filterwarnings("ignore:The model .* takes one draw at a time")


def elements(model: Any, guide: Any) -> tuple[Elements, Pair]:
    pair = Pair(model, guide, (X, Y), {})
    return Elements(pair, joint=True), pair


def likelihood(draws: Draws) -> Tensor:
    """The log likelihood of the regression at the draws."""
    return dist.Normal(draws.z[:, 0, -3:] @ X.mT, 0.5).log_prob(Y).sum(-1)


@pytest.mark.parametrize("make", MODELS)
def test_draws_of_the_guide_are_those_of_the_model_for_many(make: Any) -> None:
    found = []
    guide = guide_of(make(many=True))
    for many in (True, False):
        of, pair = elements(make(many=many), guide)
        torch.manual_seed(3)
        found.append(of.from_guide(pair, 7))
    expected, got = found
    for name in ("z", "log_likelihood", "log_prior"):
        close(getattr(got, name), getattr(expected, name))


@pytest.mark.parametrize("dream", [True, False])
def test_draws_of_the_model_are_of_its_prior(dream: bool) -> None:  # noqa: FBT001
    of, pair = elements(regression(many=False), guide_of(regression(many=True)))
    torch.manual_seed(0)
    draws = of.from_model(pair, 2000, dream=dream)
    z = draws.z[:, 0]
    close(draws.log_prior, dist.Normal(0.0, 1.0).log_prob(z).sum(-1))
    assert_mean(z, torch.zeros(3))
    assert_mean(z**2, torch.ones(3))
    if dream:
        entropy = dist.Normal(0.0, 0.5).entropy() * len(Y)
        assert_mean(draws.log_likelihood[:, None], -entropy.reshape(1))
    else:
        close(draws.log_likelihood, likelihood(draws))


def test_a_guide_that_takes_one_draw_too() -> None:
    of, pair = elements(with_auxiliary(regression(many=False)), unbatched)
    draws = of.from_guide(pair, 6)
    a, w = draws.z[:, 0].split([1, 3], -1)
    assert w.std(0).min() > 0
    close(draws.log_likelihood, likelihood(draws))
    close(draws.log_prior, dist.Normal(0.0, 1.0).log_prob(torch.cat([a, w], -1)).sum(-1))


def test_a_fit_is_that_of_the_model_for_many_draws() -> None:
    losses = []
    for many in (True, False):
        pyro.set_rng_seed(0)
        guide = px.AutoJoint(regression(many=True), family=px.Implicit(noise_dim=3))
        loss = px.Adversarial(8, contrast="adaptive", warmup=5, num_moments=16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = px.fit(regression(many=many), guide, loss, data=(X, Y), num_steps=10, seed=0)
        losses.append(torch.as_tensor(run.losses))
    close(losses[1], losses[0])


@pytest.mark.filterwarnings("default:The model .* takes one draw at a time")
def test_it_is_said() -> None:
    with pytest.warns(UserWarning, match=SLOWER):
        elements(regression(many=False), guide_of(regression(many=True)))
