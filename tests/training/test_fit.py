"""Training: exact optima, mini-batches, reproducibility, and what happens when it goes wrong."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from models import eight_schools, linear_gaussian
from pyro_ext.testing import LinearRegression, NormalHierarchy, NormalLocal

quiet = partial(px.fit, progress=False)


def cosine(lr, num_steps):
    """Return the options of a fit whose rate decays to zero."""
    return {
        "optim": partial(Adam, lr=lr),
        "schedule": partial(CosineAnnealingLR, T_max=num_steps),
        "num_steps": num_steps,
    }


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


# ---------------------------------------------------------------------- exact optima


@pytest.mark.parametrize("seed", range(3))
def test_full_covariance_recovers_the_exact_posterior(seed):
    exact = LinearRegression.simulate(30, seed=seed)
    guide = px.AutoJoint(exact.model, family=px.FullCovariance())
    loss = px.ELBO(16, estimator="stl")
    quiet(exact.model, guide, loss, exact.args, **cosine(0.15, 250), seed=seed)
    mean, covariance = exact.posterior()
    sd = covariance.diagonal().sqrt()
    gap = (guide.median(*exact.args)["w"] - mean) / sd
    assert gap.abs().max() < 1e-3
    posterior = guide.groups[0].posterior(guide.params)
    torch.testing.assert_close(posterior.covariance_matrix, covariance, rtol=1e-2, atol=1e-4)
    value = -px.ELBO(10).loss(exact.model, guide, *exact.args)
    assert value == pytest.approx(exact.log_evidence().item(), abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_mean_field_has_its_known_under_dispersion(seed):
    exact = LinearRegression.simulate(30, seed=seed)
    guide = px.AutoJoint(exact.model)
    loss = px.ELBO(32, estimator="stl")
    quiet(exact.model, guide, loss, exact.args, **cosine(0.1, 400), seed=seed)
    mean, covariance = exact.posterior()
    variance = 1 / covariance.inverse().diagonal()
    assert (variance < 0.9 * covariance.diagonal()).all()
    gap = (guide.median(*exact.args)["w"] - mean) / covariance.diagonal().sqrt()
    assert gap.abs().max() < 0.15
    posterior = guide.groups[0].posterior(guide.params)
    torch.testing.assert_close(posterior.variance, variance, rtol=0.1, atol=0)


@pytest.mark.parametrize("family", [px.FullCovariance(), px.Diagonal()], ids=repr)
@pytest.mark.parametrize("batch_size", [None, 20])
def test_linear_gaussian_with_an_encoder(family, batch_size):
    """A linear encoder holds the optimum of either family; mini-batches reach it as well."""
    model = linear_gaussian.LinearGaussian.random(4, 2, seed=0)
    x = linear_gaussian.data(60, model=model)
    guide = px.AutoAmortized(model, nn.Flatten(), family=family)
    run = quiet(
        model,
        guide,
        px.ELBO(8, estimator="stl"),
        x,
        **cosine(0.1, 250),
        batch_size=batch_size,
        seed=0,
    )
    full = isinstance(family, px.FullCovariance)
    mean, covariance = model.posterior(x)
    variance = covariance.diagonal() if full else model.mean_field(x).variance
    draws = run.sample(4000)["z"]
    sd = variance.sqrt()
    assert ((guide.median(x)["z"] - mean) / sd).abs().max() < (0.01 if full else 0.3)
    torch.testing.assert_close(draws.std(0).mean(0), sd, rtol=0.03, atol=0)
    gap = 0.0 if full else model.mean_field_gap()
    value = -np.mean([px.ELBO(20).loss(model, guide, x) for _ in range(20)]) / len(x)
    assert value == pytest.approx(float(model.log_evidence(x) / len(x) - gap), abs=0.02)


@pytest.mark.parametrize("batch_size", [None, 7, 1])
def test_mini_batches_have_the_optimum_of_the_full_batch(batch_size):
    exact = NormalHierarchy.simulate(12, scale=0.7, local_scale=0.5, prior_scale=2.0)
    guide = px.AutoPerDatapoint(exact.model)
    loss = px.ELBO(8, estimator="stl")
    options = {**cosine(0.2, 400), "batch_size": batch_size, "seed": 0}
    quiet(exact.model, guide, loss, exact.args, **options)
    mean, covariance = exact.posterior()
    sd = covariance.diagonal().sqrt()
    median = guide.median(*exact.args)
    assert abs(median["mu"] - mean[0]) / sd[0] < 0.3
    assert ((median["z"] - mean[1:]) / sd[1:]).abs().max() < 0.4
    variance = 1 / covariance.inverse().diagonal()
    draws = guide.sample_posterior(4000, *exact.args)
    torch.testing.assert_close(draws["mu"].std(), variance[0].sqrt(), rtol=0.2, atol=0)
    torch.testing.assert_close(draws["z"].std(0).mean(), variance[1].sqrt(), rtol=0.1, atol=0)


@pytest.mark.parametrize("subsample_size", [5, 10])
def test_a_model_that_knows_its_size_and_subsamples(subsample_size):
    exact = NormalLocal.simulate(10)
    model = NormalLocal(exact.x, subsample_size=subsample_size).model
    guide = px.AutoPerDatapoint(model)
    loss = px.ELBO(4, estimator="stl")
    run = quiet(model, guide, loss, exact.x, **cosine(0.1, 400), batch_size=subsample_size, seed=0)
    mean = exact.posterior().mean[:, 0]
    torch.testing.assert_close(guide.median(exact.x)["z"], mean, rtol=0, atol=0.02)
    assert run.sample(3)["z"].shape == (3, 10)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_models_parameters_are_trained(batch_size):
    """Of a module, of a constrained PyroParam and of pyro.param: all to maximum likelihood."""

    class Model(PyroModule):
        def __init__(self):
            super().__init__("model_of_test_fit")
            self.loc = nn.Parameter(torch.zeros(()))
            self.scale = PyroParam(torch.ones(()), constraint=constraints.positive)

        def forward(self, x, y):
            slope = pyro.param("slope", torch.zeros(()))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, self.scale))
                pyro.sample("x", dist.Normal(z, 0.1), obs=x)
                pyro.sample("y", dist.Normal(slope, 1.0), obs=y)

    x, y = torch.linspace(-3, 9, 20), torch.linspace(1, 3, 20)
    model = Model()
    options = {**cosine(0.2, 400), "batch_size": batch_size, "seed": 0}
    run = quiet(model, px.AutoPerDatapoint(model), px.ELBO(2, estimator="stl"), (x, y), **options)
    assert model.loc.item() == pytest.approx(x.mean().item(), abs=0.2)
    assert pyro.param("slope").item() == pytest.approx(2.0, abs=0.1)
    assert model.scale.item() == pytest.approx((x.var(correction=0) - 0.01).sqrt().item(), rel=0.1)
    assert run.losses[-20:].mean() < run.losses[:20].mean()


# ---------------------------------------------------------------------- eight schools

EVIDENCE = -31.311347


def eight_schools_bounds(family, seed):
    args = eight_schools.data()
    guide = px.AutoJoint(eight_schools.model, family=family)
    loss = px.ELBO(32, estimator="stl")
    quiet(eight_schools.model, guide, loss, args, **cosine(0.1, 400), seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        weights = px.log_weights(
            eight_schools.model, guide, *args, num_particles=50_000, joint=True
        )
    log_w = weights.terms[0].log_w
    return log_w.mean().item(), px.bounds.iwae(log_w.reshape(10, -1)).mean().item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("family", "optimum"), [(px.Diagonal(), -31.60), (px.FullCovariance(), -31.535)], ids=repr
)
def test_eight_schools_reaches_the_optimum_of_the_family(family, optimum, seed):
    """The estimates have standard errors of 0.005; the optima are by quadrature of Sobol draws."""
    elbo, iwae = eight_schools_bounds(family, seed)
    assert elbo == pytest.approx(optimum, abs=0.03)
    assert elbo < iwae < EVIDENCE


# ---------------------------------------------------------------------- reproducible, isolated


def losses_of(seed, batch_size=None, build=px.AutoPerDatapoint):
    x = NormalLocal.simulate(10).x
    loss = px.IWAE(5, estimator="dreg")
    return quiet(
        local, build(local), loss, x, num_steps=12, batch_size=batch_size, seed=seed
    ).losses


def amortized(model):
    return px.AutoAmortized(
        model, nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 3), nn.Dropout(0.3))
    )


@pytest.mark.parametrize("batch_size", [None, 4])
def test_same_seed_same_losses(batch_size):
    first = losses_of(7, batch_size)
    torch.rand(5)
    assert np.array_equal(first, losses_of(7, batch_size))
    assert not np.array_equal(first, losses_of(8, batch_size))


def test_the_seed_covers_the_head_of_an_encoder():
    def build(model):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return amortized(model)

    assert np.array_equal(losses_of(7, 4, build), losses_of(7, 4, build))


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    losses_of(0, 4)
    assert torch.equal(torch.rand(3), expected)


def test_without_seed_the_callers_state_decides():
    torch.manual_seed(5)
    first = losses_of(None)
    second = losses_of(None)
    torch.manual_seed(5)
    assert np.array_equal(first, losses_of(None))
    assert not np.array_equal(first, second)


def test_the_store_is_as_before():
    pyro.param("mine", torch.tensor(1.5))
    losses_of(0)
    losses_of(0, build=amortized)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert pyro.param("mine").item() == 1.5


def test_the_store_is_as_before_after_an_error():
    guide = px.AutoPerDatapoint(local)
    with pytest.raises(ValueError, match="batch_size"):
        quiet(local, guide, px.ELBO(), torch.zeros(5), num_steps=2, batch_size=9)
    assert list(pyro.get_param_store().keys()) == []


def test_validation_is_as_before():
    before = torch.distributions.Distribution._validate_args
    losses_of(0)
    assert torch.distributions.Distribution._validate_args == before


def test_the_result():
    x = torch.zeros(6)
    guide, loss = px.AutoPerDatapoint(local), px.ELBO(2)
    run = quiet(local, guide, loss, x, num_steps=5, seed=3)
    assert (run.model, run.guide, run.loss) == (local, guide, loss)
    assert torch.equal(run.args[0], x)
    assert run.losses.shape == (5,)
    assert run.losses.dtype == np.float64
    assert (run.num_steps, run.seed) == (5, 3)
    assert run.seconds > 0
    assert "5" in run.stopped
    draws = run.sample(4)
    assert draws["z"].shape == (4, 6)
    assert not draws["z"].requires_grad


def test_the_defaults():
    run = quiet(local, data=torch.zeros(3), num_steps=3)
    assert isinstance(run.guide, px.AutoJoint)
    assert isinstance(run.loss, px.ELBO)


def test_any_guide_of_pyro():
    guide = pyro.infer.autoguide.AutoNormal(local)
    run = quiet(local, guide, px.ELBO(4), torch.full((3,), 2.0), **cosine(0.1, 300), seed=0)
    torch.testing.assert_close(run.sample(2000)["z"].mean(0), torch.ones(3), rtol=0, atol=0.1)


def test_a_model_without_arguments():
    def model():
        pyro.sample("z", dist.Normal(3.0, 1.0))

    run = quiet(model, px.AutoJoint(model), px.ELBO(), num_steps=3)
    assert run.args == ()
    assert run.sample(2)["z"].shape == (2,)


def test_a_step_is_the_optimizers_own_on_parameters_that_were_set_up_before():
    x = torch.tensor([1.0, 2.0])
    guide = px.AutoPerDatapoint(local)
    guide.setup(x)
    before, grads = guide.local_params.detach().clone(), []

    class Watched(SGD):
        def step(self, closure=None):
            grads.append(guide.local_params.grad.clone())
            return super().step(closure)

    quiet(local, guide, px.ELBO(), x, partial(Watched, lr=0.1), num_steps=1, seed=0)
    assert len(grads) == 1
    torch.testing.assert_close(guide.local_params.detach(), before - 0.1 * grads[0])


def test_the_schedule_is_stepped():
    rates = []

    class Watched(SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    quiet(
        local,
        px.AutoPerDatapoint(local),
        px.ELBO(),
        torch.zeros(3),
        partial(Watched, lr=1e-3),
        schedule=partial(CosineAnnealingLR, T_max=4),
        num_steps=4,
    )
    assert rates[0] == 1e-3
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-4


# ---------------------------------------------------------------------- progress


def test_the_bar_is_silent_where_there_is_no_terminal(capsys):
    px.fit(
        local, px.AutoPerDatapoint(local), px.ELBO(), torch.zeros(3), num_steps=3, progress=True
    )
    out, err = capsys.readouterr()
    assert out == err == ""


def test_the_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    px.fit(local, data=torch.zeros(3), num_steps=3)
    assert "loss=" in capsys.readouterr().err
    px.fit(local, data=torch.zeros(3), num_steps=3, progress=False)
    assert capsys.readouterr().err == ""
