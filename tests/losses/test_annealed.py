"""KL annealing: what β multiplies, when it moves, and what a fit says about it."""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import reference
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormalMessenger
from reference import log_normal
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyro_ext as px
from helpers import assert_mean

X = torch.linspace(-1.0, 2.0, 10)
quiet = partial(px.fit, progress=False)


class Guide(nn.Module):
    """q(mu) q(z | mu, x), far from the posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.params = nn.Parameter(torch.tensor([0.2, -0.1, 0.3, 0.1]))

    def forward(self, x: Tensor) -> None:
        loc, log_sd, gain, local = self.params
        mu = pyro.sample("mu", dist.Normal(loc, log_sd.exp()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(gain * x + 0.5 * mu, local.exp()))


def model(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.factor("kept", -0.1 * z)
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def expected(beta: float, params: Tensor) -> Tensor:
    """E [log p(x | z) + factor + beta (log p(z) - log q(z))], by quadrature."""
    loc, log_sd, gain, local = params
    eps, weights = reference.gauss_hermite(20)
    mu = (loc + log_sd.exp() * eps)[:, None, None]
    z = gain * X + 0.5 * mu + local.exp() * eps[:, None]
    kept = log_normal(X, z, 0.7) - 0.1 * z
    latent = log_normal(z, mu, 1.0)
    latent = latent - log_normal(z, gain * X + 0.5 * mu, local.exp())
    shared = log_normal(mu, 0.0, 1.0) - log_normal(mu, loc, log_sd.exp())
    inner = torch.einsum("i,mis->m", weights, kept + beta * latent)
    return weights @ (inner + beta * shared[:, 0, 0])


# ---------------------------------------------------------------------- what β multiplies


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_factor_of_the_model_keeps_its_weight(beta: float) -> None:
    """Draw for draw: Pyro marks each ``pyro.factor`` as auxiliary, the model's too."""

    def more(x: Tensor) -> None:
        model(x)
        pyro.factor("more", torch.tensor(5.0))

    values = []
    for this in (model, more):
        pyro.set_rng_seed(3)
        values.append(px.Annealed(px.ELBO(2), beta).loss(this, Guide(), X))
    assert values[0] - values[1] == pytest.approx(5.0, abs=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_factor_of_the_guide_is_part_of_its_density(beta: float) -> None:
    def with_factor(x: Tensor) -> None:
        guide(x)
        pyro.factor("jacobian", torch.tensor(5.0), has_rsample=True)

    values, guide = [], Guide()
    for this in (guide, with_factor):
        pyro.set_rng_seed(3)
        values.append(px.Annealed(px.ELBO(2), beta).loss(model, this, X))
    assert values[1] - values[0] == pytest.approx(5.0 * beta, abs=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize(
    "elbo",
    [
        px.ELBO(2),
        px.ELBO(2, estimator="stl"),
        px.ELBO(2, estimator="score"),
        px.ELBO(2, form="kl"),
        px.ELBO(2, form="entropy"),
    ],
    ids=repr,
)
def test_value_and_gradient(elbo: px.ELBO, beta: float) -> None:
    pyro.set_rng_seed(0)
    guide = Guide()
    exact = -expected(beta, guide.params)
    (slope,) = torch.autograd.grad(exact, guide.params)
    loss = px.Annealed(elbo, beta)
    values, grads = [], []
    for _ in range(200):
        value = loss.differentiable_loss(model, guide, X)
        (grad,) = torch.autograd.grad(value, guide.params)
        values.append(value.detach())
        grads.append(grad)
    assert_mean(torch.stack(values), exact.detach())
    assert_mean(torch.stack(grads), slope)


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def test_score_gradient_of_discrete_latents() -> None:
    """Against the sum over both values; β on the score function itself would be seen."""
    pyro.set_rng_seed(1)
    logit = torch.tensor(0.4, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=logit))

    q = dist.Bernoulli(logits=logit)
    prob = logit.sigmoid()
    likelihood = (1 - prob) * log_normal(X, 0.0, 1.0) + prob * log_normal(X, 1.0, 1.0)
    exact = 0.25 * len(X) * kl_divergence(q, dist.Bernoulli(0.3)) - likelihood.sum()
    (slope,) = torch.autograd.grad(exact, logit)
    loss = px.Annealed(px.ELBO(3, estimator="score"), 0.25)
    draws = [loss.differentiable_loss(discrete, guide, X) for _ in range(800)]
    grads = torch.stack([torch.autograd.grad(draw, logit)[0] for draw in draws])
    assert_mean(torch.stack(draws), exact.detach())
    assert_mean(grads, slope)


def test_beta_one_is_the_elbo() -> None:
    pyro.set_rng_seed(2)
    plain = px.ELBO(3).loss(model, guide := Guide(), X)
    pyro.set_rng_seed(2)
    assert px.Annealed(px.ELBO(3), 1.0).loss(model, guide, X) == plain


def test_auxiliary_sites_and_mini_batches() -> None:
    """With a divergence that has no variance: the scale N/B and β multiply."""

    def unseen(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=False):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for family in (px.Diagonal(), px.FullCovariance()):
        guide = px.AutoPerDatapoint(unseen, family=family)
        loss = px.Annealed(px.ELBO(2), 0.25)
        plain = px.ELBO(2)
        options: dict[str, Any] = {"num_steps": 1, "batch_size": 5, "seed": 3}
        still = partial(torch.optim.SGD, lr=0.0)
        annealed = quiet(unseen, guide, loss, X, still, **options).losses
        assert annealed == pytest.approx(
            0.25 * quiet(unseen, guide, plain, X, still, **options).losses
        )


# ---------------------------------------------------------------------- when it moves


def test_svi_counts_gradients_and_no_evaluations() -> None:
    loss = px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=4))
    svi = SVI(model, Guide(), pyro.optim.Adam({"lr": 1e-3}), loss=loss)
    betas = []
    for _ in range(6):
        svi.evaluate_loss(X)
        betas.append(loss.beta)
        svi.step(X)
    assert betas == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("schedule", [px.LinearSchedule, px.CosineSchedule])
