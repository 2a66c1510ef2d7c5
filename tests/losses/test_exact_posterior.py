"""Where the guide is the exact posterior every loss is the evidence, without noise."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from cases import EXACT, LOSSES, sign
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

import pyro_ext as px
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
W = torch.tensor([[1.0, 0.2], [-0.5, 0.8], [0.3, 0.9]])
NOISE = 0.7

CONJUGATE: dict[str, Callable[[], ConjugateModel]] = {
    "local": lambda: NormalLocal.simulate(NUM, scale=0.7),
    "masked": lambda: NormalLocal(NormalLocal.simulate(NUM).x, mask=MASK),
    "global": lambda: NormalGlobal.simulate(NUM, scale=0.7),
    "hierarchy": lambda: NormalHierarchy.simulate(NUM, scale=0.7),
    "gamma-local": lambda: GammaPoisson.simulate(NUM, local=True),
    "gamma-global": lambda: GammaPoisson.simulate(NUM, local=False),
    "regression": lambda: LinearRegression.simulate(NUM),
}


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CONJUGATE)
def test_exact_posterior_gives_the_evidence(name: str, loss: str, particles: int) -> None:
    exact = CONJUGATE[name]()
    bound = LOSSES[loss](particles)
    if name == "hierarchy" and not bound.hierarchies:
        with pytest.raises(ValueError, match=r"got a model with both.*Write: px\..*joint=True"):
            bound.loss(exact.model, exact.guide, *exact.args)
        bound = LOSSES[loss](particles, joint=True)
    value = sign(bound) * bound.loss(exact.model, exact.guide, *exact.args)
    assert value == pytest.approx(exact.log_evidence().item(), abs=1e-9)


@pytest.mark.parametrize(
    "loss",
    [loss for loss in LOSSES if not loss.startswith(("ELBO", "Annealed"))],  # joint as they are
)
def test_exact_posterior_gives_the_evidence_of_a_joint_weight(loss: str) -> None:
    """One weight of a hierarchy, and several sets of particles."""
    exact = CONJUGATE["hierarchy"]()
    bound = LOSSES[loss](7, joint=True)
    value = sign(bound) * bound.loss(exact.model, exact.guide, *exact.args)
    assert value == pytest.approx(exact.log_evidence().item(), abs=1e-9)
    if "num_outer" in signature(type(bound)).parameters and not loss.startswith(("M", "P")):
        bound = LOSSES[loss](7, joint=True, num_outer=3)
        value = sign(bound) * bound.loss(exact.model, exact.guide, *exact.args)
        assert value == pytest.approx(exact.log_evidence().item(), abs=1e-9)


def factor_analysis(x: Tensor) -> None:
    """Two correlated latents per datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.T, NOISE).to_event(1), obs=x)


def factor_posterior() -> tuple[Tensor, Tensor]:
    """The gain B and covariance C of z | x ~ N(B x, C)."""
    covariance = torch.linalg.inv(torch.eye(2) + W.T @ W / NOISE**2)
    return covariance @ W.T / NOISE**2, covariance


def factor_evidence(x: Tensor) -> float:
    covariance = W @ W.T + NOISE**2 * torch.eye(3)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(3), covariance)
    return marginal.log_prob(x).sum().item()


def rotated(covariance: Tensor) -> Tensor:
    """A dense factor of a covariance that is no triangle."""
    angle = torch.tensor(0.6)
    rotation = torch.eye(len(covariance))
    rotation[:2, :2] = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    return torch.linalg.cholesky(covariance) @ rotation


def factor_of(covariance: Tensor, dense: bool) -> Tensor:  # noqa: FBT001
    return rotated(covariance) if dense else torch.linalg.cholesky(covariance)


Case = tuple[Callable[..., Any], nn.Module, tuple[Tensor, ...], float]


def per_datapoint_diagonal() -> Case:
    exact = NormalLocal.simulate(NUM, scale=0.7)
    mean, covariance = exact.posterior()
    guide = px.AutoPerDatapoint(exact.model)
    guide.setup(*exact.args)
    guide.local_params.data = px.Diagonal().initial_params(mean, covariance[..., 0].sqrt())
    return exact.model, guide, exact.args, exact.log_evidence().item()


def per_datapoint_full(dense: bool) -> Case:  # noqa: FBT001
    x = torch.randn(NUM, 3)
    gain, covariance = factor_posterior()
    family = px.FullCovariance("dense" if dense else "triangular")
    guide = px.AutoPerDatapoint(factor_analysis, family=family)
    guide.setup(x)
    factor = factor_of(covariance, dense).expand(NUM, 2, 2)
    guide.local_params.data = family.initial_params(x @ gain.T, factor)
    return factor_analysis, guide, (x,), factor_evidence(x)


def amortized(dense: bool) -> Case:  # noqa: FBT001
    x = torch.randn(NUM, 3)
    gain, covariance = factor_posterior()
    family = px.FullCovariance("dense" if dense else "triangular")
    encoder = nn.Linear(3, 2, bias=False)
    encoder.weight.data = gain
    guide = px.AutoAmortized(factor_analysis, encoder, family=family)
    guide.setup(x)
    guide.head.weight.data.zero_()[:2] = torch.eye(2)
    guide.head.bias.data = family.initial_params(torch.zeros(2), factor_of(covariance, dense))
    return factor_analysis, guide, (x,), factor_evidence(x)


