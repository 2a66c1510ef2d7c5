"""Values of the losses: the evidence where the guide is exact, brute force elsewhere."""

from collections.abc import Callable
from inspect import signature
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import reference
import torch
from cases import EXACT, LOSSES, bound_of, sign
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from reference import Gaussian, Hierarchy
from torch import Tensor, nn

import pyro_ext as px
from helpers import assert_at_most, assert_mean, assert_paired_mean
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


# ---------------------------------------------------------------------- the exact posterior


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CONJUGATE)
def test_exact_posterior_gives_the_evidence(name: str, loss: str, particles: int) -> None:
    exact = CONJUGATE[name]()
    bound = LOSSES[loss](particles)
    if name == "hierarchy" and not bound.hierarchies:
        with pytest.raises(ValueError, match=r"the model has both.*Write: px\..*joint=True"):
            bound.loss(exact.model, exact.guide, *exact.args)
        bound = LOSSES[loss](particles, joint=True)
    value = sign(bound) * bound.loss(exact.model, exact.guide, *exact.args)
    assert value == pytest.approx(exact.log_evidence().item(), abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_exact_posterior_gives_the_evidence_of_a_joint_weight(loss: str) -> None:
    """One weight of a hierarchy, and several sets of particles."""
    if loss.startswith(("ELBO", "Annealed")):
        pytest.skip("is joint as it is")
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


# ---------------------------------------------------------------------- brute force


X = torch.linspace(-1.5, 2.0, 4)


def gaussian_pair(truth: Gaussian) -> tuple[Callable[..., None], Callable[..., None]]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(truth.prior, 1.0))
            pyro.sample("x", dist.Normal(truth.slope * z, truth.noise), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = truth.shift + truth.gain * x
            pyro.sample("z", dist.Normal(loc, truth.log_sd.exp()))

    return model, guide


def losses_of(loss: Any, model: Any, guide: Any, x: Tensor, draws: int) -> Tensor:
    return torch.tensor([loss.loss(model, guide, x) for _ in range(draws)])


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_brute_force_on_the_same_draws(name: str, particles: int) -> None:
    truth = Gaussian()
    pair = gaussian_pair(truth)
    loss = LOSSES[name](particles)
    pyro.set_rng_seed(3)
    value = sign(loss) * loss.loss(*pair, X)
    pyro.set_rng_seed(3)
    inner, outer = loss.particles.inner, loss.particles.outer
    lw = px.log_weights(*pair, X, num_particles=inner, num_outer=outer)
    z = lw.latents["z"].detach().reshape(outer, inner, len(X)).movedim(1, 0)
    log_w = truth.log_p(z, X) - truth.log_q(z, X)
    assert value == pytest.approx(bound_of(loss)(log_w).mean(0).sum().item(), abs=1e-10)


def same_value_and_gradient(one: Any, other: Any) -> None:
    """Of the same draws, for the model and for the guide."""
    truth = Gaussian()

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ParameterList(truth.guide_params)

        def forward(self, x: Tensor) -> None:
            gaussian_pair(truth)[1](x)

    model, guide = gaussian_pair(truth)[0], Guide()
    found = []
    for loss in (one, other):
        pyro.set_rng_seed(3)
        value = sign(loss) * loss.differentiable_loss(model, guide, X)
        found.append((value, *torch.autograd.grad(value, truth.params)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (px.IWAE(1), px.ELBO()),
        (px.IWAE(1, estimator="dreg"), px.ELBO(estimator="stl")),
        (px.IWAE(1, estimator="vimco"), px.ELBO(estimator="score")),
        (px.MIWAE(5, 1), px.ELBO(5)),
        (px.MIWAE(5, 1, estimator="dreg"), px.ELBO(5, estimator="stl")),
        (px.MIWAE(5, 1, estimator="vimco"), px.ELBO(5, estimator="score")),
        (px.MIWAE(1, 5), px.IWAE(5)),
        (px.MIWAE(3, 5, estimator="dreg"), px.IWAE(5, estimator="dreg", num_outer=3)),
        (px.CIWAE(5, beta=1.0), px.ELBO(5)),
        (px.CIWAE(5, beta=1.0, estimator="dreg"), px.ELBO(5, estimator="stl")),
        (px.CIWAE(5, beta=0.0), px.IWAE(5)),
        (px.CIWAE(5, beta=0.0, estimator="dreg"), px.IWAE(5, estimator="dreg")),
        (px.CIWAE(5, beta=0.0, estimator="vimco"), px.IWAE(5, estimator="vimco")),
        (px.Renyi(5, alpha=1.0), px.ELBO(5)),
        (px.Renyi(5, alpha=1.0, estimator="dreg"), px.ELBO(5, estimator="stl")),
        (px.Renyi(5, alpha=1 + 1e-11, estimator="dreg"), px.ELBO(5, estimator="stl")),
        (px.Renyi(5, alpha=1 - 1e-11), px.ELBO(5)),
        (px.Renyi(5, alpha=0.0), px.IWAE(5)),
        (px.Renyi(5, alpha=0.0, estimator="dreg"), px.IWAE(5, estimator="dreg")),
        (px.Renyi(5, alpha=0.0, estimator="stl"), px.IWAE(5, estimator="stl")),
        (px.Renyi(5, alpha=0.0, estimator="vimco"), px.IWAE(5, estimator="vimco")),
        (px.Renyi(5, alpha=-1.0, estimator="dreg"), px.CUBO(5, estimator="dreg")),
        (px.PIWAE(1, 5), px.IWAE(5)),
        (px.PIWAE(1, 5, estimator="dreg"), px.IWAE(5, estimator="dreg")),
    ],
    ids=repr,
)
def test_special_cases_are_each_other(one: Any, other: Any) -> None:
    same_value_and_gradient(one, other)


@pytest.mark.parametrize("estimator", ["reparam", "dreg"])
def test_gradient_of_renyi_is_continuous_where_its_formula_changes(estimator: str) -> None:
    for side in (-1, 1):
        inside, outside = (
            px.Renyi(5, alpha=1 + side * (1e-3 + shift), estimator=estimator)
            for shift in (-1e-12, 1e-12)
        )
        same_value_and_gradient(inside, outside)


@pytest.mark.parametrize("name", LOSSES)
def test_expected_values_are_the_quadrature(name: str) -> None:
    """A bias of 1 % of the gap between ELBO and evidence would show."""
    truth = Gaussian()
    pair = gaussian_pair(truth)
    x = X.repeat(100)
    loss = LOSSES[name](2)
    eps, weights = reference.gauss_hermite(60)
    value = reference.expected_bound(bound_of(loss), weights[:, None], truth.log_w(eps, X))
    values = sign(loss) * losses_of(loss, *pair, x, 100)
    assert_mean(values, 100 * value.sum().detach())


def test_bounds_rise_to_the_evidence() -> None:
    """Paired on the data, not on draws; the difference of two bounds is significant or zero."""
    truth = Gaussian()
    pair = gaussian_pair(truth)
    x = X.repeat(25)
    sizes = (1, 2, 5, 50)
    draws = {k: -losses_of(px.IWAE(k), *pair, x, 150) for k in sizes}
    evidence = truth.log_evidence(x).item()
    for fewer, more in pairwise(sizes):
        assert_at_most(draws[fewer] - draws[more], 0.0)
        assert draws[fewer].mean() < draws[more].mean()
    for k in sizes:
        assert_at_most(draws[k], evidence)


def hierarchy_pair(truth: Hierarchy) -> tuple[Callable[..., None], Callable[..., None]]:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(truth.level + mu, 1.0))
            pyro.sample("x", dist.Normal(z, truth.noise), obs=x)

    def guide(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(truth.loc, truth.log_sd.exp()))
        with pyro.plate("data", len(x)):
            loc = truth.gain * x + truth.pull * mu
            pyro.sample("z", dist.Normal(loc, truth.local.exp()))

    return model, guide


@pytest.mark.parametrize(
    ("loss", "inner"),
    [(px.ELBO(1), reference.expected_elbo), (px.IWAE(2), reference.expected_iwae)],
    ids=["elbo", "iwae"],
)
def test_locally_enhanced_bound_is_the_quadrature(loss: Any, inner: Any) -> None:
    truth = Hierarchy()
    expected = truth.expected_bound(X, inner).detach()
    values = -losses_of(loss, *hierarchy_pair(truth), X, 500)
    assert_mean(values, expected)
    if isinstance(loss, px.IWAE):
        lower = truth.expected_bound(X, reference.expected_elbo).detach()
        with pytest.raises(AssertionError, match="expected mean"):
            assert_mean(values, lower)


def test_pyros_elbo_has_the_same_expectation() -> None:
    pair = hierarchy_pair(Hierarchy())
    pyros = pyro.infer.Trace_ELBO()
    ours = []
    theirs = []
    for seed in range(300):
        pyro.set_rng_seed(seed)
        ours.append(px.ELBO().loss(*pair, X))
        pyro.set_rng_seed(seed)
        theirs.append(pyros.loss(*pair, X))
    assert_paired_mean(torch.tensor(ours), torch.tensor(theirs))
