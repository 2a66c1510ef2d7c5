"""A loss, an optimizer or a schedule that a fit cannot use is refused, with the line to write."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.optim import LBFGS, SGD, Adam, RMSprop
from torch.optim.lr_scheduler import ReduceLROnPlateau

import pyro_ext as px

X = torch.linspace(-2, 3, 10)
ADAM = partial(Adam, lr=0.1)
PYROS = pyro.optim.Adam({"lr": 0.1})


def model(x):
    mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def fit(**options):
    options = {"optim": ADAM, "num_steps": 3, "compile": False, "progress": False, **options}
    return px.fit(model, px.AutoJoint(model), data=X, **options)


def svi(optim):
    return px.CompiledSVI(model, px.AutoJoint(model), optim, px.ELBO(), compile=False)


ERRORS = {
    "loss of Pyro": (
        lambda: fit(loss=Trace_ELBO()),
        r"fit: expected a loss of pyro_ext; got Trace_ELBO\. Write: loss=px\.ELBO\(\)",
    ),
    "loss of Pyro, automatic": (
        lambda: px.fit(model, data=X, loss=Trace_ELBO(), optim="auto"),
        r"fit: expected a loss of pyro_ext; got Trace_ELBO",
    ),
    "class of a loss": (lambda: fit(loss=px.ELBO), r"a loss of pyro_ext; got ELBO\. "),
    "LBFGS": (
        lambda: fit(optim=LBFGS),
        r"fit: expected an optimizer that steps by the gradient alone; got LBFGS, whose step "
        r"needs a closure\. Write: optim=partial\(torch\.optim\.Adam, lr=0\.01\)",
    ),
    "LBFGS for both sides": (
        lambda: fit(optim={"model": LBFGS, "guide": LBFGS}),
        r"fit: .* got LBFGS, whose step needs a closure",
    ),
    "LBFGS in CompiledSVI": (
        lambda: svi(LBFGS).step(X),
        r"CompiledSVI: .* got LBFGS, whose step needs a closure",
    ),
    "optimizer of Pyro": (
        lambda: fit(optim=PYROS),
        r"fit: expected optim to be a function from .*; got one of pyro\.optim\. Write: "
        r"optim=partial",
    ),
    "optimizers of Pyro": (
        lambda: fit(optim={"model": ADAM, "guide": PYROS}),
        r"expected optim to be a function from .*; got one of pyro\.optim",
    ),
    "optimizer that is made": (
        lambda: fit(optim=Adam([torch.zeros(1)])),
        r"expected optim to be a function from .*; got Adam\. Write: optim=partial",
    ),
    "no optimizer": (
        lambda: fit(optim=lambda params: None),
        r"fit: expected optim to return a torch optimizer; got NoneType\. Write:",
    ),
    "no optimizer in CompiledSVI": (
        lambda: svi(lambda params: params).step(X),
        r"CompiledSVI: expected optim to return a torch optimizer; got list\. Write:",
    ),
    "ReduceLROnPlateau": (
        lambda: fit(schedule=ReduceLROnPlateau),
        r"fit: expected a schedule that goes by the number of steps; got ReduceLROnPlateau, whose "
        r"step needs metrics\. Write: schedule=partial\(CosineAnnealingLR.*px\.Plateau\(\)",
    ),
    "no schedule": (
        lambda: fit(schedule=lambda optimizer: None),
        r"fit: expected schedule to return a torch learning-rate scheduler; got NoneType\. Write:",
    ),
    "number for a schedule": (
        lambda: fit(schedule=0.9),
        r"fit: expected schedule to be a function from an optimizer to .*; got float\. Write:",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("optim", [SGD, RMSprop, torch.optim.Rprop, torch.optim.ASGD])
def test_optimizers_whose_closure_can_be_left_out_are_taken(optim):
    assert fit(optim=partial(optim, lr=0.01)).num_steps == 3


def test_pyros_schedule_on_a_metric_is_stepped_by_the_user():
    optim = pyro.optim.ReduceLROnPlateau(
        {"optimizer": SGD, "optim_args": {"lr": 0.1}, "patience": 0, "factor": 0.5}
    )
    engine = svi(optim)
    engine.step(X)
    for metric in (1.0, 2.0):
        optim.step(metric)
    assert engine.optimizer.param_groups[0]["lr"] == 0.05
