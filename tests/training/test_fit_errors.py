"""What a fit cannot use is refused, with the line to write."""

import io
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.optim import LBFGS, SGD, Adam, RMSprop
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

import pyro_ext as px

X = torch.linspace(-2, 3, 10)
ADAM = partial(Adam, lr=0.1)
SCHEDULED = pyro.optim.ExponentialLR({"optimizer": Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9})


def model(x):
    mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def fit(**options):
    pyro.clear_param_store()
    options = {
        "optim": ADAM,
        "num_steps": 3,
        "compile": False,
        "progress": False,
        "seed": 0,
        **options,
    }
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
    "scheduler of Pyro": (
        lambda: fit(optim=SCHEDULED),
        r"fit: expected optim without a schedule; got a scheduler of pyro\.optim\. Write: "
        r"optim=partial\(torch\.optim\.Adam, lr=0\.01\), schedule=partial\(ExponentialLR",
    ),
    "scheduler of Pyro for one side": (
        lambda: fit(optim={"model": ADAM, "guide": SCHEDULED}),
        r"fit: expected optim without a schedule; got a scheduler of pyro\.optim",
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

NUMBERS = {
    "steps in part": (lambda: fit(num_steps=2.5), r"fit: expected num_steps to be .*; got 2\.5\."),
    "no number of steps": (lambda: fit(num_steps=float("nan")), "fit: expected num_steps .* nan"),
    "steps as a text": (lambda: fit(num_steps="10"), "fit: expected num_steps .*; got '10'"),
    "true steps": (lambda: fit(num_steps=True), "fit: expected num_steps .*; got True"),
    "rows as a text": (lambda: fit(batch_size="3"), "fit: expected batch_size .*; got '3'"),
    "particles in part": (
        lambda: fit(chunk=0.5),
        r"fit: expected chunk .*; got 0\.5\. Write: chun",
    ),
    "seed in part": (
        lambda: fit(seed=1.5),
        r"fit: expected seed to be a whole number; got 1\.5\.",
    ),
    "further steps": (lambda: fit().resume("5"), "Run.resume: expected num_steps .*; got '5'"),
    "looks": (
        lambda: px.Holdout(X, every=0.5),
        r"Holdout: expected every .*; got 0\.5\. Write: ev",
    ),
    "window": (lambda: px.Plateau(window=50.5), r"Plateau: expected window .*; got 50\.5\. Write"),
    "patience": (lambda: px.Plateau(patience="2"), "Plateau: expected patience .*; got '2'"),
    "steps between": (
        lambda: px.Checkpoints("a", every="9"),
        "Checkpoints: expected every .* '9'",
    ),
    "files kept": (lambda: px.Checkpoints("a", keep=1.5), "Checkpoints: expected keep .*; got 1"),
}
OBJECTS = {
    "held-out data alone": (
        lambda: fit(holdout=X),
        r"fit: expected holdout to be a px\.Holdout; got Tensor\. Write: holdout=px\.",
    ),
    "number for a plateau": (
        lambda: fit(plateau=3),
        r"fit: expected plateau to be a px\.Plateau; got int\. Write: plateau=px\.Plateau\(\)",
    ),
    "number for a folder": (
        lambda: fit(checkpoints=5),
        r"fit: expected checkpoints to be a folder or a px\.Checkpoints; got int\. Write: ",
    ),
    "number for the folder": (
        lambda: px.Checkpoints(3),
        r"Checkpoints: expected a folder; got 3\. Write: px\.Checkpoints\('runs/first'\)",
    ),
    "callback without a list": (
        lambda: fit(callbacks=print),
        r"fit: expected callbacks to be a list of functions; got <.*\. Write: callbacks=\[f\]",
    ),
    "number for a callback": (
        lambda: fit(callbacks=[3]),
        r"fit: expected callbacks to be a list of functions; got \[3\]\.",
    ),
    "callback with a number": (
        lambda: fit(callbacks=[lambda progress: progress.loss]),
        r"fit: expected a callback to return None, or a text .*; got \d.*\. Write: return 'why'",
    ),
    "side that is to be found": (
        lambda: fit(optim={"model": ADAM, "guide": "auto"}),
        r"fit: expected optim to be a function from .*; got str\. Write: optim=partial",
    ),
    "held-out data in a loader": (
        lambda: px.Holdout(DataLoader(X)),
        r"Holdout: expected held-out rows in a tensor .*; got a DataLoader\. Write: px\.Holdout",
    ),
    "rows to refine in a loader": (
        lambda: px.refine(model, px.AutoAmortized(model, lambda x: x), data=DataLoader(X)),
        r"refine: expected rows in a tensor .*; got a DataLoader\. Write: px\.refine\(model",
    ),
    "loss to look at": (
        lambda: px.Holdout(X, loss=px.ELBO),
        r"Holdout: expected a loss of pyro_ext; got <class .*\. Write: px\.Holdout\(x_test, loss=",
    ),
}
ERRORS |= NUMBERS | OBJECTS


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("number", [0, -5])
def test_further_steps(number):
    with pytest.raises(ValueError, match=rf"Run\.resume: expected num_steps >= 1; got {number}\."):
        fit().resume(number)


def test_a_norm_as_a_text():
    with pytest.raises(ValueError, match=r"fit: expected clip_norm > 0; got '3'\. Write: clip"):
        fit(clip_norm="3")


def test_an_optimizer_of_other_parameters():
    match = r"fit: expected an optimizer of the parameters .*; got one of others\. Write: optim="
    with pytest.raises(ValueError, match=match):
        fit(optim=lambda params: Adam([torch.zeros(1, requires_grad=True)]))


@pytest.mark.parametrize("name", ["file", "below a file"])
def test_a_folder_that_is_none(name, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    match = r"fit: expected a folder that checkpoints .*; got '.*file.*' \(.*\)\. Write: another"
    with pytest.raises(ValueError, match=match):
        fit(checkpoints=file if name == "file" else file / "sub")


@pytest.mark.parametrize("nested", [False, True])
def test_data_that_have_a_gradient_are_constants(nested):
    """Those that were computed, and leaves, whose gradient would pile up."""
    start = X.clone().requires_grad_()
    called = (lambda data: model(data["x"])) if nested else model
    for data in (start, 2 * start):
        guide = px.AutoJoint(called)
        run = px.fit(called, guide, data={"x": data} if nested else data, num_steps=3)
        assert run.num_steps == 3
    assert start.grad is None


def test_whole_numbers_of_other_kinds_are_taken():
    torch.manual_seed(1)
    run = fit(num_steps=6.0, batch_size=np.int64(3), seed=np.int64(4), loss=px.ELBO(4), chunk=2.0)
    torch.manual_seed(1)
    same = fit(num_steps=6, batch_size=3, seed=4, loss=px.ELBO(4), chunk=2)
    assert np.array_equal(run.losses, same.losses)
    assert run.session._chunks.size == 2


# ---------------------------------------------------------------------- where a fit is called


def test_gradients_are_on_within_no_grad():
    torch.manual_seed(1)
    with torch.no_grad():
        run = fit()
        assert not torch.is_grad_enabled()
    torch.manual_seed(1)
    assert np.array_equal(run.losses, fit().losses)


def test_inference_mode_is_refused():
    with (
        torch.inference_mode(),
        pytest.raises(
            ValueError, match=r"fit: expected gradients .*; got a torch\.inference_mode"
        ),
    ):
        fit()


@pytest.mark.parametrize("closed", [True, False])
def test_there_is_no_bar_where_standard_error_is_closed(closed, monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream if closed else None)
    assert fit(progress=True).num_steps == 3
    found = px.fit(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), seed=0)
    assert found.verdict.grade == "trusted"


# ---------------------------------------------------------------------- optimizers


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


@pytest.mark.parametrize("options", [{}, {"num_steps": 3}], ids=["auto", "steps"])
@pytest.mark.parametrize(("data", "got"), [([1.0, 2.0, 3.0], 3), (None, 0)])
def test_data_that_the_model_cannot_be_called_with(data, got, options):
    message = rf"data that model\(x\) can be called with; got {got} arguments.*torch\.tensor"
    with pytest.raises(TypeError, match=message):
        px.fit(model, data=data, **options)
