"""Each gradient estimator against the exact gradient of its bound.

The tolerance is a false-alarm rate: a t-test of the mean of independent gradients against
quadrature. Model and guide parameters are tested apart, because an estimator may be wrong for one
of them alone. Beside each test stands the bias that it finds; where the wrong estimator is easy to
build, the test builds it and shows that it fails.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import reference
import torch
from pyro import poutine
from reference import Gaussian, Hierarchy
from torch import Tensor, nn

import pyro_ext as px
from helpers import assert_mean
from pyro_ext._terms import Term
from pyro_ext.testing import GammaPoisson

X = torch.linspace(-1.5, 2.0, 8).repeat(10)
MASK = torch.arange(len(X)) % 3 > 0
ROWS = 300
MODEL, GUIDE = slice(0, 2), slice(2, 5)

CORRECT: dict[str, Any] = {
    "elbo-reparam": px.ELBO(2),
    "elbo-stl": px.ELBO(2, estimator="stl"),
    "iwae-reparam": px.IWAE(2),
    "iwae-dreg": px.IWAE(2, estimator="dreg"),
}


class Pair(nn.Module):
    """The Pyro side of `Gaussian`: a guide module that holds the guide's parameters."""

    def __init__(self, truth: Gaussian, mask: Tensor | None = None, subsample: int | None = None):
        super().__init__()
        self.truth, self.mask, self.subsample = truth, mask, subsample
        for name in ("shift", "gain", "log_sd"):
            self.register_parameter(name, getattr(truth, name))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), self.subsample) as rows:
            z = pyro.sample("z", dist.Normal(self.truth.prior, 1.0))
            likelihood = dist.Normal(self.truth.slope * z, self.truth.noise)
            with poutine.mask(
                mask=torch.ones(()).bool() if self.mask is None else self.mask[rows]
            ):
                pyro.sample("x", likelihood, obs=x[rows])

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), self.subsample) as rows:
            loc = self.shift + self.gain * x[rows]
            pyro.sample("z", dist.Normal(loc, self.log_sd.exp()))


def gradients(loss: Any, model: Any, guide: Any, params: Any, *args: Tensor, rows: int) -> Tensor:
    """Independent draws of the gradient of the loss, shape ``(rows, params)``."""
    draws = []
    for _ in range(rows):
        grads = torch.autograd.grad(loss.differentiable_loss(model, guide, *args), params)
        draws.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(draws)


def exact_gradient(bound: Tensor, params: Any) -> Tensor:
    return torch.stack(torch.autograd.grad(-bound, params))


def exact_of(loss: Any, truth: Gaussian, mask: Tensor | None = None) -> Tensor:
    expected = reference.expected_elbo if isinstance(loss, px.ELBO) else reference.expected_iwae
    return exact_gradient(expected(lambda eps: truth.log_w(eps, X, mask)).sum(), truth.params)


def test_quadrature_is_the_closed_form_of_the_elbo() -> None:
    """The reference of the other tests: log w is quadratic, so its mean is known."""
    truth = Gaussian()
    mean, variance = truth.shift + truth.gain * X, (2 * truth.log_sd).exp()
    error = (X - truth.slope * mean) ** 2 + truth.slope**2 * variance
    closed = (
        -0.5 * ((mean - truth.prior) ** 2 + variance)
        - 0.5 * error / truth.noise**2
        - torch.tensor(2 * torch.pi).log() / 2
        - torch.tensor(truth.noise).log()
        + truth.log_sd
        + 0.5
    ).sum()
    expected = exact_gradient(closed, truth.params)
    torch.testing.assert_close(exact_of(px.ELBO(), truth), expected, rtol=1e-10, atol=1e-10)


def test_quadrature_of_the_iwae_bound_has_converged() -> None:
    """Its error is a fifth of the standard errors of the tests below, at most."""
    truth = Gaussian()
    fine, coarse = (
        exact_gradient(
            reference.expected_iwae(lambda eps: truth.log_w(eps, X), nodes).sum(), truth.params
        )
        for nodes in (160, 100)
    )
    torch.testing.assert_close(fine, coarse, rtol=0, atol=0.01)
    pair = Pair(truth)
    draws = gradients(px.IWAE(2), pair.model, pair, truth.params, X, rows=50)
    assert (draws.std(0) / ROWS**0.5 > 0.05).all()


@pytest.mark.parametrize("name", CORRECT)
def test_estimator_is_unbiased(name: str) -> None:
    """Finds a path that is cut, a score that is missing, weights of the wrong power."""
    truth = Gaussian()
    pair = Pair(truth)
    draws = gradients(CORRECT[name], pair.model, pair, truth.params, X, rows=ROWS)
    exact = exact_of(CORRECT[name], truth)
    for part in (MODEL, GUIDE):
        assert_mean(draws[:, part], exact[part])