def joint(dense: bool) -> Case:  # noqa: FBT001
    exact = LinearRegression.simulate(NUM)
    mean, covariance = exact.posterior()
    family = px.FullCovariance("dense" if dense else "triangular")
    guide = px.AutoJoint(exact.model, family=family)
    guide.setup(*exact.args)
    guide.params.data = family.initial_params(mean, factor_of(covariance, dense))
    return exact.model, guide, exact.args, exact.log_evidence().item()


def joint_of_a_hierarchy() -> Case:
    exact = NormalHierarchy.simulate(NUM, scale=0.7)
    mean, covariance = exact.posterior()
    family = px.FullCovariance()
    guide = px.AutoJoint(exact.model, family=family)
    guide.setup(*exact.args)
    guide.params.data = family.initial_params(mean, torch.linalg.cholesky(covariance))
    return exact.model, guide, exact.args, exact.log_evidence().item()


class HandWritten(PyroModule):
    """The exact posterior of a local normal, with a plain and a constrained parameter."""

    def __init__(self, exact: NormalLocal) -> None:
        super().__init__()
        mean, covariance = exact.posterior()
        self.loc = nn.Parameter(mean[:, 0])
        self.scale = PyroParam(covariance[:, 0, 0].sqrt(), constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.scale))


def hand_written() -> Case:
    exact = NormalLocal.simulate(NUM, scale=0.7)
    return exact.model, HandWritten(exact), exact.args, exact.log_evidence().item()


def auto_normal() -> Case:
    exact = NormalLocal.simulate(NUM, scale=0.7)
    mean, covariance = exact.posterior()
    guide = pyro_auto.AutoNormal(exact.model)
    guide(*exact.args)
    guide.locs.z = nn.Parameter(mean[:, 0])
    guide.scales.z = covariance[:, 0, 0].sqrt()
    return exact.model, guide, exact.args, exact.log_evidence().item()


def auto_multivariate_normal() -> Case:
    exact = LinearRegression.simulate(NUM)
    mean, covariance = exact.posterior()
    guide = pyro_auto.AutoMultivariateNormal(exact.model)
    guide(*exact.args)
    factor = torch.linalg.cholesky(covariance)
    guide.loc.data = mean
    guide.scale = factor.diagonal()
    guide.scale_tril = factor / factor.diagonal()[:, None]
    return exact.model, guide, exact.args, exact.log_evidence().item()


CASES: dict[str, Callable[[], Case]] = {
    "AutoPerDatapoint": per_datapoint_diagonal,
    "AutoPerDatapoint-full": lambda: per_datapoint_full(dense=False),
    "AutoPerDatapoint-dense": lambda: per_datapoint_full(dense=True),
    "AutoAmortized-full": lambda: amortized(dense=False),
    "AutoAmortized-dense": lambda: amortized(dense=True),
    "AutoJoint-full": lambda: joint(dense=False),
    "AutoJoint-dense": lambda: joint(dense=True),
    "AutoJoint-hierarchy": joint_of_a_hierarchy,
    "hand-written": hand_written,
    "AutoNormal": auto_normal,
    "AutoMultivariateNormal": auto_multivariate_normal,
}


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_exact_guide_of_each_kind(case: str, loss: str, particles: int) -> None:
    """The value is the evidence; stl and dreg have no gradient at all, not even noise."""
    model, guide, args, log_evidence = CASES[case]()
    bound = LOSSES[loss](particles)
    if case == "AutoJoint-hierarchy" and not bound.hierarchies:
        bound = LOSSES[loss](particles, joint=True)
    value = sign(bound) * bound.loss_and_grads(model, guide, *args)
    assert value == pytest.approx(log_evidence, abs=1e-9)
    grads = [p.grad for p in guide.parameters()]
    assert all(g is not None for g in grads)
    largest = max(float(g.abs().max()) for g in grads if g is not None)
    assert largest < 1e-10 if loss in EXACT else largest > 1e-3


@pytest.mark.parametrize("loss", EXACT)
def test_exact_guide_in_the_param_store(loss: str) -> None:
    """A hand-written function with ``pyro.param`` is frozen as a module is."""
    exact = GammaPoisson.simulate(NUM)
    concentration, rate = exact._posterior_parameters(exact.x, None)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", concentration, constraint=constraints.positive)
        b = pyro.param("b", rate, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(a, b))

    bound = LOSSES[loss](7)
    value = sign(bound) * bound.loss_and_grads(exact.model, guide, *exact.args)
    assert value == pytest.approx(exact.log_evidence().item(), abs=1e-9)
    for name in ("a", "b"):
        grad = pyro.param(name).unconstrained().grad
        assert grad is not None
        assert grad.abs().max() < 1e-10
        assert pyro.param(name).unconstrained().requires_grad


def test_exact_guide_of_a_hierarchy_has_no_stl_gradient() -> None:
    """Local latents that depend on the global one: the total weight is constant all the same."""
    exact = NormalHierarchy.simulate(NUM, scale=0.7)
    mean, variance = exact._global().posterior()
    shrink = torch.tensor(1 / (1 + exact.scale**2))

    def guide(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(pyro.param("loc", mean[0]), variance[0, 0].sqrt()))
        gain = pyro.param("gain", shrink)
        with pyro.plate("data", len(x)):
            loc = gain * x + (1 - shrink) * mu
            pyro.sample("z", dist.Normal(loc, exact.scale * shrink.sqrt()))

    for particles in (1, 7):
        loss = px.ELBO(particles, estimator="stl")
        value = loss.loss_and_grads(exact.model, guide, *exact.args)
        assert -value == pytest.approx(exact.log_evidence().item(), abs=1e-10)
        for name in ("loc", "gain"):
            assert abs(pyro.param(name).grad.item()) < 1e-10
