import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from helpers import assert_mean
from models.linear_gaussian import LinearGaussian, data


@pytest.fixture
def model() -> LinearGaussian:
    return LinearGaussian.random(num_features=6, latent_dim=3, sigma=0.4)


@pytest.fixture
def x(model: LinearGaussian) -> Tensor:
    return data(5, model=model)


def dense(model: LinearGaussian) -> Tensor:
    return model.weight @ model.weight.T + model.sigma**2 * torch.eye(model.num_features)


def test_evidence_is_the_dense_normal(model: LinearGaussian, x: Tensor) -> None:
    expected = MultivariateNormal(model.bias, dense(model)).log_prob(x)
    torch.testing.assert_close(model.log_evidence_per_datum(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.log_evidence(x), expected.sum(), rtol=0, atol=1e-10)


def test_posterior_is_dense_conditioning(model: LinearGaussian, x: Tensor) -> None:
    gain = model.weight.T @ torch.linalg.inv(dense(model))
    mean, covariance = model.posterior(x)
    torch.testing.assert_close(mean, (x - model.bias) @ gain.T)
    torch.testing.assert_close(covariance, torch.eye(3) - gain @ model.weight)


def test_joint_over_posterior_is_the_evidence(model: LinearGaussian, x: Tensor) -> None:
    z = torch.randn(7, 5, 3)
    with pyro.plate("particles", 7, dim=-2):
        trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    log_joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    log_posterior = MultivariateNormal(*model.posterior(x)).log_prob(z)
    expected = model.log_evidence_per_datum(x).expand(7, 5)
    torch.testing.assert_close(log_joint - log_posterior, expected, rtol=0, atol=1e-10)


def test_mean_field_gap_is_its_divergence(model: LinearGaussian, x: Tensor) -> None:
    mean, variance = model.mean_field(x)
    divergence = kl_divergence(
        MultivariateNormal(mean, variance.diag()), MultivariateNormal(*model.posterior(x))
    )
    torch.testing.assert_close(divergence, model.mean_field_gap().expand(5))
    assert model.mean_field_gap() > 0.05


def test_mean_field_is_the_best_one(model: LinearGaussian, x: Tensor) -> None:
    mean, variance = model.mean_field(x)
    loc = mean.clone().requires_grad_()
    log_scale = (0.5 * variance.log()).expand(5, 3).clone().requires_grad_()
    q = MultivariateNormal(loc, torch.diag_embed((2 * log_scale).exp()))
    divergence = kl_divergence(q, MultivariateNormal(*model.posterior(x))).sum()
    for gradient in torch.autograd.grad(divergence, (loc, log_scale)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_mean_field_variances_are_too_small(model: LinearGaussian, x: Tensor) -> None:
    assert (model.mean_field(x).variance < model.posterior(x).covariance.diagonal()).all()


def test_data_has_the_moments_of_the_model(model: LinearGaussian) -> None:
    draws = data(20_000, model=model)
    assert_mean(draws, model.bias)
    residual = draws - model.bias
    assert_mean(residual[:, :, None] * residual[:, None, :], dense(model))


def test_data_is_seeded_and_leaves_the_global_generator_alone(model: LinearGaussian) -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(data(3, model=model), data(3, model=model))
    assert not torch.equal(data(3, model=model), data(3, model=model, seed=2))
    assert torch.equal(LinearGaussian.random().weight, LinearGaussian.random().weight)
    assert torch.equal(before, torch.random.get_rng_state())
    assert data(3).shape == (3, 8)


def test_fixed_model_has_no_parameters(model: LinearGaussian) -> None:
    assert not list(model.parameters())


def test_trainable_model_round_trips_and_agrees_with_the_fixed_one(
    model: LinearGaussian, x: Tensor
) -> None:
    trainable = LinearGaussian.random(6, 3, sigma=0.4, trainable=True)
    torch.testing.assert_close(trainable.log_evidence(x), model.log_evidence(x))
    other = LinearGaussian.random(6, 3, sigma=0.9, trainable=True, seed=3)
    other.load_state_dict(trainable.state_dict())
    torch.testing.assert_close(other.log_evidence(x), model.log_evidence(x))


def test_evidence_has_gradients_of_every_parameter(x: Tensor) -> None:
    trainable = LinearGaussian.random(6, 3, sigma=0.4, trainable=True)
    trainable.log_evidence(x).backward()
    gradients = {n: p.grad.norm() for n, p in trainable.named_parameters()}
    assert set(gradients) == {"weight", "bias", "sigma_unconstrained"}
    assert all(gradient > 0 for gradient in gradients.values())


def test_two_models_trained_in_one_process_share_nothing(x: Tensor) -> None:
    first, second = (LinearGaussian.random(6, 3, trainable=True, seed=s) for s in (0, 1))
    before = second.weight.detach().clone()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 1.0).to_event(1))

    start = first.weight.detach().clone()
    SVI(first, guide, Adam({"lr": 0.1}), Trace_ELBO()).step(x)
    second(x)
    assert not torch.equal(first.weight, start)
    assert torch.equal(second.weight, before)


def test_noise_is_a_standard_deviation() -> None:
    model = LinearGaussian(torch.zeros(1, 1), sigma=2.0)
    expected = Normal(0.0, 2.0).log_prob(torch.zeros(1))
    torch.testing.assert_close(model.log_evidence_per_datum(torch.zeros(1, 1)), expected)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(3),), {}, r"weight of shape \(num_features, latent_dim\), got \(3,\)"),
        ((torch.zeros(3, 2), torch.zeros(2)), {}, r"bias of shape \(3,\), got \(2,\)"),
        ((torch.zeros(3, 2),), {"sigma": 0.0}, r"sigma > 0, got 0.0"),
    ],
)
def test_wrong_shapes_are_named(arguments, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearGaussian(*arguments, **options)
