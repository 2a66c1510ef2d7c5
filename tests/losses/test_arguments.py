"""The arguments of every public loss, and its repr."""

from collections.abc import Callable
from inspect import isabstract, signature
from typing import Any

import pytest
import torch
from cases import ELSEWHERE, LOSSES

import pyro_ext as px
from pyro_ext.losses.loss import BoundLoss

PUBLIC = {
    name: loss
    for name in px.losses.__all__
    if issubclass(loss := getattr(px.losses, name), BoundLoss) and not isabstract(loss)
}
every_class = pytest.mark.parametrize(
    "loss", [loss for loss in PUBLIC.values() if "num_particles" in signature(loss).parameters]
)


def test_every_public_loss_and_estimator_is_in_the_battery() -> None:
    found = {(type(make(2)).__name__, make(2).estimator) for make in LOSSES.values()}
    wanted = {(n, e) for n, loss in PUBLIC.items() for e in loss.estimators if n not in ELSEWHERE}
    assert found == wanted
    assert {f"{loss}-{estimator}" for loss, estimator in found} == set(LOSSES)


@every_class
def test_arguments_of_a_loss(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"estimator to be one of \[.*got 'exact'.*Write"):
        loss(estimator="exact")
    for option in {"num_particles", "num_outer"} & set(signature(loss).parameters):
        for number in (0, -1):
            with pytest.raises(ValueError, match=rf"{option} >= 1; got {number}\. Write: px"):
                loss(**{option: number})
        for wrong in (2.0, True, "3"):
            with pytest.raises(TypeError, match=option):
                loss(**{option: wrong})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: px.CIWAE(beta=1.1), r"CIWAE: expected beta in \[0, 1\]; got 1\.1\. Write"),
        (lambda: px.CIWAE(beta=-0.1), r"CIWAE: expected beta in \[0, 1\]; got -0\.1\. Write"),
        (lambda: px.CUBO(order=0.5), r"CUBO: expected a finite order >= 1; got 0\.5\. Write"),
        (lambda: px.CUBO(order=torch.nan), r"CUBO: expected a finite order >= 1; got nan\. Write"),
        (lambda: px.Renyi(alpha=torch.nan), r"Renyi: expected a finite alpha; got nan\. Write"),
        (lambda: px.Renyi(alpha=-torch.inf), r"Renyi: expected a finite alpha; got -inf\. Write"),
        (
            lambda: px.JackknifeIWAE(1),
            r"JackknifeIWAE: expected num_particles >= 2; got 1\. Write",
        ),
        (
            lambda: px.WakeSleep(1),
            r"WakeSleep: expected num_particles >= 2.*share.*got 1\. Write: px\.WakeSleep\(num",
        ),
    ],
)
def test_ranges_of_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_class
def test_repr_makes_the_loss_again(loss: Any) -> None:
    known = signature(loss).parameters
    others: dict[str, Any] = {"num_particles": 3, "num_outer": 5, "joint": True, "beta": 0.25}
    others |= {"alpha": 0.75, "order": 3.0, "estimator": loss.estimators[-1]}
    for given in ({}, {name: value for name, value in others.items() if name in known}):
        made = loss(**given)
        again = eval(repr(made), PUBLIC)
        assert repr(again) == repr(made)
        for name in known:
            owner = made.particles if name == "num_outer" else made
            other = again.particles if name == "num_outer" else again
            name = "outer" if name == "num_outer" else name
            assert getattr(owner, name) == getattr(other, name)
