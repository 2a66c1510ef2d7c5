"""E-steps and M-steps: one side is trained, the other stays and gets no gradient."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.optim import Adam

import pyro_ext as px
from guides.linear_gaussian import LinearGuide, amortized_full_covariance
from models.linear_gaussian import LinearGaussian, data

quiet = partial(px.fit, progress=False)


def snapshot(module: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in module.parameters()]


def changed(before: list[Tensor], module: nn.Module) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]


def test_m_steps_with_the_exact_posterior_climb_the_evidence() -> None:
    """EM on probabilistic PCA: every M-step raises log p(x), from far below to the truth's own."""
    truth = LinearGaussian.random(num_features=5, latent_dim=2, seed=0).double()
    x = data(200, model=truth)
    start = LinearGaussian.random(num_features=5, latent_dim=2, seed=7, trainable=True).double()
    evidence = [start.log_evidence(x).item()]
    for iteration in range(12):
        guide = LinearGuide.exact(start)
        assert -px.ELBO().loss(start, guide, x) == pytest.approx(evidence[-1])
        before = snapshot(guide)
        quiet(
            start,
            guide,
            px.ELBO(50),
            x,
            partial(Adam, lr=0.02),
            num_steps=20,
            train="model",
            seed=iteration,
        )
        assert not any(changed(before, guide))
        evidence.append(start.log_evidence(x).item())
    gains = torch.tensor(evidence).diff()
    assert (gains > 0).all(), evidence
    assert evidence[-1] > truth.log_evidence(x).item() - 30


@pytest.mark.parametrize("train", ["model", "guide", "both"])
@pytest.mark.parametrize("of", [LinearGuide.exact, amortized_full_covariance])
@pytest.mark.parametrize(
    "loss", [px.ELBO(), px.ELBO(estimator="stl"), px.ELBO(form="kl"), px.IWAE(3)], ids=repr
)
def test_one_side_moves(loss: Any, of: Any, train: str) -> None:
    model = LinearGaussian.random(trainable=True).double()
    guide, x = of(model), torch.randn(6, model.num_features)
    getattr(guide, "setup", lambda x: None)(x)
    before = snapshot(model), snapshot(guide)
    run = quiet(model, guide, loss, x, num_steps=3, train=train)
    assert len(run.losses) == 3
    assert set(changed(before[0], model)) == {train != "guide"}
    assert set(changed(before[1], guide)) == {train != "model"}
    still = {"model": guide, "guide": model}.get(train)
    if still is not None:
        assert all(param.grad is None for param in still.parameters())
    assert all(p.requires_grad for p in (*model.parameters(), *guide.parameters()))


def by_param(x: Tensor) -> None:
    sd = pyro.param("sd", torch.tensor(2.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, sd), obs=x)


def guide_by_param(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize("train", ["model", "guide"])
def test_sites_of_the_parameter_store(train: str) -> None:
    pyro.clear_param_store()
    quiet(by_param, guide_by_param, px.ELBO(), torch.ones(5), num_steps=3, train=train)
    assert (pyro.param("sd").item() != 2.0) == (train == "model")
    assert (pyro.param("loc").item() != 0.0) == (train == "guide")
    pyro.clear_param_store()


class Whole(nn.Module):
    """A model module that is a part of its guide's module."""

    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.decoder = model
        self.encoder = nn.Linear(model.num_features, model.latent_dim)

    def forward(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize("train", ["model", "guide"])
def test_module_that_holds_the_other(train: str) -> None:
    model = LinearGaussian.random(trainable=True).double()
    guide = Whole(model)
    before = snapshot(model), snapshot(guide.encoder)
    x = torch.randn(6, model.num_features)
    quiet(model, guide, px.ELBO(), x, num_steps=2, train=train)
    assert set(changed(before[0], model)) == {train == "model"}
    assert set(changed(before[1], guide.encoder)) == {train == "guide"}


def test_messenger_guide() -> None:
    model = LinearGaussian.random(trainable=True).double()
    x = torch.randn(6, model.num_features)
    guide = pyro_auto.AutoNormalMessenger(model)
    before = snapshot(model)
    quiet(model, guide, px.ELBO(), x, num_steps=2, train="guide")
    assert not any(changed(before, model))
    quiet(model, guide, px.ELBO(), x, num_steps=2, train="model")
    assert all(changed(before, model))


# ---------------------------------------------------------------------- errors


def test_unknown_side_raises() -> None:
    with pytest.raises(ValueError, match=r"\['both', 'model', 'guide'\]; got 'encoder'"):
        quiet(by_param, guide_by_param, data=torch.ones(5), train="encoder")


def test_nothing_to_train_raises() -> None:
    model = LinearGaussian.random().double()
    x = torch.zeros(6, model.num_features)
    with pytest.raises(ValueError, match="got none in the model"):
        quiet(model, LinearGuide.exact(model), data=x, train="model")


def test_shared_parameter_raises() -> None:
    def sharing(x: Tensor) -> None:
        pyro.param("sd", torch.tensor(2.0), constraint=constraints.positive)
        guide_by_param(x)

    with pytest.raises(
        ValueError, match=r"share no parameter .* got 1 that both have, of shapes \[\(\)\]"
    ):
        quiet(by_param, sharing, data=torch.ones(5), train="model")
    pyro.clear_param_store()


def test_loss_without_gradient_for_the_side_raises() -> None:
    model = LinearGaussian.random(trainable=True).double()
    x = torch.zeros(6, model.num_features)
    with pytest.raises(ValueError, match=r"Sleep.* gives the model none.*train='guide'"):
        quiet(model, LinearGuide.exact(model), px.Sleep({"x": 0}), x, train="model")
