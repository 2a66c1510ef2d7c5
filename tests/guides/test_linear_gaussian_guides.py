from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyro_ext as px
from guides.linear_gaussian import GUIDES, LinearGuide
from models.linear_gaussian import LinearGaussian, data

LOSSES = {
    "elbo-stl": lambda k: px.ELBO(num_particles=k, estimator="stl"),
    "iwae-dreg": lambda k: px.IWAE(num_particles=k, estimator="dreg"),
    "iwae-stl": lambda k: px.IWAE(num_particles=k, estimator="stl"),
}


@pytest.fixture
def model() -> LinearGaussian:
    return LinearGaussian.random(num_features=5, latent_dim=3, sigma=0.6)


@pytest.fixture
def x(model: LinearGaussian) -> Tensor:
    return data(40, model=model)


def fit(model: LinearGaussian, guide, x: Tensor) -> None:
    loss = px.ELBO(num_particles=16, estimator="stl")
    for lr, num_steps in [(0.05, 150), (0.005, 100), (0.0005, 50)]:
        optim = partial(torch.optim.Adam, lr=lr)
        px.fit(model, guide, loss, x, optim, num_steps=num_steps, seed=0, progress=False)


def marginal(guide, x: Tensor, num: int = 20_000) -> tuple[Tensor, Tensor]:
    """Mean and covariance of q(z_i | x_i), each from draws."""
    with torch.no_grad():
        z = guide.sample_posterior(num, x)["z"]
    residual = z - z.mean(0)
    return z.mean(0), torch.einsum("kia,kib->iab", residual, residual) / (num - 1)


def test_names() -> None:
    assert list(GUIDES) == [
        "per-datapoint-mean-field",
        "amortized-mean-field",
        "amortized-full-covariance",
    ]


@pytest.mark.parametrize("particles", [1, 7])
def test_exact_guide_gives_the_evidence_by_every_bound(
    model: LinearGaussian, x: Tensor, particles: int
) -> None:
    guide = LinearGuide.exact(model)
    (term,) = px.log_weights(model, guide, x, num_particles=particles).terms
    expected = model.log_evidence_per_datum(x)
    assert term.log_w.shape == (particles, len(x))
    for bound in (px.bounds.elbo, px.bounds.iwae):
        torch.testing.assert_close(bound(term.log_w), expected, rtol=0, atol=1e-10)
    for make in LOSSES.values():
        loss = make(particles).loss(model, guide, x)
        assert loss == pytest.approx(-model.log_evidence(x).item(), abs=1e-9)
    assert Trace_ELBO().loss(model, guide, x) == pytest.approx(
        -model.log_evidence(x).item(), abs=1e-9
    )


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("name", LOSSES)
def test_path_gradient_vanishes_at_the_exact_guide(
    model: LinearGaussian, x: Tensor, name: str, particles: int
) -> None:
    guide = LinearGuide.exact(model)
    LOSSES[name](particles).loss_and_grads(model, guide, x)
    for parameter in guide.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-10)


def test_plain_gradient_does_not(model: LinearGaussian, x: Tensor) -> None:
    guide = LinearGuide.exact(model)
    px.ELBO(estimator="reparam").loss_and_grads(model, guide, x)
    assert all(parameter.grad.norm() > 0.1 for parameter in guide.parameters())


def test_hand_written_guide_trains_in_svi(model: LinearGaussian, x: Tensor) -> None:
    guide = LinearGuide(torch.zeros(3, 5), torch.zeros(3), torch.eye(3))
    svi = SVI(
        model, guide, pyro.optim.Adam({"lr": 0.05}), px.ELBO(num_particles=8, estimator="stl")
    )
    for _ in range(300):
        svi.step(x)
    exact = LinearGuide.exact(model)
    torch.testing.assert_close(guide.slope, exact.slope, rtol=0, atol=0.02)
    torch.testing.assert_close(guide.scale_tril, exact.scale_tril, rtol=0, atol=0.02)


def test_guide_draws_the_sites_of_the_model(model: LinearGaussian, x: Tensor) -> None:
    trace = poutine.trace(LinearGuide.exact(model)).get_trace(x)
    assert trace.nodes["z"]["value"].shape == (len(x), 3)
    assert [f.name for f in trace.nodes["z"]["cond_indep_stack"]] == ["data"]


def test_amortized_full_covariance_recovers_the_posterior(
    model: LinearGaussian, x: Tensor
) -> None:
    guide = GUIDES["amortized-full-covariance"](model)
    fit(model, guide, x)
    (term,) = px.log_weights(model, guide, x, num_particles=200).terms
    evidence = model.log_evidence_per_datum(x).expand(200, -1)
    torch.testing.assert_close(term.log_w.detach(), evidence, rtol=0, atol=0.05)
    mean, covariance = marginal(guide, x)
    exact = model.posterior(x)
    # five standard errors of the draws: 0.5 / sqrt(20 000) each
    torch.testing.assert_close(mean, exact.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(covariance, exact.covariance.expand(40, 3, 3), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["per-datapoint-mean-field", "amortized-mean-field"])
def test_mean_field_is_under_dispersed_as_known(
    model: LinearGaussian, x: Tensor, name: str
) -> None:
    guide = GUIDES[name](model)
    fit(model, guide, x)
    mean, covariance = marginal(guide, x)
    exact = model.mean_field(x)
    torch.testing.assert_close(mean, exact.mean, rtol=0, atol=0.05)
    variance = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(variance.mean(0), exact.variance, rtol=0, atol=0.02)
    assert (variance.mean(0) < 0.9 * model.posterior(x).covariance.diagonal()).any()
    (term,) = px.log_weights(model, guide, x, num_particles=5000).terms
    gap = (model.log_evidence_per_datum(x) - px.bounds.elbo(term.log_w)).mean().item()
    assert gap == pytest.approx(model.mean_field_gap().item(), abs=0.02)