def test_schedules(schedule: Any) -> None:
    steps = schedule(0.2, 1.0, num_steps=100)
    values = [steps(t) for t in range(150)]
    assert values[0] == 0.2
    assert values[100:] == [1.0] * 50
    assert values[50] == pytest.approx(0.6)
    assert all(a < b for a, b in pairwise(values[:101]))
    whole = schedule(0.2, 1.0, num_steps=1.0)
    assert whole(9, 10) == 1.0 > whole(8, 10)
    half = schedule(1.0, 0.0, num_steps=0.5)
    assert half(50, 101) == 0.0 < half(49, 101)


def test_fit_follows_the_schedule_and_starts_again() -> None:
    loss = px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=0.5))
    first = quiet(model, Guide(), loss, X, num_steps=60, seed=0)
    again = quiet(model, Guide(), loss, X, num_steps=60, seed=0)
    np.testing.assert_array_equal(first.losses, again.losses)
    assert loss.beta == 1.0


# ---------------------------------------------------------------------- the plain ELBO beside it


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_run_records_the_plain_elbo_per_datum(beta: float) -> None:
    guide = Guide()
    loss = px.Annealed(px.ELBO(400), beta)
    still = partial(torch.optim.SGD, lr=0.0)
    run = quiet(model, guide, loss, X, still, num_steps=110, seed=0)
    assert run.num_data == len(X)
    assert run.elbo_steps.tolist() == [0, 50, 100, 109]
    exact = expected(1.0, guide.params).item() / len(X)
    assert run.elbo_per_datum == pytest.approx([exact] * 4, abs=0.1)
    assert (run.elbo_per_datum == -run.losses[run.elbo_steps] / len(X)).all() == (beta == 1)


@pytest.mark.parametrize("loss", [px.ELBO(), px.IWAE(5)], ids=repr)
def test_recording_leaves_the_training_as_it_was(loss: Any) -> None:
    """The other pass has random numbers of its own."""
    short = quiet(model, Guide(), loss, X, num_steps=52, seed=1)
    long = quiet(model, Guide(), loss, X, num_steps=55, seed=1, optim=short_optim())
    same = quiet(model, Guide(), loss, X, num_steps=52, seed=1, optim=short_optim())
    np.testing.assert_array_equal(long.losses[:52], same.losses)
    assert short.elbo_steps.tolist() == [0, 50, 51]


def short_optim() -> Any:
    return partial(torch.optim.Adam, lr=0.01)


def test_mini_batches_count_all_rows_and_no_plate_counts_one() -> None:
    run = quiet(model, Guide(), px.ELBO(), X, num_steps=2, batch_size=5)
    assert run.num_data == len(X)

    def single() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    assert quiet(single, num_steps=2).num_data == 1


# ---------------------------------------------------------------------- errors


def test_run_that_is_too_short_raises() -> None:
    loss = px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=100))
    message = r"reaches its end value 1 within the 100 steps.*stands at 0.99.*num_steps=101"
    with pytest.raises(ValueError, match=message):
        quiet(model, Guide(), loss, X, num_steps=100)
    quiet(model, Guide(), loss, X, num_steps=101)


def test_fraction_needs_a_run() -> None:
    loss = px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=0.5))
    with pytest.raises(ValueError, match=r"expected num_steps as an int outside px.fit"):
        loss.loss(model, Guide(), X)


@pytest.mark.parametrize("loss", [px.IWAE(3), px.WakeSleep(3)], ids=repr)
def test_other_losses_raise(loss: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a px.ELBO; got .*Write: px.Annealed\(px.ELBO"):
        px.Annealed(loss, 1.0)


def test_number_is_a_constant() -> None:
    assert px.Annealed(px.ELBO(), 4.0).beta == 4.0
    with pytest.raises(ValueError, match=r"finite start >= 0; got -1.0"):
        px.Annealed(px.ELBO(), -1.0)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((-1.0, 1.0, 10), "finite start >= 0; got -1.0"),
        ((0.0, float("inf"), 10), "finite end >= 0; got inf"),
        ((0.0, 1.0, 0), "got 0. Write"),
        ((0.0, 1.0, 1.5), "got 1.5. Write"),
        ((0.0, 1.0, True), "got True. Write"),
    ],
)
def test_schedule_out_of_range_raises(args: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        px.LinearSchedule(*args)


def test_messages_name_the_elbo() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))

    with pytest.raises(ValueError, match=r"Write: px.ELBO\(estimator='score'\)"):
        px.Annealed(px.ELBO(), 1.0).differentiable_loss(discrete, guide, X)
    stl = px.Annealed(px.ELBO(estimator="stl"), 1.0)
    with pytest.raises(ValueError, match=r"Write: px.Annealed\(px.ELBO\(\), LinearSchedule"):
        stl.differentiable_loss(model, AutoNormalMessenger(model), X)
    assert repr(stl).startswith("Annealed(ELBO(")
