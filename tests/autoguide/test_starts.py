"""Where guides start: one value for all elements, whole numbers, and places that are refused."""

import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer.autoguide import init_to_mean, init_to_value
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

import pyro_ext as px

X = torch.linspace(-1.0, 2.0, 5)
GUIDES: dict[str, Callable[..., Any]] = {
    "AutoJoint": px.AutoJoint,
    "AutoPerDatapoint": px.AutoPerDatapoint,
    "AutoAmortized": lambda model, **options: px.AutoAmortized(
        model, lambda x: torch.zeros(len(x), 1), **options
    ),
}
EVERY_GUIDE = pytest.mark.parametrize("build", GUIDES.values(), ids=GUIDES)


def rows(prior: Any) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            total = z.sum(-1) if prior.event_dim else z
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    return model


def start(value: Any) -> Any:
    return init_to_value(values={"z": value})


@EVERY_GUIDE
@pytest.mark.parametrize("value", [torch.tensor(0.3), torch.full((1,), 0.3), torch.tensor(2)])
def test_one_value_is_for_all_elements(build: Callable[..., Any], value: Tensor) -> None:
    guide = build(rows(dist.Gamma(2.0, 1.0)), init_loc_fn=start(value))
    torch.testing.assert_close(guide.median(X)["z"], value.double().expand(5))


@EVERY_GUIDE
@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(5, 1), 0.5])
def test_another_shape_raises(build: Callable[..., Any], value: Any) -> None:
    got = re.escape(str(tuple(value.shape)) if isinstance(value, Tensor) else "float")
    message = (
        rf"Auto\w+: .*init_loc_fn to give site 'z' a tensor of shape \(5,\); got {got}\. Write"
    )
    with pytest.raises(ValueError, match=message):
        build(rows(dist.Normal(0.0, 1.0)), init_loc_fn=start(value)).setup(X)


@EVERY_GUIDE
def test_a_reparameterizer_inside_a_plate(build: Callable[..., Any]) -> None:
    """It asks for a start before the plate is known; each element has its own z all the same."""

    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            with poutine.reparam(config={"z": LocScaleReparam(0.0)}):
                z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = build(model)
    guide.setup(X)
    draws = guide.sample_posterior(3, X)["z_decentered"]
    assert draws.shape == (3, 5)
    assert len(draws.unique()) == 15


OUTSIDE: dict[str, tuple[Any, Any]] = {
    "below zero": (dist.Gamma(2.0, 1.0), torch.tensor(-1.0)),
    "at zero": (dist.LogNormal(0.0, 1.0), torch.tensor(0.0)),
    "at infinity": (dist.Normal(0.0, 1.0), torch.tensor(torch.inf)),
    "above one": (dist.Beta(2.0, 2.0), torch.tensor(1.5)),
    "not ordered": (
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), 1.0).to_event(1), [transforms.OrderedTransform()]
        ),
        torch.tensor([2.0, 1.0]),
    ),
    "no simplex": (dist.Dirichlet(torch.ones(3)), torch.ones(3)),
}


@EVERY_GUIDE
@pytest.mark.parametrize(("prior", "value"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_start_outside_the_support_raises(
    build: Callable[..., Any], prior: Any, value: Tensor
) -> None:
    """The bijection clamps it, or π is not finite, nor is any loss."""
    message = (
        r"Auto\w+: .*to start site 'z' inside its support, .*; got values from .*\. Write: init"
    )
    with pytest.raises(ValueError, match=message):
        build(rows(prior), init_loc_fn=start(value)).setup(X)


def test_a_prior_without_a_mean_raises() -> None:
    guide = px.AutoPerDatapoint(rows(dist.HalfCauchy(1.0)), init_loc_fn=init_to_mean)
    with pytest.raises(ValueError, match=r"site 'z' inside its support, .*from inf to inf"):
        guide.setup(X)


@EVERY_GUIDE
def test_a_delta_raises(build: Callable[..., Any]) -> None:
    """Its density is zero or infinite at any draw of a guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            twice = pyro.sample("twice", dist.Delta(2 * z).mask(torch.tensor(data=True)))
            pyro.sample("x", dist.Normal(twice, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"Auto\w+: .*'twice', a Delta.*deterministic\('twice'"):
        build(model).setup(X)
