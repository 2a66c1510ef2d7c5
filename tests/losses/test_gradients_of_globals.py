"""Gradient estimators where latents are global, draws or points, against quadrature."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from losses.gradients import GUIDE, MODEL, exact_gradient, gradients
from reference import Gaussian, Hierarchy
from torch import Tensor, nn

import pyro_ext as px
from helpers import assert_mean

# ---------------------------------------------------------------------- global latents


def averaged(num_particles: int, estimator: str) -> px.IWAE:
    """Many independent sets of particles at once: the same estimator with less noise a row."""
    return px.IWAE(num_particles, estimator=estimator, num_outer=400)


@pytest.mark.parametrize("estimator", ["reparam", "dreg"])
def test_one_joint_weight(estimator: str) -> None:
    """Without a plate the weight has no batch dim; finds a path scale of the wrong shape."""
    truth = Gaussian()
    x = torch.tensor(1.4)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ParameterList(truth.guide_params)

        def forward(self, x: Tensor) -> None:
            loc = truth.shift + truth.gain * x
            pyro.sample("z", dist.Normal(loc, truth.log_sd.exp()))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(truth.prior, 1.0))
        pyro.sample("x", dist.Normal(truth.slope * z, truth.noise), obs=x)

    loss = averaged(2, estimator)
    draws = gradients(loss, model, Guide(), truth.params, x, rows=100)
    bound = reference.expected_iwae(lambda eps: truth.log_w(eps, x.reshape(1)))
    exact = exact_gradient(bound.sum(), truth.params)
    for part in (MODEL, GUIDE):
        assert_mean(draws[:, part], exact[part])


class HierarchyGuide(nn.Module):
    """The Pyro side of `Hierarchy`: its local latents depend on the global one."""

    def __init__(self, truth: Hierarchy) -> None:
        super().__init__()
        self.truth = truth
        self.held = nn.ParameterList(truth.params[1:])

    def model(self, x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.truth.level + mu, 1.0))
            pyro.sample("x", dist.Normal(z, self.truth.noise), obs=x)

    def forward(self, x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.truth.loc, self.truth.log_sd.exp()))
        with pyro.plate("data", len(x)):
            loc = self.truth.gain * x + self.truth.pull * mu
            pyro.sample("z", dist.Normal(loc, self.truth.local.exp()))


FEW = torch.tensor([0.7, -1.2, 1.9])
PARTS = {"model": slice(0, 1), "global": slice(1, 3), "local": slice(3, 6)}


def hierarchy_gradients(loss: Any) -> tuple[Tensor, Tensor]:
    truth = Hierarchy()
    guide = HierarchyGuide(truth)
    draws = gradients(loss, guide.model, guide, truth.params, FEW, rows=100)
    inner = reference.expected_elbo if isinstance(loss, px.ELBO) else reference.expected_iwae
    return draws, exact_gradient(truth.expected_bound(FEW, inner), truth.params)


@pytest.mark.parametrize(
    "loss",
    [
        px.ELBO(400),
        px.ELBO(400, estimator="stl"),
        averaged(2, "reparam"),
        averaged(2, "dreg"),
        averaged(1, "dreg"),
    ],
    ids=repr,
)
def test_hierarchy(loss: Any) -> None:
    """Finds a global path that is weighted as a local one, or counted once a particle.

    Under ``dreg`` the globals are parameters of q(z | mu): leaving their score in is a bias of 0.5
    in the gradient of log_sd, 2.7, here: 24 standard errors.
    """
    draws, exact = hierarchy_gradients(loss)
    if loss.num_particles == 1:
        truth = Hierarchy()
        bound = truth.expected_bound(FEW, reference.expected_elbo)
        exact = exact_gradient(bound, truth.params)
    for part in PARTS.values():
        assert_mean(draws[:, part], exact[part])


def test_hierarchy_with_the_score_of_the_globals_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_ext._run._stop_globals", lambda *args: None)
    draws, exact = hierarchy_gradients(averaged(2, "dreg"))
    assert_mean(draws[:, PARTS["local"]], exact[PARTS["local"]])
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws[:, PARTS["global"]], exact[PARTS["global"]])


def test_hierarchy_stl_is_biased() -> None:
    draws, exact = hierarchy_gradients(averaged(2, "stl"))
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws[:, PARTS["local"]], exact[PARTS["local"]])


# ---------------------------------------------------------------------- point estimates


class PointGuide(nn.Module):
    """A Delta at a parameter for one latent, a normal for another; both global, or one local."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.loc = nn.Parameter(torch.tensor(0.1))

    def model(self, x: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(level, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def forward(self, x: Tensor) -> None:
        pyro.sample("level", dist.Delta(self.level))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc + x / 2, 0.9))


def point_bound(guide: PointGuide, x: Tensor) -> Tensor:
    """The bound with two particles, by quadrature: the level is a parameter of the model."""

    def log_w(eps: Tensor) -> Tensor:
        z = guide.loc + x / 2 + 0.9 * eps[:, None]
        log_p = reference.log_normal(z, guide.level, 1.0) + reference.log_normal(x, z, 1.0)
        return log_p - reference.log_normal(z, guide.loc + x / 2, 0.9)

    prior = reference.log_normal(guide.level, 0.0, 1.0)
    return prior + reference.expected_iwae(log_w).sum()


@pytest.mark.parametrize(
    "loss",
    [px.IWAE(2), px.IWAE(2, estimator="dreg"), px.MIWAE(3, 2, estimator="dreg"), px.WakeSleep(2)],
    ids=repr,
)
def test_a_point_estimate_climbs_the_bound(loss: Any) -> None:
    """Finds a Delta whose gradient is cut with those of the draws, or weighed as theirs."""
    guide = PointGuide()
    draws = gradients(loss, guide.model, guide, [guide.level], FEW, rows=400)
    exact = exact_gradient(point_bound(guide, FEW), [guide.level])
    assert_mean(draws, exact)


@pytest.mark.parametrize("make", [px.IWAE, px.CIWAE, px.Renyi, px.MIWAE, px.CUBO, px.PIWAE])
def test_dreg_of_a_point_estimate_inside_the_weight_raises(make: Any) -> None:
    """It would weigh the gradient of the parameter by w², as that of a draw."""
    guide = PointGuide()
    message = r"got site 'level', a Delta at a parameter.*Write: px\.\w+\(estimator='reparam'\)"
    with pytest.raises(ValueError, match=message):
        make(num_particles=2, estimator="dreg", joint=True).loss_and_grads(guide.model, guide, FEW)
    make(num_particles=2, joint=True).loss_and_grads(guide.model, guide, FEW)
    make(num_particles=2, estimator="dreg", joint=True).loss(guide.model, guide, FEW)
    make(num_particles=1, estimator="dreg", joint=True).loss_and_grads(guide.model, guide, FEW)
