"""A scale that is a tensor goes where the same number would: outside the log, if it is shared."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from cases import LOSSES, bound_of, sign
from pyro import poutine
from torch import Tensor
from weight_pairs import NUM, X, close, local_guide, local_log_p, local_log_q, local_model

import pyro_ext as px

EACH = torch.linspace(0.5, 3.0, NUM)
every_loss = pytest.mark.parametrize("name", LOSSES)


def scaled(scale: Any, other: Any = None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The pair, with a scale around all of it, or another around the guide."""
    other = scale if other is None else other
    return poutine.scale(local_model, scale), poutine.scale(local_guide, other)


def weights(pair: Any, **options: Any) -> px.weights.LogWeights:
    pyro.set_rng_seed(3)
    return px.log_weights(*pair, X, num_particles=5, **options)


def gradients(loss: Any, pair: Any, params: Any) -> tuple[Tensor, ...]:
    pyro.set_rng_seed(3)
    value = loss.differentiable_loss(*pair, X)
    return value, *torch.autograd.grad(value, params)


class Trained:
    """The pair, with a parameter of each, and a scale around all sites of both."""

    def __init__(self, scale: Any) -> None:
        self.theta, self.phi = (torch.tensor(v, requires_grad=True) for v in (0.3, 0.4))
        self.scale = scale

    @property
    def params(self) -> tuple[Tensor, Tensor]:
        return self.theta, self.phi

    def model(self, x: Tensor) -> None:
        theta = pyro.param("theta", lambda: self.theta)
        with poutine.scale(scale=self.scale), pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(self, x: Tensor) -> None:
        phi = pyro.param("phi", lambda: self.phi)
        with poutine.scale(scale=self.scale), pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(phi * x, 1.1))

    @property
    def pair(self) -> tuple[Any, Any]:
        return self.model, self.guide


# ---------------------------------------------------------------------- log weights


@pytest.mark.parametrize(
    "scale",
    [torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(0.25, dtype=torch.float32)],
    ids=["number", "vector of one", "single precision"],
)
def test_a_tensor_around_model_and_guide_goes_outside(scale: Tensor) -> None:
    (term,) = (lw := weights(scaled(scale))).terms
    assert isinstance(term.scale, Tensor)
    assert term.scale.item() == 0.25
    close(term.log_p, local_log_p(lw.latents["z"]))
    close(term.log_q, local_log_q(lw.latents["z"]))
    expected = weights(scaled(0.25)).estimate(px.bounds.iwae)
    close(lw.estimate(px.bounds.iwae), expected)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("outer", [1, 3])
@pytest.mark.parametrize(
    "others", [(0.25, torch.tensor(0.25)), (torch.tensor(0.25), 0.25)], ids=["guide", "model"]
)
def test_a_number_and_a_tensor_of_its_value_are_one_scale(
    others: Any,
    outer: int,
    joint: bool,  # noqa: FBT001
) -> None:
    options = {"num_outer": outer, "joint": joint}
    (term,), (expected,) = (
        weights(scaled(*others), **options).terms,
        weights(scaled(0.25), **options).terms,
    )
    assert float(term.scale) == expected.scale == 0.25 / outer
    close(term.log_p, expected.log_p)
    close(term.log_q, expected.log_q)


@pytest.mark.parametrize("scales", [(0.25, 1.0), (0.25, 0.5), (1.0, 0.25)], ids=str)
def test_a_tensor_that_is_not_shared_stays_inside(scales: tuple[float, float]) -> None:
    """As the same numbers do."""
    (term,) = weights(scaled(*map(torch.tensor, scales))).terms
    (expected,) = weights(scaled(*scales)).terms
    assert float(term.scale) == expected.scale == 1.0
    close(term.log_p, expected.log_p)
    close(term.log_q, expected.log_q)


def test_each_element_has_a_scale_of_its_own() -> None:
    (term,) = (lw := weights(scaled(EACH))).terms
    close(term.scale, EACH)
    close(term.log_p, local_log_p(lw.latents["z"]))
    log_w = local_log_p(lw.latents["z"]) - local_log_q(lw.latents["z"])
    close(lw.estimate(px.bounds.iwae), (EACH * reference.iwae(log_w)).sum())


def test_elements_whose_scales_agree_by_themselves() -> None:
    """Outside where model and guide agree, inside where they do not: each element is a bound."""
    other = torch.where(torch.arange(NUM) < 2, EACH, 1.0)
    (term,) = (lw := weights(scaled(EACH, other))).terms
    shared = torch.arange(NUM) < 2
    close(term.scale, torch.where(shared, EACH, 1.0))
    z = lw.latents["z"]
    close(term.log_p, torch.where(shared, 1.0, EACH) * local_log_p(z))
    close(term.log_q, local_log_q(z))


def test_scales_of_the_elements_cannot_leave_a_joint_weight() -> None:
    (term,) = (lw := weights(scaled(EACH), joint=True)).terms
    assert term.scale == 1.0
    close(term.log_p, (EACH * local_log_p(lw.latents["z"])).sum(-1))


