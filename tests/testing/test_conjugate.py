"""The closed forms against brute force: quadrature, and dense multivariate normals."""

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal, Poisson

from pyro_ext.testing import (
    ConjugateModel,
    GammaPoisson,
    LinearRegression,
    NormalGlobal,
    NormalHierarchy,
    NormalLocal,
)

NUM = 6
MASK = torch.tensor([True, False, True, True, False, True])

MODELS: dict[str, Callable[[], ConjugateModel]] = {
    "local": lambda: NormalLocal.simulate(NUM, scale=0.7),
    "global": lambda: NormalGlobal.simulate(NUM, scale=0.7, prior_scale=1.5),
    "hierarchy": lambda: NormalHierarchy.simulate(
        NUM, scale=0.7, local_scale=0.4, prior_scale=1.5
    ),
    "gamma-poisson-local": lambda: GammaPoisson.simulate(NUM, local=True),
    "gamma-poisson-global": lambda: GammaPoisson.simulate(NUM, local=False),
    "regression": lambda: LinearRegression.simulate(NUM, scale=0.7),
}


def masked(exact: ConjugateModel) -> ConjugateModel:
    fields = {**vars(exact), "mask": MASK}
    return type(exact)(**fields)


@pytest.fixture(params=MODELS)
def exact(request: pytest.FixtureRequest) -> ConjugateModel:
    return MODELS[request.param]()


@pytest.fixture(params=[False, True], ids=["all", "masked"])
def maybe_masked(request: pytest.FixtureRequest, exact: ConjugateModel) -> ConjugateModel:
    return masked(exact) if request.param else exact


def trace_log_prob(exact: ConjugateModel, **kwargs: Tensor) -> tuple[Tensor, Tensor]:
    guide = poutine.trace(exact.guide).get_trace(*exact.args, **kwargs)
    model = poutine.trace(poutine.replay(exact.model, trace=guide)).get_trace(
        *exact.args, **kwargs
    )
    return model.log_prob_sum(), guide.log_prob_sum()


