"""Automatic fits: exact targets are hit, wrong answers are not called right."""

import math
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_ext as px
from pyro_ext.testing import LinearRegression
from pyro_ext.training.auto import ascend, search

fit_ = sys.modules["pyro_ext.training.fit"]  # the function has the module's name
auto = partial(px.fit, optim="auto", family="auto", progress=False, seed=0)


def gaussian(precision, mean):
    """Return a model whose posterior is this normal exactly, with a flat prior."""

    def model():
        z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (len(mean),)))
        centred = z - mean
        pyro.factor("f", -0.5 * torch.einsum("...i,ij,...j->...", centred, precision, centred))

    return model


def ill_conditioned(dim):
    """Return a precision with scales from 1e-4 to 1e4 and strong correlations."""
    generator = torch.Generator().manual_seed(dim)
    root = torch.randn((dim, dim), generator=generator)
    scale = torch.logspace(-4, 4, dim)
    return (root @ root.mT + 0.01 * torch.eye(dim)) * scale[:, None] * scale


def regression(x, y):
    beta = pyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (x.shape[1],)))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(beta @ x.mT, sigma.unsqueeze(-1)).to_event(1), obs=y)


def predictors(num=60):
    generator = torch.Generator().manual_seed(3)
    x = torch.cat([torch.ones(num, 1), torch.randn((num, 3), generator=generator)], 1)
    x[:, 3] = 0.999 * x[:, 2] + (1 - 0.999**2) ** 0.5 * x[:, 3]
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0.5]) + 0.5 * torch.randn(num, generator=generator)
    return x, y


# ---------------------------------------------------------------------- exact targets


@pytest.mark.parametrize("dim", [1, 2, 5, 30])
def test_a_gaussian_posterior_is_hit(dim):
    precision = ill_conditioned(dim)
    mean = torch.linspace(-1, 1, dim) / precision.diagonal().sqrt() * 1e3
    run = auto(gaussian(precision, mean), family=px.FullCovariance())
    q = run.guide.groups[0].posterior(run.guide.params)
    root = torch.linalg.cholesky(precision).mT  # whitens: root @ S is orthogonal
    assert (root @ (q.mean - mean)).abs().max() < 1e-6
    whitened = root @ q.covariance_matrix @ root.mT
    torch.testing.assert_close(whitened, torch.eye(dim), rtol=0, atol=1e-6)
    assert run.verdict.grade == "trusted"


def test_mean_field_of_a_gaussian_posterior_is_hit():
    precision = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 1.0]])
    mean = torch.tensor([1.0, -2.0, 3.0])
    run = auto(gaussian(precision, mean), family=px.Diagonal())
    q = run.guide.groups[0].posterior(run.guide.params)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(q.variance, 1 / precision.diagonal(), rtol=1e-6, atol=0)
    assert not run.verdict.raw.passed
    assert run.verdict.grade == "usable with correction"


def test_the_bound_of_a_conjugate_model_is_its_evidence():
    exact = LinearRegression.simulate(30, seed=0)
    run = auto(exact.model, data=exact.args)
    assert run.history[-1].elbo == pytest.approx(exact.log_evidence().item(), abs=1e-6)
    mean, covariance = exact.posterior()
    q = run.guide.groups[0].posterior(run.guide.params)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(q.covariance_matrix, covariance, rtol=1e-5, atol=1e-9)


