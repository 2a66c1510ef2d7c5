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
from cases import LOSSES, bound_of, sign
from losses.gradients import GUIDE, MODEL, exact_gradient, gradients
from pyro import poutine
from reference import Gaussian
from torch import Tensor, nn

import pyro_ext as px
from helpers import assert_mean
from pyro_ext._terms import Term
from pyro_ext.testing import GammaPoisson

X = torch.linspace(-1.5, 2.0, 8).repeat(10)
MASK = torch.arange(len(X)) % 4 > 0
ROWS = 150


def correct() -> dict[str, Any]:
    """Every loss with every unbiased estimator, for two particles, and Rényi of more orders."""
    biased = {name for name in LOSSES if name.endswith("-stl")} - {"ELBO-stl", "Annealed-stl"}
    found: dict[str, Any] = {name: LOSSES[name](2) for name in LOSSES if name not in biased}
    for alpha in (-1.0, 0.0, 2.0):
        for estimator in ("reparam", "dreg", "vimco"):
            found[f"Renyi({alpha:g})-{estimator}"] = px.Renyi(2, alpha=alpha, estimator=estimator)
    found["CUBO(3)-dreg"] = px.CUBO(2, order=3.0, estimator="dreg")
    found["PIWAE(2, 1)-reparam"] = px.PIWAE(2, 1)
    found["PIWAE(2, 1)-dreg"] = px.PIWAE(2, 1, estimator="dreg")
    return found


CORRECT = correct()
OWN = [
    name
    for name in CORRECT
    if name in LOSSES and not name.startswith("Annealed") and not name.endswith("-vimco")
]
"""Without other options, and without those that are others where sites are reparameterized."""


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


def exact_of(loss: Any, truth: Gaussian, mask: Tensor | None = None) -> Tensor:
    """The gradient of the loss by quadrature, for one of the equal blocks of eight data."""
    x, shown = X[:8], None if mask is None else mask[:8]
    return len(X) // 8 * exact_by(loss, truth, lambda eps: truth.log_w(eps, x, shown), x)


def exact_by(
    loss: Any, truth: Gaussian, log_w: Callable[[Tensor], Tensor], x: Tensor, nodes: int = 100
) -> Tensor:
    """The gradient of the loss, whatever its own for model and guide: E over K-tuples of noise."""

    def expected(particles: int) -> Tensor:
        count = {1: nodes, 2: nodes, 4: 16}[particles]
        eps, weights = reference.gauss_hermite(count)
        rows = log_w(eps)
        return sum(
            reference.expected_bound(bound_of(loss), weights, rows[:, i], particles).sum()
            for i in range(rows.shape[1])
        )

    inner, outer = loss.particles.inner, loss.particles.outer
    gradient = -sign(loss) * exact_gradient(expected(inner), truth.params)
    if isinstance(loss, px.PIWAE):
        gradient[MODEL] = exact_gradient(expected(inner * outer), truth.params)[MODEL]
    if isinstance(loss, px.WakeSleep):
        eps, _ = reference.gauss_hermite(nodes)
        z = (truth.shift + truth.gain * x + truth.log_sd.exp() * eps[:, None]).detach()
        wake = reference.expected_wake(truth.log_q(z, x), log_w(eps)).sum()
        gradient[GUIDE] = torch.stack(torch.autograd.grad(-wake, truth.guide_params))
    return gradient


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


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_estimator_is_unbiased_under_a_mask(name: str) -> None:
    """Finds a mask that is left out, or that multiplies the weight instead of the likelihood."""
    truth = Gaussian()
    pair = Pair(truth, MASK)
    draws = gradients(CORRECT[name], pair.model, pair, truth.params, X, rows=ROWS)
    exact, unmasked = exact_of(CORRECT[name], truth, MASK), exact_of(CORRECT[name], truth)
    for part in (MODEL, GUIDE):
        assert_mean(draws[:, part], exact[part])
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws, unmasked)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_estimator_is_unbiased_under_subsampling(name: str) -> None:
    """Finds a scale N/B that is missing, inside the logarithm, or squared."""
    truth = Gaussian()
    pair = Pair(truth, subsample=len(X) // 2)
    draws = gradients(CORRECT[name], pair.model, pair, truth.params, X, rows=ROWS)
    exact = exact_of(CORRECT[name], truth)
    for part in (MODEL, GUIDE):
        assert_mean(draws[:, part], exact[part])
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws / 2, exact)


