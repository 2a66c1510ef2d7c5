"""Pyro's guides that hold one vector for the elements that a subsampled plate showed first."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from torch import Tensor

import pyro_ext as px

X = torch.linspace(-1.5, 2.0, 12)

FLAT: dict[str, Callable[..., Any]] = {
    "AutoDiagonalNormal": pyro_auto.AutoDiagonalNormal,
    "AutoMultivariateNormal": pyro_auto.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": pyro_auto.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": pyro_auto.AutoIAFNormal,
    "AutoStructured": pyro_auto.AutoStructured,
    "AutoGaussian": pyro_auto.AutoGaussian,
}
PLATE_AWARE: dict[str, Callable[..., Any]] = {
    "AutoNormal": pyro_auto.AutoNormal,
    "AutoNormalMessenger": pyro_auto.AutoNormalMessenger,
    "AutoPerDatapoint": px.AutoPerDatapoint,
}
MESSAGE = (
    r"{}\w*: expected latents outside subsampled plates.*; got site 'z' in plate 'data', which "
    r"shows 3 of 12 elements\. Write: px\.AutoPerDatapoint.* or .*AutoNormal\(model, create_plates"
)


def drawn(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=3) as rows:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def observed_only(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=3) as rows:
        pyro.sample("x", dist.Normal(mu.sum(-1), 1.0), obs=x[rows])


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_guide_of_a_subsampled_plate_raises(name: str) -> None:
    """Silent otherwise: the next mini-batch gets the parameters of the first."""
    guide = FLAT[name](drawn)
    for loss in (px.ELBO(), px.ELBO(5), px.IWAE(5)):
        with pytest.raises(ValueError, match=MESSAGE.format(name)):
            loss.loss(drawn, guide, X)


def test_a_flat_guide_raises_in_a_fit() -> None:
    guide, optim = pyro_auto.AutoDiagonalNormal(drawn), partial(torch.optim.Adam, lr=0.01)
    with pytest.raises(ValueError, match=MESSAGE.format("AutoDiagonalNormal")):
        px.fit(drawn, guide, px.ELBO(), X, optim, num_steps=2)


def test_a_flat_guide_in_a_list_raises() -> None:
    guide = pyro_auto.AutoGuideList(drawn)
    guide.append(pyro_auto.AutoNormal(pyro.poutine.block(drawn, expose=["mu"])))
    guide.append(pyro_auto.AutoDiagonalNormal(pyro.poutine.block(drawn, hide=["mu", "x"])))
    with pytest.raises(ValueError, match=MESSAGE.format("AutoDiagonalNormal")):
        px.ELBO().loss(drawn, guide, X)


@pytest.mark.parametrize("name", PLATE_AWARE)
def test_guides_with_parameters_for_each_element_do_not_raise(name: str) -> None:
    assert px.ELBO().loss(drawn, PLATE_AWARE[name](drawn), X) > 0


@pytest.mark.parametrize("name", FLAT)
def test_flat_guides_of_globals_do_not_raise(name: str) -> None:
    assert px.ELBO().loss(observed_only, FLAT[name](observed_only), X) > 0


@pytest.mark.parametrize("name", FLAT)
def test_a_plate_that_the_guide_has_not_seen_is_no_key_error(name: str) -> None:
    def model(x: Tensor, plate: str) -> None:
        with pyro.plate(plate, len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = FLAT[name](model)
    guide(X, "rows")
    assert px.ELBO().loss(model, guide, X, "others") > 0