def test_the_smaller_family_is_kept_where_the_larger_gains_nothing():
    independent = auto(gaussian(torch.eye(3), torch.ones(3)))
    assert independent.guide.family == px.Diagonal()
    correlated = auto(gaussian(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.ones(2)))
    assert correlated.guide.family == px.FullCovariance()


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        (1e-3, 100.0),
        (1e3, 100.0),
        pytest.param(1.0, 0.0, marks=pytest.mark.slow),
        pytest.param(1.0, 100.0, marks=pytest.mark.slow),
        pytest.param(1e-3, 0.0, marks=pytest.mark.slow),
        pytest.param(1e3, 0.0, marks=pytest.mark.slow),
    ],
)
def test_regressions_do_not_depend_on_the_scale_of_predictors(scale, shift):
    """The marginal posterior of β is a Student-t about least squares, that of σ² inverse gamma.

    One predictor is multiplied by the scale and one divided by it, both are shifted by so many
    sds, and the second has correlation 0.999 with a third.
    """
    x, y = predictors()
    raw = x.clone()
    raw[:, 1] = scale * (x[:, 1] + shift)
    raw[:, 2] = (x[:, 2] + shift) / scale
    run = auto(regression, data=(raw, y))
    assert run.verdict.grade != "not to be trusted"
    draws = run.sample(20_000)["beta"]
    back = draws.clone()
    back[:, 1] = scale * draws[:, 1]
    back[:, 2] = draws[:, 2] / scale
    back[:, 0] = draws[:, 0] + shift * back[:, 1] + shift * back[:, 2]
    ols = torch.linalg.lstsq(x, y).solution
    # σ² | y is inverse gamma with shape (n - p - 1) / 2, its prior in σ flat.
    degrees = len(y) - x.shape[1] - 1
    spread = (y - x @ ols).square().sum() / (degrees - 2)
    sd = (torch.linalg.inv(x.mT @ x).diagonal() * spread).sqrt()
    assert ((back.mean(0) - ols) / sd).abs().max() < 0.05
    assert (back.std(0) / sd - 1).abs().max() < 0.05


# ---------------------------------------------------------------------- verdicts


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0)).unsqueeze(-1)
    zero = torch.zeros_like(v).expand([*v.shape[:-1], 9])
    pyro.sample("x", dist.Normal(zero, (v / 2).exp()).to_event(1))


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_funnel_is_not_trusted(seed, monkeypatch):
    monkeypatch.setattr(ascend, "_STEPS", (100,))
    run = auto(funnel, seed=seed)
    assert run.verdict.grade == "not to be trusted"
    assert run.verdict.reasons


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(0.5 * a**2, 0.5))


@pytest.mark.parametrize(
    ("model", "rounds"), [(banana, 1), pytest.param(funnel, 3, marks=pytest.mark.slow)]
)
def test_a_flow_that_gains_little_goes_on_only_for_an_answer_that_fails(
    model, rounds, monkeypatch
):
    monkeypatch.setattr(ascend, "_STEPS", (150, 60, 60))
    monkeypatch.setattr(search, "WORTH", math.inf)
    run = auto(model)
    names = [attempt.name.partition("(")[0] for attempt in run.history]
    assert names.count("Flow") == rounds
    assert names.count("correction and moves") == 1 + rounds
    assert (run.verdict.grade == "not to be trusted") == (rounds == 3)


def two_modes():
    x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    modes = dist.Normal(-4.0, 1.0).log_prob(x), dist.Normal(4.0, 0.5).log_prob(x) - 1
    pyro.factor("f", torch.logaddexp(*modes))


@pytest.mark.parametrize("seed", range(3))
def test_a_second_mode_is_found(seed):
    run = auto(two_modes, seed=seed)
    assert run.verdict.grade == "not to be trusted"
    (reason,) = (text for text in run.verdict.reasons if "mode" in text)
    assert "1 other mode" in reason
    assert "26.9%" in reason  # 1 / (1 + e)


def test_history_counts_what_was_spent():
    calls = []

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        calls.append(z.numel() // 2 if z.requires_grad else 0)

    run = auto(model)
    names = [attempt.name for attempt in run.history]
    assert names[1:3] == ["Diagonal()", "FullCovariance(factor='triangular')"]
    assert run.num_gradients > sum(calls)  # a row of a Hessian counts three times
    assert run.history[2].gradients > 0
    assert run.seconds >= sum(attempt.seconds for attempt in run.history) * 0.9
    assert "gradients" in str(run.history[0])


# ---------------------------------------------------------------------- the run


def test_the_same_seed_gives_the_same_run():
    x, y = predictors()
    first, second = (auto(regression, data=(x, y)) for _ in range(2))
    assert torch.equal(first.guide.params, second.guide.params)
    torch.manual_seed(7)
    a = first.sample(5)["beta"]
    torch.manual_seed(7)
    assert torch.equal(a, second.sample(5)["beta"])


def test_the_run_serves_the_diagnostics():
    x, y = predictors()
    run = auto(regression, data=(x, y))
    assert px.k_hat_joint(run, num_samples=1000, seed=0).values < 0.7
    raw = run.sample(100, corrected=False)
    assert raw["beta"].shape == (100, 4)
    assert raw["sigma"].shape == (100,)
    assert run.sample(100)["sigma"].shape == (100,)


def test_the_callers_random_state_stays_as_it_was():
    before = torch.get_rng_state()
    auto(two_modes)
    assert torch.equal(before, torch.get_rng_state())


def test_single_precision_models_get_single_precision_draws():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        x, y = (value.float() for value in predictors())
        run = auto(regression, data=(x, y))
        draws = run.sample(10)
        assert draws["beta"].dtype == torch.float32
        assert run.sample(10, corrected=False)["beta"].dtype == torch.float32
        assert run.density.dtype == torch.float64
        assert run.verdict.grade != "not to be trusted"
    finally:
        torch.set_default_dtype(before)


# ---------------------------------------------------------------------- px.fit(model, data=data)


def test_a_bare_fit_is_an_automatic_one():
    x, y = predictors()
    bare = px.fit(regression, data=(x, y), seed=0, progress=False)
    assert isinstance(bare, px.training.AutoRun)
    assert torch.equal(bare.guide.params, auto(regression, data=(x, y)).guide.params)


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 3}, {"family": px.Diagonal()}, {"train": "guide"}, {"compile": False}],
)
def test_a_fit_with_an_option_is_a_plain_one(options, monkeypatch):
    monkeypatch.setattr(fit_, "_NUM_STEPS", 3)
    run = px.fit(regression, data=predictors(), progress=False, **options)
    assert not isinstance(run, px.training.AutoRun)


