import math
from itertools import pairwise

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import HalfCauchy, Normal

from helpers import assert_mean
from models import eight_schools

MODELS = {
    "non-centred": (eight_schools.model, "eta"),
    "centred": (eight_schools.centred_model, "theta"),
}


def log_joint(model, latents: dict[str, Tensor], num: int) -> Tensor:
    """log p(latents, y) for rows of latents; a particle plate left of the schools."""
    values = {k: v.reshape(num, -1) for k, v in latents.items()}
    with pyro.plate("particles", num, dim=-2):
        trace = poutine.trace(poutine.condition(model, values)).get_trace(*eight_schools.data())
    trace.compute_log_prob()
    return sum(
        site["log_prob"].sum(-1)
        for site in trace.nodes.values()
        if site["type"] == "sample" and "log_prob" in site
    )


@pytest.fixture(scope="module")
def exact() -> eight_schools.ExactPosterior:
    return eight_schools.exact_posterior(*eight_schools.data())


@pytest.mark.parametrize(("scales", "published"), [((5, 5), -31.3114), ((50, 25), -33.6865)])
def test_log_evidence(scales: tuple[float, float], published: float) -> None:
    mu_scale, tau_scale = scales
    sigma, y = eight_schools.data()
    got = eight_schools.exact_posterior(sigma, y, mu_scale=mu_scale, tau_scale=tau_scale)
    assert got.log_evidence == pytest.approx(published, abs=1e-4)

    def integrand(tau: float) -> float:
        covariance = (sigma**2 + tau**2).diag() + mu_scale**2
        log_marginal = stats.multivariate_normal(None, covariance.numpy()).logpdf(y.numpy())
        return math.exp(log_marginal + 31) * stats.halfcauchy(scale=tau_scale).pdf(tau)

    ends = [0, 1, 5, 20, 100, 1000, math.inf]
    parts = [integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in pairwise(ends)]
    assert got.log_evidence == pytest.approx(math.log(sum(parts)) - 31, abs=1e-10)


def test_moments_are_the_reference_ones(exact: eight_schools.ExactPosterior) -> None:
    mean = {
        "mu": [4.3968],
        "tau": [3.5977],
        "theta": [6.2119, 4.9402, 3.9270, 4.7571, 3.6155, 4.0426, 6.2967, 4.8543],
    }
    for name, expected in mean.items():
        got = exact.mean[name].reshape(-1)
        torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=1e-4)
    assert exact.sd["mu"].item() == pytest.approx(3.3177, abs=1e-4)
    assert exact.sd["tau"].item() == pytest.approx(3.2200, abs=1e-4)


def test_moments_equal_a_dense_grid_over_mu_and_tau(
    exact: eight_schools.ExactPosterior,
) -> None:
    sigma, y = eight_schools.data()
    t = torch.linspace(-25, 9, 1501)[:, None, None]
    mu = torch.linspace(-35, 45, 401)[:, None]
    spread = (sigma**2 + t.exp() ** 2).sqrt()
    log_p = Normal(mu, spread).log_prob(y).sum(-1) + Normal(0.0, 5.0).log_prob(mu[:, 0])
    weight = (log_p + (HalfCauchy(5.0).log_prob(t.exp()) + t)[..., 0]).flatten().softmax(0)
    precision = 1 / sigma**2 + t.exp() ** -2
    theta = (y / sigma**2 + mu / t.exp() ** 2) / precision
    theta_variance = (1 / precision).expand(theta.shape)
    eta = (theta - mu) / t.exp()
    grids = {
        "mu": (mu[:, 0].expand(1501, -1), 0 * log_p),
        "log_tau": (t[..., 0].expand(log_p.shape), 0 * log_p),
        "theta": (theta, theta_variance),
        "eta": (eta, theta_variance / t.exp() ** 2),
    }
    for name, (mean, variance) in grids.items():
        first = weight @ mean.flatten(0, 1)
        second = weight @ (mean**2 + variance).flatten(0, 1)
        torch.testing.assert_close(exact.mean[name], first, rtol=0, atol=1e-5)
        torch.testing.assert_close(exact.sd[name], (second - first**2).sqrt(), rtol=0, atol=1e-5)


def test_samples_have_the_exact_moments(exact: eight_schools.ExactPosterior) -> None:
    samples = eight_schools.exact_samples(50_000, *eight_schools.data())
    assert {k: v.shape[1:] for k, v in samples.items()} == {
        "mu": (),
        "tau": (),
        "eta": (8,),
        "theta": (8,),
    }
    for name, draws in samples.items():
        # finds a bias of 0.03 posterior standard deviations
        assert_mean(draws, exact.mean[name])
        assert_mean((draws - exact.mean[name]) ** 2, exact.sd[name] ** 2)
    assert_mean(samples["tau"].log(), exact.mean["log_tau"])


def test_samples_are_seeded() -> None:
    first, second, other = (
        eight_schools.exact_samples(5, *eight_schools.data(), seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first["mu"], second["mu"])
    assert not torch.equal(first["mu"], other["mu"])


def test_log_density_by_hand() -> None:
    sigma, y = eight_schools.data()
    mu, tau, theta = torch.randn(3, 1), torch.rand(3, 1) + 0.1, torch.randn(3, 8)
    priors = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(tau)
    expected = priors[:, 0] + (
        Normal(mu, tau).log_prob(theta) + Normal(theta, sigma).log_prob(y)
    ).sum(-1)
    got = log_joint(eight_schools.centred_model, {"mu": mu, "tau": tau, "theta": theta}, 3)
    torch.testing.assert_close(got, expected)


def test_parametrisations_differ_by_the_jacobian() -> None:
    mu, tau, eta = torch.randn(3, 1), torch.rand(3, 1) + 0.1, torch.randn(3, 8)
    centred = {"mu": mu, "tau": tau, "theta": mu + tau * eta}
    torch.testing.assert_close(
        log_joint(eight_schools.model, {"mu": mu, "tau": tau, "eta": eta}, 3),
        log_joint(eight_schools.centred_model, centred, 3) + 8 * tau[:, 0].log(),
    )


@pytest.mark.parametrize("name", MODELS)
def test_sites_and_shapes(name: str) -> None:
    model, local = MODELS[name]
    trace = poutine.trace(model).get_trace(*eight_schools.data())
    latents = {n: trace.nodes[n]["value"].shape for n in trace.stochastic_nodes}
    assert {n: shape for n, shape in latents.items() if n != "school"} == {
        "mu": (),
        "tau": (),
        local: (8,),
    }
    assert trace.nodes["theta"]["value"].shape == (8,)
    assert [f.name for f in trace.nodes["y"]["cond_indep_stack"]] == ["school"]


@pytest.mark.parametrize("name", MODELS)
def test_predicts_without_effects(name: str) -> None:
    sigma, _ = eight_schools.data()
    draws = Predictive(MODELS[name][0], num_samples=3)(sigma)
    assert draws["y"].shape == (3, 8)


def test_data_has_the_dtype_asked_for() -> None:
    assert eight_schools.data().y.dtype == torch.get_default_dtype()
    sigma, y = eight_schools.data(dtype=torch.float32)
    assert sigma.dtype == y.dtype == torch.float32
    exact = eight_schools.exact_posterior(sigma, y)
    assert exact.mean["theta"].dtype == torch.float64
    assert eight_schools.model(sigma, y).dtype == torch.float32