@pytest.mark.parametrize("seed", range(3))
def test_weight_of_the_exact_posterior_is_the_evidence(
    maybe_masked: ConjugateModel, seed: int
) -> None:
    pyro.set_rng_seed(seed)
    log_p, log_q = trace_log_prob(maybe_masked)
    torch.testing.assert_close(log_p - log_q, maybe_masked.log_evidence(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("particles", [1, 7])
def test_model_and_guide_broadcast_over_particles(
    maybe_masked: ConjugateModel, particles: int
) -> None:
    with pyro.plate("particles", particles, dim=-2):
        log_p, log_q = trace_log_prob(maybe_masked)
    expected = particles * maybe_masked.log_evidence()
    torch.testing.assert_close(log_p - log_q, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["local", "gamma-poisson-local"])
def test_local_evidence_is_the_sum_over_data(name: str) -> None:
    exact = MODELS[name]()
    per_datum = exact.log_evidence_per_datum()
    assert per_datum.shape == (NUM,)
    torch.testing.assert_close(per_datum.sum(), exact.log_evidence())
    torch.testing.assert_close(masked(exact).log_evidence_per_datum(), per_datum * MASK)


@pytest.mark.parametrize("name", ["local", "gamma-poisson-local"])
@pytest.mark.parametrize("by", ["indices", "size", "rows"])
def test_subsampling_scales_the_evidence_of_the_batch(name: str, by: str) -> None:
    exact = MODELS[name]()
    rows = torch.tensor([4, 1, 2])
    if by == "indices":
        log_p, log_q = trace_log_prob(exact, subsample=rows)
        scale = NUM / 3
    elif by == "rows":
        exact, scale = type(exact)(**{**vars(exact), "x": exact.x[rows]}), 1.0
        log_p, log_q = trace_log_prob(exact)
        rows = torch.arange(3)
    else:
        exact = type(exact)(**{**vars(exact), "subsample_size": 2})
        guide = poutine.trace(exact.guide).get_trace(*exact.args)
        model = poutine.trace(poutine.replay(exact.model, trace=guide)).get_trace(*exact.args)
        rows, scale = guide.nodes["data"]["value"], NUM / 2
        assert torch.equal(model.nodes["data"]["value"], rows)
        log_p, log_q = model.log_prob_sum(), guide.log_prob_sum()
    expected = scale * exact.log_evidence_per_datum()[rows].sum()
    torch.testing.assert_close(log_p - log_q, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kept", [slice(None), MASK], ids=["all", "masked"])
class TestBruteForce:
    def test_normal_local(self, kept: slice | Tensor) -> None:
        exact = self._model("local", kept)
        z = torch.linspace(-12, 12, 4001)[:, None]
        likelihood = Normal(z, 0.7).log_prob(exact.x) * self._weight(kept)
        log_joint = Normal(0.0, 1.0).log_prob(z) + likelihood
        self._check_quadrature(exact, log_joint, z)

    def test_gamma_poisson_local(self, kept: slice | Tensor) -> None:
        exact = self._model("gamma-poisson-local", kept)
        t = torch.linspace(-25, 6, 4001)[:, None]
        likelihood = Poisson(t.exp()).log_prob(exact.x) * self._weight(kept)
        prior = Gamma(torch.tensor(3.0), torch.tensor(2.0)).log_prob(t.exp()) + t
        self._check_quadrature(exact, prior + likelihood, t, t.exp())

    def test_gamma_poisson_global(self, kept: slice | Tensor) -> None:
        exact = self._model("gamma-poisson-global", kept)
        t = torch.linspace(-25, 6, 4001)
        likelihood = Poisson(t.exp()[:, None]).log_prob(exact.x) * self._weight(kept)
        prior = Gamma(torch.tensor(3.0), torch.tensor(2.0)).log_prob(t.exp()) + t
        self._check_quadrature(exact, prior + likelihood.sum(-1), t, t.exp())

    def test_normal_global(self, kept: slice | Tensor) -> None:
        exact = self._model("global", kept)
        x = exact.x[kept]
        self._check_normal(
            exact, x, torch.full((1, 1), 1.5**2), torch.ones(len(x), 1), 0.7**2 * torch.eye(len(x))
        )

    def test_normal_hierarchy(self, kept: slice | Tensor) -> None:
        exact = self._model("hierarchy", kept)
        x = exact.x[kept]
        prior = torch.full((NUM + 1, NUM + 1), 1.5**2)
        prior[1:, 1:] += 0.4**2 * torch.eye(NUM)
        design = torch.eye(NUM + 1)[1:][kept]
        self._check_normal(exact, x, prior, design, 0.7**2 * torch.eye(len(x)))

    def test_regression(self, kept: slice | Tensor) -> None:
        exact = self._model("regression", kept)
        y = exact.y[kept]
        noise = 0.7**2 * torch.eye(len(y))
        self._check_normal(exact, y, torch.eye(3), exact.inputs[kept], noise)

    def _model(self, name: str, kept: slice | Tensor) -> ConjugateModel:
        exact = MODELS[name]()
        return masked(exact) if isinstance(kept, Tensor) else exact

    def _weight(self, kept: slice | Tensor) -> Tensor:
        return kept.to(torch.get_default_dtype()) if isinstance(kept, Tensor) else torch.ones(NUM)

    def _check_quadrature(
        self,
        exact: ConjugateModel,
        log_joint: Tensor,
        grid: Tensor,
        latent: Tensor | None = None,
    ) -> None:
        """Trapezoids over an equidistant grid (dim 0) against evidence and moments."""
        latent = grid if latent is None else latent
        step = (grid[1] - grid[0]).log()
        log_evidence = log_joint.logsumexp(0) + step
        weight = log_joint.softmax(0)
        mean = (weight * latent).sum(0)
        variance = (weight * (latent - mean) ** 2).sum(0)
        got = exact.posterior()
        torch.testing.assert_close(exact.log_evidence(), log_evidence.sum(), rtol=0, atol=1e-10)
        torch.testing.assert_close(got.mean, mean[..., None], rtol=0, atol=1e-10)
        torch.testing.assert_close(got.covariance, variance[..., None, None], rtol=0, atol=1e-10)

    def _check_normal(
        self, exact: ConjugateModel, x: Tensor, prior: Tensor, design: Tensor, noise: Tensor
    ) -> None:
        """Dense conditioning of the joint normal of latents and data."""
        marginal = design @ prior @ design.T + noise
        gain = prior @ design.T @ torch.linalg.inv(marginal)
        got = exact.posterior()
        expected = MultivariateNormal(torch.zeros(len(x)), marginal).log_prob(x)
        torch.testing.assert_close(exact.log_evidence(), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(got.mean, gain @ x, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            got.covariance, prior - gain @ design @ prior, rtol=0, atol=1e-10
        )


def test_answers_keep_the_dtype_of_the_data() -> None:
    for build in MODELS.values():
        exact = build()
        half = type(exact)(
            **{k: v.float() if isinstance(v, Tensor) else v for k, v in vars(exact).items()}
        )
        answers = [half.log_evidence(), *half.posterior()]
        assert {a.dtype for a in answers} == {torch.float32}
        torch.testing.assert_close(
            half.log_evidence().double(), exact.log_evidence(), rtol=1e-5, atol=1e-4
        )


def test_simulate_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    for build in MODELS.values():
        first, second = build(), build()
        assert all(torch.equal(a, b) for a, b in zip(first.args, second.args, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


def test_regression_posterior_is_correlated() -> None:
    covariance = LinearRegression.simulate(1000).posterior().covariance
    scale = covariance.diagonal().sqrt()
    correlation = covariance / scale / scale[:, None]
    assert (correlation[[0, 0, 1], [1, 2, 2]] < -0.3).all()


def test_wrong_mask_is_named() -> None:
    with pytest.raises(ValueError, match=r"mask: expected a boolean tensor of shape \(6,\)"):
        NormalLocal(torch.zeros(NUM), mask=MASK[:3])
    with pytest.raises(ValueError, match=r"mask: .* got torch.float64"):
        NormalLocal(torch.zeros(NUM), mask=torch.ones(NUM))


def test_global_rate_has_no_evidence_per_datum() -> None:
    with pytest.raises(ValueError, match="local=True"):
        MODELS["gamma-poisson-global"]().log_evidence_per_datum()


def test_scales_are_standard_deviations() -> None:
    exact = NormalLocal(torch.zeros(1), scale=2.0)
    assert math.isclose(
        exact.log_evidence().item(), Normal(0.0, 5**0.5).log_prob(torch.tensor(0.0)).item()
    )
