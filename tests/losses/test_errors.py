"""Pairs and data that a loss cannot take."""

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from cases import EXACT, LOSSES, plain
from losses.pairs import FROZEN, Model, X, every_loss
from torch import Tensor, nn

import pyro_ext as px
from pyro_ext.testing import NormalLocal


@every_loss
def test_guide_site_without_reparameterization(name: str) -> None:
    def model() -> None:
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(k, 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        pyro.sample("k", dist.Poisson(pyro.param("rate", torch.tensor(2.0))))

    if name.endswith(("-score", "-vimco", "-wake")):
        LOSSES[name](3).loss_and_grads(model, guide)
        assert pyro.param("rate").grad != 0
    else:
        message = r"site 'k', Poisson, which is not\. Write: px\.\w+\(estimator='(score|vimco)'\)"
        with pytest.raises(ValueError, match=message):
            LOSSES[name](3).loss_and_grads(model, guide)
    assert isinstance(LOSSES[name](3).loss(model, guide), float)


@every_loss
def test_guide_called_with_another_data_size(name: str) -> None:
    exact = NormalLocal(X)
    guide = px.AutoPerDatapoint(exact.model)
    LOSSES[name](3).loss(exact.model, guide, X)
    with pytest.raises(ValueError, match=r"plate 'data'.*10 .*got 4"):
        LOSSES[name](3).loss(exact.model, guide, X[:4])


@every_loss
def test_nan_in_the_data_names_the_site(name: str) -> None:
    x = X.clone()
    x[2] = torch.nan
    with pytest.raises(ValueError, match="site 'x'"):
        LOSSES[name](3).loss_and_grads(NormalLocal(X).model, px.AutoPerDatapoint(Model()), x)


@pytest.mark.parametrize("name", FROZEN)
def test_messenger_guides_cannot_be_replayed(name: str) -> None:
    guide = pyro_auto.AutoNormalMessenger(model := Model())
    with pytest.raises(ValueError, match=r"messenger guide AutoNormalMessenger.*Write: px"):
        LOSSES[name](3).loss_and_grads(model, guide, X)
    px.IWAE(3).loss_and_grads(model, guide, X)


@pytest.mark.parametrize("name", EXACT)
def test_a_parameter_that_cannot_be_stopped_raises(name: str) -> None:
    """A guide that closes over a leaf without ``pyro.param``: its score could not be left out."""
    encoder = nn.Linear(1, 2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    model = NormalLocal(X).model
    with pytest.raises(ValueError, match=r"site 'z'.*pyro\.module"):
        LOSSES[name](3).loss_and_grads(model, guide, X)

    def registered(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        guide(x)

    LOSSES[name](3).loss_and_grads(model, registered, X)

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def guide(self, x: Tensor) -> None:
            guide(x)

    LOSSES[name](3).loss_and_grads(model, Owner().guide, X)
    plain(name).loss_and_grads(model, guide, X)