@pytest.mark.parametrize("dim", [-1, -2])
def test_a_data_plate_beside_another(dim: int) -> None:
    """The scale of a row is found whichever dim the rows have; one of pixels stays inside."""
    other = -3 - dim
    x = torch.randn(NUM, 3) if dim == -2 else torch.randn(3, NUM)
    rows = EACH.reshape((NUM, 1) if dim == -2 else (NUM,))
    pixels = torch.tensor([0.5, 1.0, 2.0]).reshape((3,) if dim == -2 else (3, 1))

    def model() -> None:
        with poutine.scale(scale=rows), pyro.plate("data", NUM, dim=dim):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            with pyro.plate("pixels", 3, dim=other), poutine.scale(scale=pixels):
                pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide() -> None:
        with poutine.scale(scale=rows), pyro.plate("data", NUM, dim=dim):
            pyro.sample("z", dist.Normal(0.1, 1.1))

    lw = px.log_weights(model, guide, num_particles=5)
    (term,) = lw.terms
    z = lw.latents["z"].reshape(5, NUM)
    by_row = x if dim == -2 else x.T
    likelihood = reference.log_normal(by_row, z[..., None], 0.8) * pixels.flatten()
    # The sites of an element share no scale, so all of them stay inside.
    assert torch.all(torch.as_tensor(term.scale) == 1)
    close(term.log_p, EACH * (reference.log_normal(z, 0.3, 1.0) + likelihood.sum(-1)))
    pixels.fill_(1.0)
    (term,) = px.log_weights(model, guide, num_particles=5).terms
    close(torch.as_tensor(term.scale), EACH)


def test_a_scale_outside_of_a_subsample() -> None:
    """Dividing N/B out again rounds: the scales of all sites are the same up to that."""
    scale = torch.tensor(0.1)

    def model(x: Tensor) -> None:
        with poutine.scale(scale=scale), pyro.plate("data", 7, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.Normal(0.3, 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x[:3])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 7, subsample=torch.arange(3)), poutine.scale(scale=scale):
            pyro.sample("z", dist.Normal(0.4 * x[:3], 1.1))

    (term,) = (lw := weights((model, guide))).terms
    torch.testing.assert_close(term.scale, torch.tensor([0.1 * 7 / 3]))
    close(term.log_p, local_log_p(lw.latents["z"], X[:3]))


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("particles", [1, 5])
@every_loss
def test_every_loss_is_that_of_the_number(name: str, particles: int) -> None:
    loss = LOSSES[name](particles)
    expected = gradients(loss, (number := Trained(2.5)).pair, number.params)
    pyro.clear_param_store()
    found = gradients(loss, (tensor := Trained(torch.tensor(2.5))).pair, tensor.params)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", [px.IWAE(6), px.MIWAE(4, 6), px.Renyi(6, estimator="dreg")])
def test_chunks_of_it(loss: Any) -> None:
    """Value and gradient are linear in a scale outside, which may differ among elements."""

    def chunked(scale: Any) -> tuple[Tensor, ...]:
        pyro.clear_param_store()
        return gradients(loss.in_chunks(2), (case := Trained(scale)).pair, case.params)

    expected = chunked(4.0)
    torch.testing.assert_close(chunked(torch.tensor(4.0)), expected, rtol=1e-12, atol=1e-12)
    parts = zip(chunked(EACH), chunked(4 - EACH), strict=True)
    torch.testing.assert_close(tuple(map(sum, parts)), expected, rtol=1e-12, atol=1e-12)


@every_loss
def test_every_loss_with_a_scale_for_each_element(name: str) -> None:
    """The value is a sum over elements, and each counts as often as its scale says."""
    loss, case = LOSSES[name](5), Trained(EACH)
    value, *_ = gradients(loss, case.pair, case.params)
    pyro.set_rng_seed(3)
    inner, outer = loss.particles.inner, loss.particles.outer
    lw = px.log_weights(local_model, local_guide, X, num_particles=inner, num_outer=outer)
    elements = bound_of(loss)(lw.terms[0].log_w).reshape(-1, NUM).mean(0)
    torch.testing.assert_close(value, sign(loss) * (EACH * elements).sum(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("estimator", ["reparam", "stl", "score"])
def test_gradient_by_the_scale_itself(estimator: str) -> None:
    """The ELBO is linear in each scale, shared or not: model and guide have one of their own."""
    one, other = (torch.tensor(2.5, requires_grad=True) for _ in range(2))
    loss = px.ELBO(5, estimator=estimator)
    found = gradients(loss, scaled(one, other), (one, other))
    pyro.set_rng_seed(3)
    elbo = px.log_weights(local_model, local_guide, X, num_outer=5)
    log_p, log_q = elbo.terms[0].log_p.sum() / 5, elbo.terms[0].log_q.sum() / 5
    torch.testing.assert_close(found, (2.5 * (log_q - log_p), -log_p, log_q))


def test_gradient_by_a_scale_outside_the_log() -> None:
    scale = torch.tensor(2.5, requires_grad=True)
    value, grad = gradients(px.IWAE(5), scaled(scale), [scale])
    torch.testing.assert_close(grad, value / 2.5)


@pytest.mark.parametrize("loss", [px.IWAE(6).in_chunks(2), px.PIWAE(2, 2)], ids=repr)
def test_losses_that_would_leave_a_gradient_by_the_scale_out(loss: Any) -> None:
    scale = torch.tensor(2.5, requires_grad=True)
    message = r"expected a poutine.scale without gradient.*Write: poutine.scale\(scale=s.detach"
    with pytest.raises(ValueError, match=message):
        loss.differentiable_loss(*scaled(scale), X)
    assert isinstance(loss.loss(*scaled(scale), X), float)