@pytest.mark.parametrize("name", CORRECT)
def test_estimator_is_unbiased_under_a_mask(name: str) -> None:
    """Finds a mask that is left out, or that multiplies the weight instead of the likelihood."""
    truth = Gaussian()
    pair = Pair(truth, MASK)
    draws = gradients(CORRECT[name], pair.model, pair, truth.params, X, rows=ROWS)
    exact, unmasked = exact_of(CORRECT[name], truth, MASK), exact_of(CORRECT[name], truth)
    for part in (MODEL, GUIDE):
        assert_mean(draws[:, part], exact[part])
        with pytest.raises(AssertionError, match="expected mean"):
            assert_mean(draws[:, part], unmasked[part])


@pytest.mark.parametrize("name", CORRECT)
def test_estimator_is_unbiased_under_subsampling(name: str) -> None:
    """Finds a scale N/B that is missing, inside the logarithm, or squared."""
    truth = Gaussian()
    pair = Pair(truth, subsample=len(X) // 2)
    draws = gradients(CORRECT[name], pair.model, pair, truth.params, X, rows=ROWS)
    exact = exact_of(CORRECT[name], truth)
    for part in (MODEL, GUIDE):
        assert_mean(draws[:, part], exact[part])
        with pytest.raises(AssertionError, match="expected mean"):
            assert_mean(draws[:, part] / 2, exact[part])


def test_sticking_the_landing_is_biased_for_two_particles() -> None:
    """The score that it leaves out has mean zero for K = 1 alone; the model's part is right.

    The bias is 20 in the gradient of the guide's shift, -70, here: 23 standard errors.
    """
    truth = Gaussian()
    pair = Pair(truth)
    loss = px.IWAE(2, estimator="stl")
    draws = gradients(loss, pair.model, pair, truth.params, X, rows=ROWS)
    exact = exact_of(loss, truth)
    assert_mean(draws[:, MODEL], exact[MODEL])
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws[:, GUIDE], exact[GUIDE])


@pytest.mark.parametrize("power", [1, 3])
def test_wrong_power_of_the_weights_fails(power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubly reparameterized gradients weigh the path by w², of which one w is the bound's own.

    With w the gradient of the guide's shift, -70, is off by -20, with w³ by 8: 23 and 11 standard
    errors.
    """
    right = Term.scale_path
    monkeypatch.setattr(Term, "scale_path", lambda term, w: right(term, w ** (power - 1)))
    truth = Gaussian()
    pair = Pair(truth)
    loss = px.IWAE(2, estimator="dreg")
    draws = gradients(loss, pair.model, pair, truth.params, X, rows=ROWS)
    exact = exact_of(loss, truth)
    assert_mean(draws[:, MODEL], exact[MODEL])
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws[:, GUIDE], exact[GUIDE])


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


# ---------------------------------------------------------------------- automatic guides


def auto_guides() -> dict[str, Callable[[Any], nn.Module]]:
    return {
        "AutoPerDatapoint": lambda model: px.AutoPerDatapoint(model, init_scale=0.6),
        "AutoAmortized": lambda model: px.AutoAmortized(
            model, lambda x: x.unsqueeze(-1), init_scale=0.6
        ),
        "AutoNormal": lambda model: pyro_auto.AutoNormal(model, init_scale=0.6),
    }


@pytest.mark.parametrize("name", auto_guides())
def test_constrained_latents_have_the_same_expectation_under_each_estimator(name: str) -> None:
    """Draws in unconstrained space and deltas in the model's: finds a path that is scaled twice.

    Reparameterized and doubly reparameterized gradients of one bound have the same mean, and so
    have reparam and stl of the ELBO; the stl gradient of the IWAE bound has another.
    """
    exact = GammaPoisson.simulate(200)
    guide = auto_guides()[name](exact.model)
    guide(*exact.args)
    params = list(guide.parameters())

    def draws(loss: Any) -> Tensor:
        rows = gradients(loss, exact.model, guide, params, *exact.args, rows=80)
        return rows.unflatten(1, (-1, 20)).sum(1) if rows.shape[1] > 20 else rows

    plain = draws(px.IWAE(3))
    assert_mean(draws(px.IWAE(3, estimator="dreg")) - plain, 0.0)
    assert_mean(draws(px.ELBO(3, estimator="stl")) - draws(px.ELBO(3)), 0.0)
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws(px.IWAE(3, estimator="stl")) - plain, 0.0)


def test_noise_of_dreg_falls_where_that_of_reparam_does_not() -> None:
    """The signal-to-noise ratio of the guide's gradient: what dreg is for."""
    truth = Gaussian()
    pair = Pair(truth)

    def ratio(estimator: str) -> float:
        loss = px.IWAE(32, estimator=estimator)
        draws = gradients(loss, pair.model, pair, truth.guide_params, X, rows=100)
        return float((draws.mean(0).abs() / draws.std(0)).mean())

    assert ratio("dreg") > 2 * ratio("reparam")