def learned(x):
    scale = pyro.param("scale", lambda: torch.rand(()), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


def pointwise(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("f", -0.5 * (x - float(mu.detach())).square().sum() - mu.square().sum())


def wide():
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([1001]).to_event(1))


@pytest.mark.parametrize(
    ("model", "data", "why"),
    [
        (learned, torch.ones(3), "the model has a parameter of its own, 'scale'"),
        (pointwise, torch.ones(3), "the model does not broadcast"),
        (wide, None, "there are 1001 latent dimensions, more than 1000"),
    ],
)
def test_models_that_are_not_for_automatic_fits_are_fitted_plainly(model, data, why, monkeypatch):
    monkeypatch.setattr(fit_, "_NUM_STEPS", 20)
    pyro.clear_param_store()
    options = {"data": data, "seed": 0, "progress": False}
    with pytest.warns(UserWarning, match=f"without a verdict, because {why}"):
        run = px.fit(model, **options)
    assert run.num_steps == 20
    pyro.clear_param_store()
    asked = px.fit(model, num_steps=20, **options)
    assert torch.equal(run.guide.params, asked.guide.params)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": px.ELBO()}, "fit: expected no loss with optim='auto'"),
        ({"num_steps": 10}, "fit: expected no num_steps with optim='auto', which does without"),
        ({"checkpoints": "runs"}, "fit: expected no checkpoints with optim='auto', which does wi"),
        ({"train": "guide"}, "fit: expected no train with optim='auto', which does without"),
        ({"nonfinite": "skip"}, "fit: expected no nonfinite with optim='auto', which does with"),
        ({"compile": False}, "fit: expected no compile with optim='auto', which does without"),
        ({"deterministic": True}, "fit: expected no deterministic with optim='auto', which does"),
        ({"family": px.Flow()}, r"px.FullCovariance\(\) with optim='auto'; got Flow"),
        ({"guide": two_modes}, "a guide of pyro_ext with optim='auto' and mini-batches"),
        ({"batch_size": 3, "family": px.Diagonal()}, r"got family=Diagonal\(\)"),
    ],
)
def test_what_leaves_nothing_to_find_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        auto(two_modes, **options)


def test_a_guide_and_a_family_are_refused():
    with pytest.raises(ValueError, match="expected a guide or a family; got both"):
        px.fit(two_modes, px.AutoJoint(two_modes), family=px.Diagonal())


def test_subsampled_plates_are_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), 2) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    def loop(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x), 2):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    for sampled in (model, loop):
        with pytest.raises(ValueError, match="plate 'data' with 2 of 6"):
            auto(sampled, data=torch.zeros(6))


def test_data_on_a_gpu_are_refused():
    with pytest.raises(
        ValueError, match="expected data on the CPU with optim='auto'; got some on"
    ):
        auto(learned, data=torch.empty(3, device="meta"))


def test_a_density_that_is_nowhere_finite_is_refused():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", 0 * z - float("inf"))

    with pytest.raises(ValueError, match="finite density somewhere"):
        auto(model)
