"""A step that is not finite is undone: the rates after it, and the buffers before it."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
)

import pyro_ext as px

quiet = partial(px.fit, progress=False)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def sequence(optimizer):
    warm, cold = LinearLR(optimizer, 0.5, total_iters=5), LambdaLR(optimizer, lambda t: 0.9**t)
    return SequentialLR(optimizer, [warm, cold], milestones=[5])


def chain(optimizer):
    return ChainedScheduler([LinearLR(optimizer, total_iters=5), ExponentialLR(optimizer, 0.9)])


SCHEDULES = {
    "none": None,
    "of base rates": partial(LambdaLR, lr_lambda=lambda step: 0.9**step),
    "of the last rate": partial(ExponentialLR, gamma=0.9),
    "of both": partial(CosineAnnealingLR, T_max=20, eta_min=0.02),
    "of rates of its own": partial(OneCycleLR, max_lr=0.1, total_steps=20),
    "between two": partial(
        CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3, cycle_momentum=False
    ),
    "several in turn": sequence,
    "several at once": chain,
}


def rates(schedule, fault, **options):
    """Return the rate of each step of a fit, one of which is not finite if there is a fault."""
    seen, spoiled = [], torch.zeros(())

    class Recorded(SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    def model(x):
        local(x)
        pyro.factor("fault", spoiled.clone())

    def callback(progress):
        spoiled.fill_(float("nan") if fault and progress.step == 5 else 0.0)

    guide = px.AutoPerDatapoint(model)
    optim = partial(Recorded, lr=0.05)
    options |= {"num_steps": 18, "schedule": schedule, "compile": False, "callbacks": [callback]}
    quiet(model, guide, px.ELBO(), torch.zeros(3), optim, seed=0, **options)
    return seen


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_half_of_what_any_schedule_says(name):
    whole = rates(SCHEDULES[name], fault=False)
    with pytest.warns(UserWarning, match="undone, with all rates halved"):
        halved = rates(SCHEDULES[name], fault=True, nonfinite="halve")
    assert halved == [*whole[:6], *(rate / 2 for rate in whole[6:-1])]  # one step was undone


class Normed(nn.Module):
    """An encoder whose buffers follow the batches."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        return self.norm(x.unsqueeze(-1))


@pytest.mark.parametrize("compile", [False, "record"])
@pytest.mark.parametrize("way", ["raise", "skip", "halve"])
def test_buffers_of_a_step_that_is_left_out_are_those_of_before(way, compile):
    """The fault is in the data, and not in the buffers that have seen them."""
    x, encoder, norms = torch.linspace(-2, 3, 10), Normed(), []
    guide = px.AutoAmortized(local, encoder)

    def callback(progress):
        norms.append([buffer.clone() for buffer in encoder.buffers()])
        x[4] = float("nan") if progress.step == 5 else 0.5

    options = {"num_steps": 8, "callbacks": [callback], "compile": compile, "seed": 0}
    fit = partial(quiet, local, guide, px.ELBO(), x, partial(SGD, lr=0.0), **options)
    match = r"(?s)got nan at step 6\. .*rows \[4\]"
    if way == "raise":
        with pytest.raises(ValueError, match=match):
            fit()
        norms.append([buffer.clone() for buffer in encoder.buffers()])
    else:
        with pytest.warns(UserWarning, match=match):
            fit(nonfinite=way)
        assert torch.isfinite(encoder.norm.running_mean).all()
    if way != "halve":
        for before, after in zip(norms[5], norms[6], strict=True):
            assert torch.equal(before, after)


def test_a_run_that_is_taken_up_again_goes_back_as_far(tmp_path):
    """To step 0, and not to where it was taken up, when step 23 is undone."""

    def fit(folder=None, **options):
        torch.manual_seed(1)
        guide = px.AutoPerDatapoint(local)
        saving = None if folder is None else px.Checkpoints(folder, every=5)
        options = {
            "schedule": partial(LambdaLR, lr_lambda=lambda step: 1e200 if step == 22 else 1.0),
            "compile": False,
            "seed": 0,
            **options,
        }
        adam = partial(Adam, lr=0.1)
        options |= {"num_steps": 30, "nonfinite": "halve", "checkpoints": saving}
        return quiet(local, guide, px.ELBO(), torch.zeros(3), adam, **options)

    def stop(progress):
        if progress.step == 21:
            raise KeyError("stopped here")

    with pytest.warns(UserWarning, match="undone"):
        never = fit()
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, callbacks=[stop])
    with pytest.warns(UserWarning, match="undone"):
        again = fit(tmp_path)
    np.testing.assert_array_equal(again.losses, never.losses)
