"""The sleep phase: the guide's gradient on dreams, its optimum, and what cannot be dreamed."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from reference import log_normal
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from guides.linear_gaussian import LinearGuide, amortized_full_covariance, amortized_mean_field
from helpers import assert_mean
from models.linear_gaussian import LinearGaussian, data

X = torch.zeros(12)
SLEEP = px.Sleep(observed={"x": 0})


class Guide(nn.Module):
    """q(z | x) = N(shift + gain x, exp(log_sd))."""

    def __init__(self) -> None:
        super().__init__()
        self.params = nn.Parameter(torch.tensor([-0.4, 0.2, 0.1]))

    def forward(self, x: Tensor) -> None:
        shift, gain, log_sd = self.params
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shift + gain * x, log_sd.exp()))


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.3, 1.0))
        pyro.sample("x", dist.Normal(1.2 * z, 0.8), obs=x)


def exact_loss(params: Tensor) -> Tensor:
    """-E log q(z | x) under the model, per datum: second moments of (z, x) are all it takes."""
    shift, gain, log_sd = params
    mean_x, var_x, cov = 1.2 * 0.3, 1.2**2 + 0.8**2, 1.2
    bias = 0.3 - shift - gain * mean_x
    second = 1 - 2 * gain * cov + gain**2 * var_x + bias**2
    return 0.5 * second / (2 * log_sd).exp() - log_normal(torch.zeros(()), 0.0, log_sd.exp())


# ---------------------------------------------------------------------- value, gradient, optimum


def test_value_and_gradient() -> None:
    pyro.set_rng_seed(0)
    guide = Guide()
    exact = len(X) * exact_loss(guide.params)
    (slope,) = torch.autograd.grad(exact, guide.params)
    draws = [SLEEP.differentiable_loss(model, guide, X) for _ in range(800)]
    grads = torch.stack([torch.autograd.grad(draw, guide.params)[0] for draw in draws])
    assert_mean(torch.stack(draws), exact.detach())
    assert_mean(grads, slope)


def test_mini_batches_are_scaled() -> None:
    pyro.set_rng_seed(1)
    guide = Guide()
    still = partial(torch.optim.SGD, lr=0.0)
    run = px.fit(
        model, guide, SLEEP, X, still, num_steps=400, batch_size=4, seed=0, progress=False
    )
    assert_mean(torch.tensor(run.losses), len(X) * exact_loss(guide.params).detach())


@pytest.mark.parametrize("of", [amortized_full_covariance, amortized_mean_field])
def test_guides_of_the_package_are_scored_by_their_density(of: Any) -> None:
    truth = LinearGaussian.random().double()
    x = torch.zeros(6, truth.num_features)
    guide = of(truth)
    guide.setup(x)
    pyro.set_rng_seed(2)
    value = SLEEP.loss(truth, guide, x)
    pyro.set_rng_seed(2)
    dream = poutine.trace(poutine.uncondition(truth)).get_trace(x)
    z, x = dream.nodes["z"]["value"], dream.nodes["x"]["value"]
    assert value == pytest.approx(-guide.log_prob({"z": z}, x).item())


def test_constrained_latents_and_globals_of_our_guides() -> None:
    def hierarchy(x: Tensor) -> None:
        width = pyro.sample("width", dist.Gamma(3.0, 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, width))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    guide = px.AutoAmortized(hierarchy, lambda x: x[:, None])
    guide.setup(X)
    pyro.set_rng_seed(3)
    value = SLEEP.loss(hierarchy, guide, X)
    pyro.set_rng_seed(3)
    nodes: Any = poutine.trace(poutine.uncondition(hierarchy)).get_trace(X).nodes
    latents = {name: nodes[name]["value"] for name in ("width", "z")}
    assert value == pytest.approx(-guide.log_prob(latents, nodes["x"]["value"]).item())


def test_optimum_is_the_exact_posterior() -> None:
    """Of the model's own data, which the given ones (zeros) have nothing to do with."""
    pyro.set_rng_seed(5)
    truth = LinearGaussian.random(num_features=3, latent_dim=2).double()
    guide = amortized_full_covariance(truth)
    px.fit(
        truth,
        guide,
        SLEEP,
        torch.zeros(500, 3),
        partial(Adam, lr=0.05),
        schedule=partial(CosineAnnealingLR, T_max=600),
        num_steps=600,
        seed=0,
        progress=False,
    )
    x = data(200, model=truth)
    log_w = px.log_weights(truth, guide, x, num_particles=50).terms[0].log_w
    divergence = truth.log_evidence_per_datum(x) - log_w.mean(0)
    assert divergence.mean().item() == pytest.approx(0.0, abs=0.02)


