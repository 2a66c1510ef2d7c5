"""Checkpoints: a run that was killed goes on to the last bit; a bad file is refused."""

import io
import os
import random
import signal
import stat
import time
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR

import pyro_ext as px
from pyro_ext.training import files, graphs
from pyro_ext.training.compiled.clipped_adam import ClippedAdam

X = torch.linspace(-2, 3, 10)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "graph")


class Model(nn.Module):
    """Draws from Python's and NumPy's random numbers, too, and has a buffer that changes."""

    def __init__(self, width=1):
        super().__init__()
        self.loc, self.norm = nn.Parameter(torch.randn(width)), nn.BatchNorm1d(1)

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc[0], 1.0))
            mean = z + 0.1 * self.norm(x.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(mean, pyro.param("s", torch.tensor(0.7))), obs=x)


def fit(folder=None, *, model=None, guide=px.AutoPerDatapoint, data=X, num_steps=40, **options):
    pyro.clear_param_store()
    model = Model() if model is None else model
    if folder is not None:
        options = {"checkpoints": px.Checkpoints(folder, every=5), **options}
    options = {
        "optim": partial(Adam, lr=0.05),
        "schedule": partial(CosineAnnealingLR, T_max=40),
        "batch_size": 4,
        "compile": False,
        "seed": 3,
        "progress": False,
        **options,
    }
    loss = options.pop("loss", None) or px.IWAE(2)
    run = px.fit(model, guide(model), loss, data, num_steps=num_steps, **options)
    params = {name: p.detach().clone() for name, p in pyro.get_param_store()._params.items()}
    for side, module in (("model", model), ("guide", run.guide)):
        params |= {f"{side} {n}": t.clone() for n, t in nn.Module.state_dict(module).items()}
    return run, params


def same(one, other):
    assert np.array_equal(one[0].losses, other[0].losses)
    assert np.array_equal(one[0].elbo_per_datum, other[0].elbo_per_datum)
    assert one[0].stopped == other[0].stopped
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


def stopped_at(number):
    """A callback that ends a run as an error would."""

    def callback(progress):
        if progress.step == number:
            raise KeyError("stopped here")

    return callback


VARIANTS = {
    "eager": {},
    "compiled": {"compile": True},
    "recorded": {"compile": "record"},
    "full batch": {"batch_size": None},
    "sparse": {"guide": partial(px.AutoPerDatapoint, sparse=True)},
    "one side": {"train": "guide"},
    "chunks": {"chunk": 1},
}


@pytest.mark.parametrize("number", [0, 22])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(name, number, tmp_path):
    options = VARIANTS[name]
    torch.manual_seed(1)
    never = fit(**options)
    torch.manual_seed(1)
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, callbacks=[stopped_at(number)], **options)
    torch.manual_seed(99)  # another process has other numbers, and other first parameters
    same(fit(tmp_path, **options), never)


def test_a_run_that_was_stopped_before_its_graph_compiles_where_it_would_have(tmp_path):
    torch.manual_seed(1)
    never = fit(compile=True)
    torch.manual_seed(1)
    saving = px.Checkpoints(tmp_path, every=1)
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, callbacks=[stopped_at(1)], checkpoints=saving, compile=True)
    torch.manual_seed(99)
    again = fit(tmp_path, compile=True)
    assert again[0].compiled.startswith("from step 1 on")
    same(again, never)


def test_annealing_goes_on(tmp_path):
    make = lambda: px.Annealed(px.ELBO(), px.LinearSchedule(0.1, 1.0, num_steps=0.8))  # noqa: E731
    torch.manual_seed(1)
    never = fit(loss=make())
    torch.manual_seed(1)
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, loss=make(), callbacks=[stopped_at(11)])
    same(fit(tmp_path, loss=make()), never)


def test_a_critic_goes_on(tmp_path):
    make = lambda: px.Adversarial(4, warmup=2, critic_steps=1)  # noqa: E731
    torch.manual_seed(1)
    never = fit(loss=make(), num_steps=12, schedule=None)
    torch.manual_seed(1)
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, loss=make(), callbacks=[stopped_at(7)], num_steps=12, schedule=None)
    torch.manual_seed(99)
    same(fit(tmp_path, loss=make(), num_steps=12, schedule=None), never)


