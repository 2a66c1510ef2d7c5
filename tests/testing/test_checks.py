"""The contract checks pass what keeps the contract, and catch what breaks it."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.testing import check_guide, check_loss

X = torch.tensor([0.3, -1.2, 2.0])


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(mu + z, 1.0), obs=x)


@pytest.mark.parametrize("estimator", px.ELBO.estimators)
def test_elbo(estimator):
    check_loss(lambda num_particles: px.ELBO(num_particles, estimator=estimator))


@pytest.mark.parametrize("estimator", px.IWAE.estimators)
def test_iwae(estimator):
    check_loss(lambda num_particles: px.IWAE(num_particles, estimator=estimator))


def test_the_callers_state_is_untouched():
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_loss(px.ELBO)
    check_guide(lambda: px.AutoJoint(model), model, X)
    assert torch.equal(torch.rand(2), expected)
    assert list(pyro.get_param_store().keys()) == ["mine"]


class WrongSign(px.ELBO):
    def differentiable_loss(self, *args, **kwargs):
        return -super().differentiable_loss(*args, **kwargs)


class Shifted(px.IWAE):
    """log K is left out, as if a sum were a mean."""

    def differentiable_loss(self, *args, **kwargs):
        return (
            super().differentiable_loss(*args, **kwargs) - torch.tensor(self.num_particles).log()
        )


class OwnDraws(px.ELBO):
    """loss_and_grads draws once more than loss."""

    def loss_and_grads(self, *args, **kwargs):
        torch.rand(())
        return super().loss_and_grads(*args, **kwargs)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (WrongSign, "loss is minus the bound"),
        (Shifted, "loss is minus the bound"),
        (OwnDraws, "loss_and_grads: "),
    ],
)
def test_a_broken_loss(loss, match):
    with pytest.raises(AssertionError, match=match):
        check_loss(loss)


class NoJacobian(px.AutoPerDatapoint):
    def log_prob(self, latents, *args):
        return super().log_prob(latents, *args) + latents["z"].log().sum(-1)


class OneParticleLogProb(px.AutoPerDatapoint):
    def log_prob(self, latents, *args):
        return super().log_prob(latents, *args).sum()


class LateParameter(px.AutoPerDatapoint):
    def forward(self, *args):
        if not hasattr(self, "late"):
            self.late = torch.nn.Parameter(torch.zeros(()))
        return super().forward(*args)


class NoGradient(px.AutoPerDatapoint):
    def _params(self, *args):
        return super()._params(*args).detach()


class OtherMedian(px.AutoPerDatapoint):
    def median(self, *args):
        return {name: value + 0.1 for name, value in super().median(*args).items()}


class WideQuantiles(px.AutoPerDatapoint):
    def quantiles(self, probs, *args):
        values = super().quantiles(probs, *args)
        return {name: value[1] + 3 * (value - value[1]) for name, value in values.items()}


class Unseeded(px.AutoPerDatapoint):
    count = 0

    def forward(self, *args):
        Unseeded.count += 1
        torch.rand(Unseeded.count)
        return super().forward(*args)


class SharedCopy(px.AutoPerDatapoint):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("guide", "match"),
    [
        (NoJacobian, "log_prob and the trace's density"),
        (OneParticleLogProb, r"log_prob of 4 draws: shape \(\)"),
        (LateParameter, r"came up after setup: \['late'\]"),
        (NoGradient, "gets no gradient|does not require grad"),
        (OtherMedian, "median and quantile 0.5"),
        (WideQuantiles, "holds shares"),
        (Unseeded, "two calls at one seed"),
        (SharedCopy, "shares a parameter"),
    ],
)
def test_a_broken_guide(guide, match):
    with pytest.raises((AssertionError, RuntimeError), match=match):
        check_guide(lambda: guide(model), model, X)


def test_a_guide_of_pyro_lacks_the_contract():
    with pytest.raises(AttributeError):
        check_guide(lambda: pyro.infer.autoguide.AutoNormal(model), model, X)