def test_exact_guide_has_gradient_of_mean_zero() -> None:
    pyro.set_rng_seed(4)
    truth = LinearGaussian.random(num_features=3, latent_dim=2).double()
    guide = LinearGuide.exact(truth)
    params = list(guide.parameters())
    rows = []
    for _ in range(400):
        loss = SLEEP.differentiable_loss(truth, guide, torch.zeros(10, 3))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]))
    assert_mean(torch.stack(rows), 0.0)


# ---------------------------------------------------------------------- the contract


def test_model_gets_no_gradient_and_svi_takes_it() -> None:
    truth = LinearGaussian.random(trainable=True).double()
    guide = LinearGuide.exact(truth)
    svi = SVI(truth, guide, pyro.optim.Adam({"lr": 0.1}), loss=SLEEP)
    before = [p.detach().clone() for p in truth.parameters()]
    slope = guide.slope.detach().clone()
    svi.step(torch.zeros(5, truth.num_features))
    assert all(torch.equal(a, b) for a, b in zip(before, truth.parameters(), strict=True))
    assert not torch.equal(slope, guide.slope)


def test_keyword_argument_and_two_sites() -> None:
    def two(n: int, x: Tensor, *, y: Tensor) -> None:
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Bernoulli(logits=z), obs=y)

    seen = {}

    def guide(n: int, x: Tensor, *, y: Tensor) -> None:
        seen.update(x=x, y=y)
        with pyro.plate("data", n):
            pyro.sample("z", dist.Normal(x + y, 1.0))

    loss = px.Sleep({"x": 1, "y": "y"})
    given = torch.full((3,), 9.0)
    loss.loss(two, guide, 3, given, y=torch.ones(3).long())
    assert not torch.equal(seen["x"], given)
    assert seen["y"].dtype == torch.long
    assert torch.equal(given, torch.full((3,), 9.0))


def test_seed_determines_the_dream_and_repr_the_loss() -> None:
    pyro.set_rng_seed(0)
    first = SLEEP.loss(model, guide := Guide(), X)
    pyro.set_rng_seed(0)
    assert SLEEP.loss(model, guide, X) == first
    assert repr(SLEEP) == "Sleep(observed={'x': 0})"


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("observed", "match"),
    [
        ({"y": 0}, r"got \['y'\], and the model observes \['x'\]. Write: px.Sleep.*'x': 0"),
        ({"x": 1}, r"data of site 'x' as argument 1; .* 1 positional arguments"),
        ({"x": "x"}, r"data of site 'x' as argument 'x'; .* keywords \[\]"),
    ],
)
def test_wrong_places_raise(observed: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        px.Sleep(observed).loss(model, Guide(), X)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match=r"got none. Write: px.Sleep"):
        px.Sleep({})
    with pytest.raises(TypeError, match="position or a keyword for site 'x'; got True"):
        px.Sleep({"x": True})
    name: Any = "x"
    with pytest.raises(TypeError, match=r"got 'x'\. Write: px\.Sleep\(observed=\{'x': 0\}\)"):
        px.Sleep(name)


def test_subsample_inside_the_model_raises() -> None:
    def inside(x: Tensor) -> None:
        with pyro.plate("data", len(x), 4) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match=r"shape \(4,\) .* got \(12,\)"):
        SLEEP.loss(inside, Guide(), X)


def test_factor_raises() -> None:
    def tilted(x: Tensor) -> None:
        pyro.factor("tilt", torch.tensor(1.0))
        model(x)

    with pytest.raises(ValueError, match=r"got a pyro.factor at site 'tilt'. Write: pyro.sample"):
        px.Sleep({"x": 0, "tilt": 0}).loss(tilted, Guide(), X)


def test_guide_without_density_raises() -> None:
    guide = pyro_auto.AutoDelta(model)
    with pytest.raises(ValueError, match=r"got a Delta at site 'z'. Write: px.AutoAmortized"):
        SLEEP.loss(model, guide, X)


def test_guide_without_the_latent_raises() -> None:
    with pytest.raises(ValueError, match="site 'z': expected the guide to sample every latent"):
        SLEEP.loss(model, lambda x: None, X)
