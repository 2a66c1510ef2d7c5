"""Automatic fits from mini-batches: globals weighed with the locals integrated."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.training.auto import local
from pyro_ext.training.auto.local import default_guide
from pyro_ext.training.auto.nested import nested_pool
from tests.helpers import assert_mean

X = torch.tensor([0.5, -1.0, 2.0, 1.5, 0.3])
auto = partial(px.fit, optim="auto", progress=False, seed=0)


def hierarchy(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def only_globals(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def only_locals(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.fixture
def quick(monkeypatch):
    """Few steps and few draws."""
    settings = {"_CHUNK": 20, "_MAX_CHUNKS": 2, "_LAST": 20, "_DRAWS": 200, "_INNER": 4}
    for name, value in settings.items():
        monkeypatch.setattr(local, name, value)


def test_nested_weights_give_evidence_and_moments():
    """A guide that is off; x_i - mu are normal of variance 1.25 once z_i is integrated."""
    guide = default_guide(hierarchy, (X,), None)
    guide.setup(X)
    with torch.no_grad():
        guide.global_params.copy_(torch.tensor([0.5, 1.0]))
        guide.local_params[:, 0] = X
        guide.local_params[:, 1] = 0.0
    precision = 1 / 4 + len(X) / 1.25
    mean = X.sum() / 1.25 / precision
    covariance = 1.25 * torch.eye(len(X)) + 4.0
    evidence = dist.MultivariateNormal(torch.zeros(len(X)), covariance).log_prob(X)
    pools = []
    for seed in range(30):
        torch.manual_seed(seed)
        options = {"num": 1000, "inner": 8, "num_data": len(X)}
        pools.append(nested_pool(hierarchy, guide, (X,), **options))
    estimates = torch.tensor([nested.pool.log_evidence for nested in pools])
    assert_mean(estimates.exp(), evidence.exp().item())
    assert_mean(torch.stack([n.pool.moments(n.pool.z)[0][0] for n in pools]), mean.item())
    generator = torch.Generator().manual_seed(0)
    drawn = [nested.resample(1000, generator)["z"].mean(0) for nested in pools]
    # E[z_i | x, mu] lies between mu and x_i as their precisions, 1 and 4, have it.
    assert_mean(torch.stack(drawn), (mean + 4 * X) / 5)


@pytest.mark.parametrize("seed", range(2))
def test_globals_that_the_guide_misses_are_found(seed):
    """The guide's mu is half a unit off, and its locals do not answer to it."""
    guide = default_guide(hierarchy, (X,), None)
    guide.setup(X)
    with torch.no_grad():
        guide.global_params.copy_(torch.tensor([0.5, -1.5]))
        guide.local_params[:, 0] = X
        guide.local_params[:, 1] = 0.0
    before = guide.global_params
    precision = 1 / 4 + len(X) / 1.25
    options = {"num": 1000, "inner": 8, "num_data": len(X)}
    torch.manual_seed(seed)
    assert nested_pool(hierarchy, guide, (X,), **options).pool.k_hat > 0.4
    found = nested_pool(hierarchy, guide, (X,), **options, limit=0.025)
    assert guide.global_params is before
    assert guide.groups[0].family == px.FullCovariance()
    mean, sd, by_mean, by_sd = found.pool.moments(found.pool.z)
    assert found.pool.k_hat < 0.4
    assert max(by_mean.item(), by_sd.item()) < 0.025
    error = (mean - X.sum() / 1.25 / precision) * math.sqrt(precision)
    assert abs(error.item()) < 4 * by_mean.item()
    assert abs(sd.item() * math.sqrt(precision) - 1) < 4 * by_sd.item()
    assert abs(found.own.mean() - 0.5) < 0.05


@pytest.mark.parametrize(
    ("model", "kind", "names"),
    [
        (hierarchy, "AutoPerDatapoint", {"mu", "z"}),
        (only_locals, "AutoPerDatapoint", {"z"}),
        (only_globals, "AutoJoint", {"mu"}),
    ],
)
@pytest.mark.usefixtures("quick")
def test_models_get_the_guide_that_fits_them(model, kind, names):
    run = auto(model, data=X, batch_size=3)
    assert isinstance(run, px.LocalRun)
    assert type(run.guide).__name__ == kind
    assert run.verdict.grade in {"trusted", "usable with correction", "not to be trusted"}
    for corrected in (True, False):
        draws = run.sample(7, corrected=corrected)
        assert set(draws) == names
        assert all(len(value) == 7 for value in draws.values())
    assert [attempt.name for attempt in run.history][-1] == "nested correction"
    assert run.num_gradients > 0


@pytest.mark.usefixtures("quick")
def test_an_amortized_guide_is_fitted_too():
    guide = px.AutoAmortized(hierarchy, lambda x: x.unsqueeze(-1))
    run = auto(hierarchy, guide, data=X, batch_size=3)
    assert run.guide is guide
    assert run.verdict.reasons


@pytest.mark.usefixtures("quick")
def test_a_bound_that_still_rises_is_not_trusted():
    run = auto(hierarchy, data=X + 30.0, batch_size=3)
    assert run.verdict.grade == "not to be trusted"
    assert "the bound still rises" in run.verdict.reasons


def test_too_many_data_to_weigh_are_said(quick, monkeypatch):
    monkeypatch.setattr(local, "_MOST", 10)
    run = auto(hierarchy, data=X, batch_size=3)
    assert run.verdict.grade == "not to be trusted"
    assert "5 data are too many for 200 x 4 weighted draws" in run.verdict.reasons
    with pytest.raises(ValueError, match=r"Write: run\.sample\(num_samples, corrected=False\)"):
        run.sample(3, corrected=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_conjugate_hierarchy_is_trusted(seed):
    run = px.fit(hierarchy, data=X, optim="auto", batch_size=5, seed=seed, progress=False)
    assert run.verdict.grade != "not to be trusted"
    precision = 1 / 4 + len(X) / 1.25
    mu = run.sample(20_000)["mu"]
    error = (mu.mean() - X.sum() / 1.25 / precision) * math.sqrt(precision)
    assert abs(error) < 0.05
    assert mu.std() * math.sqrt(precision) == pytest.approx(1, abs=0.05)
