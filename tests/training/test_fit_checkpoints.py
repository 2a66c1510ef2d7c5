"""Checkpoints: a run that was killed goes on to the last bit."""

import os
import random
import signal
import stat
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR
from training.checkpoint_cases import fit, same, stopped_at

import pyro_ext as px
from pyro_ext.training import files, graphs


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "graph")


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


NUMPYS = {
    "rate": {"optim": partial(Adam, lr=np.float32(0.05))},
    "steps": {"schedule": partial(CosineAnnealingLR, T_max=np.int64(40))},
    "milestones": {"schedule": partial(MultiStepLR, milestones=np.arange(5, 40, 5))},
    "norm": {"clip_norm": np.float64(2.0)},
    "seed": {"seed": np.int64(3)},
    "number": {"num_steps": np.int64(40), "batch_size": np.int64(4)},
}


@pytest.mark.parametrize("name", NUMPYS)
def test_numbers_of_numpy_are_saved_as_those_of_python(name, tmp_path):
    """Files are read without running code, and so without NumPy's numbers."""
    options = NUMPYS[name]
    torch.manual_seed(1)
    never = fit(**options)
    torch.manual_seed(1)
    with pytest.raises(KeyError, match="stopped here"):
        fit(tmp_path, callbacks=[stopped_at(22)], **options)
    torch.manual_seed(99)
    same(fit(tmp_path, **options), never)


def test_chunks_are_those_that_are_asked_for_now(tmp_path):
    """As where a run has ended for want of memory."""
    options = {"loss": px.IWAE(6), "num_steps": 10}
    fit(tmp_path, **options)
    sizes = [
        fit(tmp_path, chunk=chunk, **options)[0].session._chunks.size for chunk in (2, "auto")
    ]
    assert sizes == [2, None]


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
