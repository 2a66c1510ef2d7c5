"""Values of the losses against brute force on the same draws, and against quadrature."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from cases import LOSSES, bound_of, sign
from reference import Gaussian, Hierarchy
from torch import Tensor, nn

import pyro_ext as px
from helpers import assert_at_most, assert_mean, assert_paired_mean

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
