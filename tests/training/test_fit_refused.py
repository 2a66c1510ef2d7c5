"""Checkpoints of another optimizer or fit, and bad files, are refused."""

import io
import os
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    StepLR,
)
from training.checkpoint_cases import Model, X, fit, same, stopped_at

import pyro_ext as px
from pyro_ext.training import files
from pyro_ext.training.compiled.clipped_adam import ClippedAdam

# ---------------------------------------------------------------------- other optimizers

STEPS = partial(StepLR, step_size=5)
OTHER_OPTIMIZERS = {
    "class": ({"optim": partial(SGD, lr=0.05)}, r"whose optimizer is 'SGD'; got 'Adam'\. Write"),
    "rate": (
        {"optim": partial(Adam, lr=0.01)},
        r"whose lr is 0\.01; got 0\.05\. Write: the same lr",
    ),
    "betas": (
        {"optim": partial(Adam, lr=0.05, betas=(0.5, 0.9))},
        r"whose betas is \(0\.5, 0\.9\); got \(0\.9, 0\.999\)\. Write: the same betas",
    ),
    "a side": (
        {"optim": {"model": partial(Adam, lr=0.05), "guide": partial(Adam, lr=0.05)}},
        r"whose number of parameter groups is 2; got 1\.",
    ),
    "schedule": ({"schedule": STEPS}, r"whose schedule is 'StepLR'; got 'CosineAnnealingLR'\."),
    "its options": (
        {"schedule": partial(CosineAnnealingLR, T_max=40, eta_min=0.001)},
        r"whose eta_min is 0\.001; got 0\.0\. Write: the same eta_min, or another folder",
    ),
}


@pytest.mark.parametrize("name", OTHER_OPTIMIZERS)
def test_a_checkpoint_of_another_optimizer_is_refused(name, tmp_path):
    options, message = OTHER_OPTIMIZERS[name]
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, callbacks=[stopped_at(22)])
    with pytest.raises(ValueError, match=rf"step-000000020\.pt: expected .*{message}"):
        fit(tmp_path, **options)


def test_milestones_are_options_too(tmp_path):
    make = lambda *steps: partial(MultiStepLR, milestones=steps)  # noqa: E731
    fit(tmp_path, schedule=make(10, 30))
    with pytest.raises(ValueError, match=r"whose milestones is .*; got .*30, 1"):
        fit(tmp_path, schedule=make(10, 20))


def test_rates_that_the_fit_has_changed_are_no_other_options(tmp_path):
    """ClippedAdam's own decay and a schedule move the rate, which is not what was asked."""
    decaying = partial(ClippedAdam, lr=0.05, lrd=0.9)
    torch.manual_seed(1)
    never = fit(optim=decaying)
    torch.manual_seed(1)
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, optim=decaying, callbacks=[stopped_at(22)])
    torch.manual_seed(99)
    same(fit(tmp_path, optim=decaying), never)


SCHEDULES = {
    "added": (None, STEPS, r"whose schedule is 'one of learning rates'; got 'none'\. Write"),
    "left out": (STEPS, None, r"whose schedule is 'none'; got 'one of learning rates'\. Write"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_is_added_or_left_out_is_another(name, tmp_path):
    before, now, message = SCHEDULES[name]
    fit(tmp_path, schedule=before, num_steps=12)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, schedule=now, num_steps=12)


def test_annealing_for_a_share_of_the_steps_is_made_for_their_number(tmp_path):
    share = px.Annealed(px.ELBO(), px.LinearSchedule(0.1, 1.0, num_steps=0.5))
    fit(tmp_path, loss=share, schedule=None, num_steps=12)
    with pytest.raises(ValueError, match=r"whose num_steps is 30; got 12\. Write"):
        fit(tmp_path, loss=share, schedule=None, num_steps=30)
    steps = px.Annealed(px.ELBO(), px.LinearSchedule(0.1, 1.0, num_steps=5))
    fit(tmp_path / "steps", loss=steps, schedule=None, num_steps=12)
    run, _ = fit(tmp_path / "steps", loss=steps, schedule=None, num_steps=30)
    assert run.num_steps == 30


def test_a_pair_is_as_it_was_after_a_refusal(tmp_path):
    fit(tmp_path, num_steps=12)
    torch.manual_seed(7)
    model = Model()
    before = model.loc.clone()
    with pytest.raises(ValueError, match="whose lr is"):
        fit(tmp_path, model=model, optim=partial(Adam, lr=0.01), num_steps=12)
    assert torch.equal(model.loc, before)


# ---------------------------------------------------------------------- unreadable states


class Decay:
    """A rate with an attribute that no reader of weights takes."""

    def __init__(self):
        self.rates = np.full(100, 0.5)

    def __call__(self, step):
        return self.rates[step]


class Own(LRScheduler):
    """A schedule with such an attribute."""

    def __init__(self, optimizer):
        self.decay = Decay()
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * self.decay(self.last_epoch) for rate in self.base_lrs]


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(partial(LambdaLR, lr_lambda=Decay()), "multiarray._reconstruct"), (Own, "Decay")],
)
def test_a_schedule_whose_state_cannot_be_read_is_refused_at_once(schedule, name, tmp_path):
    match = rf"tensors, numbers and texts alone.*; got \S*{name}\. Write: schedules with"
    seen = []
    with pytest.raises(TypeError, match=match):
        fit(tmp_path, schedule=schedule, callbacks=[seen.append])
    assert len(seen) == 1
    assert fit(schedule=schedule)[0].num_steps == 40


