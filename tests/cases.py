"""The battery: every public bound, and every public loss with each of its estimators."""

from collections.abc import Callable
from typing import Any

import reference
from torch import Tensor

import pyro_ext as px
from pyro_ext.losses.loss import BoundLoss

__all__ = ["BOUNDS", "ELSEWHERE", "EXACT", "LOSSES", "bound_of", "plain", "sign"]

BOUNDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "elbo": (px.bounds.elbo, reference.elbo),
    "iwae": (px.bounds.iwae, reference.iwae),
    "ciwae": (
        lambda log_w: px.bounds.ciwae(log_w, 0.3),
        lambda log_w: reference.ciwae(log_w, 0.3),
    ),
    "renyi": (
        lambda log_w: px.bounds.renyi(log_w, 0.5),
        lambda log_w: reference.renyi(log_w, 0.5),
    ),
    "renyi(-1)": (
        lambda log_w: px.bounds.renyi(log_w, -1.0),
        lambda log_w: reference.renyi(log_w, -1.0),
    ),
    "renyi(0)": (lambda log_w: px.bounds.renyi(log_w, 0.0), reference.iwae),
    "renyi(1)": (lambda log_w: px.bounds.renyi(log_w, 1.0), reference.elbo),
    "renyi(2)": (
        lambda log_w: px.bounds.renyi(log_w, 2.0),
        lambda log_w: reference.renyi(log_w, 2.0),
    ),
    "cubo": (px.bounds.cubo, lambda log_w: reference.renyi(log_w, -1.0)),
    "cubo(3)": (
        lambda log_w: px.bounds.cubo(log_w, 3.0),
        lambda log_w: reference.renyi(log_w, -2.0),
    ),
    "jackknife": (px.bounds.jackknife, reference.jackknife),
}
"""Each bound, with the same by brute force; the name before the bracket is the public one."""

LOSSES: dict[str, Callable[..., BoundLoss]] = {
    "ELBO-reparam": lambda num_particles: px.ELBO(num_particles),
    "ELBO-stl": lambda num_particles: px.ELBO(num_particles, estimator="stl"),
    "ELBO-score": lambda num_particles: px.ELBO(num_particles, estimator="score"),
    "WakeSleep-wake": lambda num_particles, **options: px.WakeSleep(
        max(num_particles, 2), **options
    ),
    "JackknifeIWAE-reparam": lambda num_particles, **options: px.JackknifeIWAE(
        max(num_particles, 2), **options
    ),
}
"""One entry for every estimator of every loss: a function of ``num_particles``, and of ``joint``.

The jackknife and wake-sleep need two particles, and get them.
"""

_FAMILIES: dict[str, tuple[Callable[..., BoundLoss], tuple[str, ...]]] = {
    "IWAE": (px.IWAE, ("reparam", "dreg", "stl", "vimco")),
    "MIWAE": (
        lambda num_particles, **options: px.MIWAE(2, num_particles, **options),
        ("reparam", "dreg", "stl", "vimco"),
    ),
    "CIWAE": (
        lambda num_particles, **options: px.CIWAE(num_particles, beta=0.3, **options),
        ("reparam", "dreg", "stl", "vimco"),
    ),
    "Renyi": (px.Renyi, ("reparam", "dreg", "stl", "vimco")),
    "PIWAE": (
        lambda num_particles, **options: px.PIWAE(2, num_particles, **options),
        ("reparam", "dreg"),
    ),
    "CUBO": (px.CUBO, ("reparam", "dreg")),
    "Annealed": (
        lambda num_particles, estimator: px.Annealed(
            px.ELBO(num_particles, estimator=estimator), px.LinearSchedule(1.0, 1.0, num_steps=1)
        ),
        ("reparam", "stl", "score"),
    ),
}


def _entry(make: Callable[..., BoundLoss], estimator: str) -> Callable[..., BoundLoss]:
    return lambda num_particles, **options: make(num_particles, estimator=estimator, **options)


for _name, (_make, _estimators) in _FAMILIES.items():
    for _estimator in _estimators:
        LOSSES[f"{_name}-{_estimator}"] = _entry(_make, _estimator)

ELSEWHERE = {"Sleep"}
"""Losses that bound no evidence of the data given; they have tests of their own."""

EXACT = [name for name in LOSSES if name.endswith(("-stl", "-dreg"))]
"""Estimators without any noise where the guide is the exact posterior."""


def plain(name: str) -> BoundLoss:
    """The reparameterized estimator of the same loss, with three particles."""
    return LOSSES[name.partition("-")[0] + "-reparam"](3)


def sign(loss: Any) -> int:
    """What makes the loss a bound: -1, or 1 for an upper bound."""
    return 1 if loss.upper else -1


def bound_of(loss: Any) -> Callable[[Tensor], Tensor]:
    """The bound that a loss estimates, by brute force."""
    name = type(loss).__name__
    if name == "CIWAE":
        return lambda log_w: reference.ciwae(log_w, loss.beta)
    if name in ("Renyi", "CUBO"):
        order = 1 - loss.order if name == "CUBO" else loss.alpha
        return lambda log_w: reference.renyi(log_w, order)
    elbos = dict.fromkeys(("ELBO", "Annealed"), reference.elbo)
    others = {"JackknifeIWAE": reference.jackknife}
    return (elbos | others).get(name, reference.iwae)
