import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from guides.binary_latents import BernoulliGuide
from helpers import assert_mean
from models.binary_latents import BinaryLatents, data


@pytest.fixture
def model() -> BinaryLatents:
    return BinaryLatents()


def test_log_joint_is_that_of_the_model(model: BinaryLatents) -> None:
    x, z = data(5, model=model), torch.bernoulli(torch.full((5, 3), 0.5))
    trace = pyro.poutine.trace(pyro.poutine.condition(model, {"z": z})).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), model.log_joint(x, z).sum())


def test_evidence_by_hand(model: BinaryLatents) -> None:
    x = data(2, model=model)
    for row, found in zip(x, model.log_evidence_per_datum(x), strict=True):
        total = 0.0
        for states in itertools.product([0.0, 1.0], repeat=3):
            z = torch.tensor(states)
            prior = dist.Bernoulli(model.rho).log_prob(z).sum()
            total += (prior + dist.Normal(model.weight @ z, 1.0).log_prob(row).sum()).exp()
        torch.testing.assert_close(found, torch.as_tensor(total).log())


def test_elbo_from_draws(model: BinaryLatents) -> None:
    x = data(4, model=model)
    guide = BernoulliGuide(model, 4)
    torch.nn.init.normal_(guide.logits)
    (term,) = px.log_weights(model, guide, x, num_particles=20_000).terms
    assert_mean(term.log_w.detach(), model.elbo_per_datum(x, guide.logits).detach())


def test_elbo_of_the_posterior_is_the_evidence() -> None:
    model = BinaryLatents(num_latents=1)
    x = data(4, model=model)
    joint = model.log_joint(x.unsqueeze(1), model.configurations())
    elbo = model.elbo_per_datum(x, (joint[:, 1:] - joint[:, :1]))
    torch.testing.assert_close(elbo, model.log_evidence_per_datum(x))


def test_data_have_the_moments_of_the_model(model: BinaryLatents) -> None:
    x = data(50_000, model=model)
    assert_mean(x, model.weight.sum(1) * model.rho)
    spread = model.rho * (1 - model.rho) * model.weight.square().sum(1) + 1
    assert_mean((x - model.weight.sum(1) * model.rho) ** 2, spread)