def test_what_is_unreadable_in_a_file_is_named(tmp_path):
    path = tmp_path / "step-000000001.pt"
    path.write_bytes(as_file({"asked": Own}))
    with pytest.raises(ValueError, match=r"which was not run: \S+\.Own\. "):
        px.Checkpoints(tmp_path).last()


# ---------------------------------------------------------------------- bad files


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def as_file(payload):
    """A checkpoint with a right head around anything."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    body = buffer.getvalue()
    digest = files.hashlib.sha256(body).hexdigest()
    return b"pyro_ext checkpoint 1\n%d %s\n" % (len(body), digest.encode()) + body


def flip(data, position):
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def refused(folder, path, data, match, act=fit):
    good = path.read_bytes()
    path.write_bytes(data)
    try:
        with pytest.raises(ValueError, match=match) as caught:
            act(folder)
    finally:
        path.write_bytes(good)
    assert path.name in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(1)
    fit(tmp_path, num_steps=12)
    return tmp_path, max(tmp_path.glob("step-*"))


def test_fifty_corruptions_are_refused(saved):
    folder, path = saved
    data, choice = path.read_bytes(), random.Random(0)
    body = len(data.split(b"\n", 2)[2])
    read = lambda folder: px.Checkpoints(folder).last()  # noqa: E731
    for _ in range(25):
        place = len(data) - choice.randrange(1, body)
        refused(folder, path, flip(data, place), "expected the checksum .* altered", read)
    for _ in range(20):
        end = len(data) - choice.randrange(1, body)
        refused(folder, path, data[:end], r"expected \d+ bytes after the head; got", read)
    refused(folder, path, b"", "a file of another kind")
    refused(folder, path, b"\x80\x02hello", "a file of another kind")
    refused(folder, path, data.replace(b"checkpoint 1", b"checkpoint 9", 1), "got version 9")
    refused(folder, path, as_file({"number": Bomb()}), "something else, which was not run")
    refused(folder, path, as_file([1, 2]), "something else")
    assert not os.path.exists("exploded")


def amortized(model):
    return px.AutoAmortized(model, nn.Unflatten(0, (-1, 1)))


OTHERS = {
    "another model": ({"model": "wide"}, r"'model: loc' of shape \(2,\) in .*; got \(1,\)"),
    "another guide": ({"guide": amortized}, r"got one without 'guide: "),
    "another loss": ({"loss": px.ELBO()}, r"whose loss is .*ELBO\(.*; got .*IWAE\("),
    "other data": ({"data": X + 1}, "whose data is"),
    "another batch size": ({"batch_size": 5}, "whose batch_size is 5; got 4"),
    "another seed": ({"seed": 4}, "whose seed is 4; got 3"),
    "another length of a schedule": ({"num_steps": 90}, "whose num_steps is 90; got 12"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_fit_is_refused(name, saved):
    folder, path = saved
    options, match = OTHERS[name]
    options = {"num_steps": 12, **options}
    if "model" in options:
        options["model"] = Model(2)
    with pytest.raises(ValueError, match=match) as caught:
        fit(folder, **options)
    assert path.name in str(caught.value)


def test_the_one_before_is_taken_when_asked(tmp_path):
    torch.manual_seed(1)
    never = fit()
    torch.manual_seed(1)
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, callbacks=[stopped_at(22)])
    path = max(tmp_path.glob("step-*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"truncated.*damaged='previous'"):
        fit(tmp_path)
    previous = px.Checkpoints(tmp_path, every=5, damaged="previous")
    with pytest.warns(UserWarning, match=r"truncated.*Going on from the one before"):
        same(fit(checkpoints=previous), never)


def test_where_none_is_good_it_is_said(saved):
    folder, _ = saved
    for path in folder.glob("step-*"):
        path.write_bytes(b"")
    previous = px.Checkpoints(folder, damaged="previous")
    with (
        pytest.warns(UserWarning, match="Going on"),
        pytest.raises(ValueError, match=r"no other\. Write: another folder"),
    ):
        fit(checkpoints=previous)