@pytest.mark.parametrize("name", OWN)
def test_estimator_is_unbiased_where_everything_meets(name: str) -> None:
    """Nested plates, a mask and a tempered likelihood inside the weight; a scale and N/B outside.

    Each element has three observations, of which some are masked; the likelihood counts half, the
    whole model and guide three times, and a mini-batch is a quarter of the data.
    """
    truth = Gaussian()
    x = torch.stack([X[:16], X[:16].flip(0) / 2, X[:16] ** 2 / 2], -1)
    shown = torch.arange(48).reshape(16, 3) % 5 > 0

    class Guide(Pair):
        def forward(self, x: Tensor, shown: Tensor) -> None:
            with poutine.scale(scale=3.0), pyro.plate("data", len(x), dim=-2):
                loc = self.shift + self.gain * x[:, :1]
                pyro.sample("z", dist.Normal(loc, self.log_sd.exp()))

    def model(x: Tensor, shown: Tensor) -> None:
        with poutine.scale(scale=3.0), pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(truth.prior, 1.0))
            with (
                pyro.plate("items", 3, dim=-1),
                poutine.mask(mask=shown),
                poutine.scale(scale=0.5),
            ):
                pyro.sample("x", dist.Normal(truth.slope * z, truth.noise), obs=x)

    def log_w(eps: Tensor) -> Tensor:
        z = truth.shift + truth.gain * x[:, 0] + truth.log_sd.exp() * eps[:, None]
        items = reference.log_normal(x, truth.slope * z[..., None], truth.noise)
        likelihood = torch.where(shown, items, 0.0).sum(-1) / 2
        return reference.log_normal(z, truth.prior, 1.0) + likelihood - truth.log_q(z, x[:, 0])

    guide, loss = Guide(truth), CORRECT[name]
    draws = []
    for _ in range(ROWS):
        rows = torch.randperm(16)[:4]
        with px.MiniBatch("data", 16, rows, sliced=True):
            draws.append(
                gradients(loss, model, guide, truth.params, x[rows], shown[rows], rows=1)[0]
            )
    exact = 3 * exact_by(loss, truth, log_w, x[:, 0])
    for part in (MODEL, GUIDE):
        assert_mean(torch.stack(draws)[:, part], exact[part])


def assert_only_the_guide_is_off(loss: Any) -> None:
    """Assert that a gradient has the right mean by the model, and another by the guide."""
    truth = Gaussian()
    pair = Pair(truth)
    draws = gradients(loss, pair.model, pair, truth.params, X, rows=ROWS)
    exact = exact_of(loss, truth)
    assert_mean(draws[:, MODEL], exact[MODEL])
    with pytest.raises(AssertionError, match="expected mean"):
        assert_mean(draws[:, GUIDE], exact[GUIDE])


def test_losses_with_two_gradients_have_two() -> None:
    """PIWAE: the model's is of M K particles, not of K. Wake-sleep: the guide's is of the KL."""
    truth = Gaussian()
    pair = Pair(truth)
    iwae = exact_of(px.IWAE(2), truth)
    for loss, own, other in ((px.PIWAE(2, 2), MODEL, GUIDE), (px.WakeSleep(2), GUIDE, MODEL)):
        draws = gradients(loss, pair.model, pair, truth.params, X, rows=ROWS)
        assert_mean(draws[:, other], iwae[other])
        with pytest.raises(AssertionError, match="expected mean"):
            assert_mean(draws[:, own], iwae[own])


@pytest.mark.parametrize(
    "loss",
    [
        px.Renyi(2, alpha=0.5, estimator="dreg"),
        px.Renyi(2, alpha=-1.0, estimator="dreg"),
        px.CIWAE(2, beta=0.3, estimator="dreg"),
        px.CUBO(2, estimator="dreg"),
    ],
    ids=repr,
)
def test_path_factor_of_another_bound_fails(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The w of IWAE where another bound has its own factor; the model's part does not notice."""
    monkeypatch.setattr(type(loss), "_path_factor", px.IWAE._path_factor)
    assert_only_the_guide_is_off(loss)


@pytest.mark.parametrize("name", [n for n in LOSSES if n.endswith("-stl") and n not in CORRECT])
def test_stl_of_every_bound_but_the_elbo_is_biased(name: str) -> None:
    """The score that it leaves out has mean zero for K = 1 alone; the model's part is right.

    Of IWAE the bias is 20 in the gradient of the guide's shift, -70, here: 16 standard errors.
    """
    assert_only_the_guide_is_off(LOSSES[name](2))


@pytest.mark.parametrize("power", [1, 3])
def test_wrong_power_of_the_weights_fails(power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubly reparameterized gradients weigh the path by w², of which one w is the bound's own.

    With w the gradient of the guide's shift, -70, is off by -20, with w³ by 8: 16 and 8 standard
    errors.
    """
    right = Term.scale_path
    monkeypatch.setattr(Term, "scale_path", lambda term, w: right(term, w ** (power - 1)))
    assert_only_the_guide_is_off(px.IWAE(2, estimator="dreg"))


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