def test_a_run_that_has_ended_comes_back_at_once(tmp_path):
    first = fit(tmp_path)
    calls = []
    same(fit(tmp_path, callbacks=[calls.append]), first)
    assert calls == []


def test_more_steps_than_before(tmp_path):
    torch.manual_seed(1)
    never = fit(schedule=None)
    torch.manual_seed(1)
    fit(tmp_path, schedule=None, num_steps=17)
    same(fit(tmp_path, schedule=None), never)


def test_the_seed_is_that_of_the_checkpoint(tmp_path):
    torch.manual_seed(1)
    first = fit(tmp_path, seed=None)
    same(fit(tmp_path, seed=None), first)


def test_the_last_ones_are_kept(tmp_path):
    fit(tmp_path, checkpoints=px.Checkpoints(tmp_path, every=5, keep=2), num_steps=33)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-000000030.pt", "step-000000033.pt"]


@pytest.mark.parametrize("option", [{"every": 0}, {"keep": 0}])
def test_options(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"Checkpoints: expected {name} >= 1; got 0\."):
        px.Checkpoints("folder", **option)
    with pytest.raises(ValueError, match="expected damaged to be one of"):
        px.Checkpoints("folder", damaged="ignore")


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


# ---------------------------------------------------------------------- killed


def in_a_child(act, wait, number):
    """Run a function in a process of its own, which gets a signal when ``wait`` returns."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the others did not survive the fork
        try:
            act()
        finally:
            os._exit(7)
    wait()
    os.kill(child, number)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_and_go_on(folder, kills, seed, longest=0.25, **options):
    """Kill a run at random moments, then let it finish; return how often it was still running."""
    slow = lambda progress: time.sleep(0.02)  # noqa: E731
    torch.manual_seed(1)
    never, choice, died = fit(**options), random.Random(seed), 0
    saving = px.Checkpoints(folder, every=1)
    for _ in range(kills):
        torch.manual_seed(1)
        quick = partial(fit, folder, callbacks=[slow], checkpoints=saving, **options)
        wait = partial(time.sleep, choice.uniform(0.0, longest))
        died += in_a_child(quick, wait, signal.SIGKILL) == signal.SIGKILL
    torch.manual_seed(99 if list(folder.glob("step-*")) else 1)
    same(fit(folder, **options), never)
    return died


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills(tmp_path):
    assert kill_and_go_on(tmp_path, 3, seed=0) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_hundred_kills(tmp_path):
    died = sum(kill_and_go_on(tmp_path / str(run), 5, seed=run) for run in range(25))
    assert died >= 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills_of_compiled_runs(tmp_path):
    kill = partial(kill_and_go_on, kills=5, longest=1.0, compile=True)
    assert sum(kill(tmp_path / str(run), seed=run) for run in range(10)) >= 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kills_of_runs_compiled_by_inductor(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "inductor")
    # The callback alone holds a run up for 20 seconds.
    died = kill_and_go_on(tmp_path, 5, seed=0, longest=15.0, compile=True, num_steps=1000)
    assert died >= 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_told_to_end_it_saves_and_ends(tmp_path):
    begun, folder = tmp_path / "begun", tmp_path / "saved"

    def slow(progress):
        begun.touch()
        time.sleep(0.01)

    def wait():
        for _ in range(6000):
            if begun.exists():
                return
            time.sleep(0.01)

    saving = px.Checkpoints(folder, every=1000)
    torch.manual_seed(1)
    never = fit(num_steps=400, schedule=None)
    act = partial(fit, num_steps=400, schedule=None, callbacks=[slow], checkpoints=saving)
    torch.manual_seed(1)
    assert in_a_child(act, wait, signal.SIGTERM) == signal.SIGTERM
    first, path = sorted(folder.iterdir())
    assert first.name == "step-000000000.pt"
    assert 0 < int(path.stem.removeprefix("step-")) < 400
    same(fit(num_steps=400, schedule=None, checkpoints=saving), never)


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    full = []

    def fsync(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode) and len(list(tmp_path.glob("step-*"))) == 2:
            full.append(handle)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.warns(UserWarning, match=r"step 10 .*No space left on device.*step-000000005\.pt"):
        run, _ = fit(tmp_path, num_steps=10)
    assert run.num_steps == 10
    assert len(full) > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000000.pt", "step-000000005.pt"]


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
