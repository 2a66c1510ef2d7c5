"""Fits with one of Pyro's optimizers are those with the torch optimizer that it stands for."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.training.compiled.clipped_adam import ClippedAdam

X = torch.linspace(-2, 3, 10)


def model(x):
    mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def fitted(optim, **options):
    pyro.clear_param_store()
    options = {"num_steps": 30, "compile": False, "seed": 0, "progress": False, **options}
    run = px.fit(model, px.AutoJoint(model), data=X, optim=optim, **options)
    return run.losses, pyro.param("loc").item()


KINDS = {
    "Adam": (
        pyro.optim.Adam({"lr": 0.1, "betas": (0.8, 0.9)}),
        partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.9)),
    ),
    "SGD": (
        pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}),
        partial(torch.optim.SGD, lr=0.01, momentum=0.5),
    ),
    "ClippedAdam": (
        pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.99, "clip_norm": 2.0}),
        partial(ClippedAdam, lr=0.1, lrd=0.99, clip_norm=2.0),
    ),
}


@pytest.mark.parametrize("options", [{}, {"compile": "record"}, {"batch_size": 4}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_torch_optimizer(kind, options):
    of_pyro, of_torch = KINDS[kind]
    (losses, loc), (expected, other) = (fitted(o, **options) for o in (of_pyro, of_torch))
    assert losses.tolist() == expected.tolist()
    assert loc == other != 1.0
    assert not of_pyro.optim_objs


def test_options_may_depend_on_the_name_of_a_parameter():
    optim = pyro.optim.Adam(lambda name: {"lr": 0.0 if name == "loc" else 0.1})
    losses, loc = fitted(optim)
    assert loc == 1.0
    assert losses[-5:].mean() < losses[:5].mean()


def test_model_and_guide_may_have_one_each():
    still, moving = pyro.optim.Adam({"lr": 0.0}), pyro.optim.Adam({"lr": 0.1})
    assert fitted({"model": still, "guide": moving})[1] == 1.0
    assert fitted({"model": moving, "guide": still})[1] != 1.0


def test_a_fit_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    def kill(progress):
        if progress.step == 25:
            raise KeyboardInterrupt

    optim = pyro.optim.Adam({"lr": 0.1})
    expected = fitted(optim)
    options = {"checkpoints": px.Checkpoints(tmp_path, every=10)}
    with pytest.raises(KeyboardInterrupt):
        fitted(optim, callbacks=[kill], **options)
    losses, loc = fitted(optim, **options)
    assert losses.tolist() == expected[0].tolist()
    assert loc == expected[1]


def test_clipping_of_each_gradient_is_refused():
    message = (
        r"fit: expected gradients to be clipped together; got an optimizer of pyro\.optim that "
        r"clips each\. Write: px\.fit\(\.\.\., clip_norm=10\.0\)"
    )
    with pytest.raises(ValueError, match=message):
        fitted(pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}))
