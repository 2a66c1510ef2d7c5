"""Several processes: their joint gradient, curve, checkpoints and faults are those of one."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed as distributed
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from training import ranks_job as job

import pyro_ext as px
from pyro_ext.training import graphs

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SCRIPT = Path(job.__file__)


@contextmanager
def forked(act, folder, size=2):
    """Run a function of the rank in processes of one group; yield their ids and how to wait."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.pt"):
        left.unlink()
    group, children = folder / f"group-{time.monotonic_ns()}", []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                distributed.init_process_group(
                    "gloo", init_method=f"file://{group}", rank=rank, world_size=size
                )
                torch.save(act(rank), folder / f"{rank}.pt")
                code = 0
            except BaseException as error:
                (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(code)
        children.append(child)
    yield children, lambda: [os.waitpid(child, 0)[1] for child in children]


def in_ranks(act, folder, size=2):
    """Return what a function of the rank gives in each process, or what it raises as a text."""
    with forked(act, folder, size) as (_, wait):
        wait()
    results = []
    for rank in range(size):
        path = folder / f"{rank}.pt"
        text = folder / f"{rank}.txt"
        results.append(torch.load(path) if path.exists() else text.read_text())
    return results


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, str):
            assert found[name] == value
        else:
            torch.testing.assert_close(found[name], value, **{"rtol": 0, "atol": 0, **tolerance})


# ---------------------------------------------------------------------- the joint batch


@pytest.fixture(scope="module")
def every_case(tmp_path_factory):
    """What each case gives in two processes, in each of them, and in one."""

    def act(rank=0):
        torch.set_default_dtype(torch.float64)
        with job.fixed_noise():
            return {name: case() for name, case in job.cases().items()}

    before = torch.get_default_dtype()
    ours = in_ranks(act, tmp_path_factory.mktemp("cases"))
    alone = act()
    torch.set_default_dtype(before)
    return ours, alone


@pytest.mark.parametrize("name", job.cases())
def test_two_processes_fit_as_one_does(name, every_case):
    """Of one step of SGD, that is the gradient; of many of Adam, the curve of the loss."""
    ours, alone = every_case
    same(ours[0][name], alone[name], rtol=1e-10, atol=1e-13)
    same(ours[1][name], ours[0][name])


def test_three_processes_with_batches_that_do_not_divide(tmp_path):
    def fit():
        adam = partial(torch.optim.Adam, lr=0.1)
        return job.fit("amortized", "CIWAE", "batches of 5", optim=adam, num_steps=6)

    with job.fixed_noise():
        alone = fit()
        for ours in in_ranks(lambda rank: fit(), tmp_path, size=3):
            same(ours, alone, rtol=1e-10, atol=1e-13)


def test_torchs_own_wrapper_around_a_loss(tmp_path):
    alone = job.ddp_gradient(torch.arange(8))
    parts = torch.arange(8).tensor_split(2)
    for ours in in_ranks(lambda rank: job.ddp_gradient(parts[rank]), tmp_path):
        same(ours, alone, rtol=1e-10, atol=1e-13)


def test_compiled_steps_are_the_eager_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "graph")
    adam = {"optim": partial(torch.optim.Adam, lr=0.05), "num_steps": 30}

    def act(rank):
        return [job.fit(compile=compile, **adam) for compile in (True, False)]

    for compiled, eager in in_ranks(act, tmp_path):
        assert compiled.pop("compiled").startswith("from step 1 on")
        assert eager.pop("compiled") == "no: compile=False"
        same(compiled, eager, rtol=1e-9, atol=1e-12)


def test_loaders_with_a_sampler_of_their_own(tmp_path):
    """Next to without noise: draws have a standard deviation of 1e-6, the entropy is exact."""

    def act(rank=None):
        torch.manual_seed(1)
        data = TensorDataset(job.X)
        sampler = None if rank is None else DistributedSampler(data, shuffle=False)
        loader = DataLoader(data, 6 if rank is None else 3, sampler=sampler)
        model = job.Model("local")
        guide = job.amortized(model, init_scale=1e-6)
        guide.setup(job.X)
        still = partial(torch.optim.SGD, lr=0.0)
        loss = px.ELBO(form="entropy")
        run = px.fit(model, guide, loss, loader, still, num_steps=4, seed=0, progress=False)
        return torch.tensor(run.losses)

    alone = act()
    for ours in in_ranks(act, tmp_path):
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-3)
    assert alone[0] != alone[1]


def test_each_process_has_noise_of_its_own_and_the_parameters_of_the_first(tmp_path):
    def act(rank):
        torch.manual_seed(rank)
        drawn = []
        model = job.Model("local")
        loc = torch.nn.Parameter(torch.randn(()))

        def guide(x):
            with pyro.plate("data", len(x)):
                drawn.append(pyro.sample("z", dist.Normal(pyro.param("loc", loc), 1.0)).detach())

        still = partial(torch.optim.SGD, lr=0.0)
        px.fit(model, guide, px.ELBO(), job.X, still, num_steps=1, seed=0, progress=False)
        return drawn[-1], pyro.param("loc").detach()

    (one, loc), (other, other_loc) = in_ranks(act, tmp_path)
    assert loc == other_loc
    assert one.shape == other.shape == (6,)
    assert not torch.isclose(one, other).any()


def test_a_model_without_rows_has_the_mean_gradient_of_independent_draws(tmp_path):
    def act(rank):
        def model():
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=one)

        one = torch.tensor(1.0)
        run = px.fit(model, seed=0, num_steps=3, compile=False, progress=False)
        return torch.tensor(run.losses)

    one, other = in_ranks(act, tmp_path)
    assert torch.equal(one, other)


# ---------------------------------------------------------------------- nothing lost


def test_a_killed_process_ends_the_job_which_goes_on_to_the_last_bit(tmp_path):
    (never, _) = in_ranks(lambda rank: job.long_fit(None), tmp_path / "never")
    folder = tmp_path / "checkpoints"

    def act(rank):
        return job.long_fit(folder, callbacks=[lambda progress: time.sleep(0.02)])

    with forked(act, tmp_path / "killed") as (children, wait):
        while not (folder / "step-000000015.pt").exists():
            time.sleep(0.01)
        os.kill(children[1], signal.SIGKILL)
        ended, killed = wait()
    assert os.WTERMSIG(killed) == signal.SIGKILL
    assert os.WEXITSTATUS(ended) == 1
    message = (tmp_path / "killed" / "0.txt").read_text()
    assert re.search(r"RuntimeError: fit: expected all 2 processes .* process 0 waited", message)
    assert "Write: the same command again" in message
    assert not list((tmp_path / "killed").glob("*.pt"))
    for ours in in_ranks(lambda rank: job.long_fit(folder), tmp_path / "again"):
        same(ours, never)


def test_one_process_that_is_told_to_end_ends_all_with_one_checkpoint(tmp_path):
    (never, _) = in_ranks(lambda rank: job.long_fit(None), tmp_path / "never")
    saving = px.Checkpoints(tmp_path / "checkpoints", every=1000)

    def act(rank):
        slow = [lambda progress: time.sleep(0.02)]
        return job.long_fit(None, checkpoints=saving, callbacks=slow)

    with forked(act, tmp_path / "told") as (children, wait):
        while not saving.files:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(children[1], signal.SIGTERM)
        assert [os.WTERMSIG(status) for status in wait()] == [signal.SIGTERM] * 2
    last, first = saving.files
    assert first.name == "step-000000000.pt"
    assert 0 < int(last.stem.removeprefix("step-")) < 40
    for ours in in_ranks(lambda rank: job.long_fit(None, checkpoints=saving), tmp_path / "again"):
        same(ours, never)


def test_more_processes_take_up_what_one_has_saved(tmp_path):
    folder = tmp_path / "checkpoints"
    job.long_fit(folder, num_steps=10)
    one, other = in_ranks(lambda rank: job.long_fit(folder), tmp_path)
    same(one, other)
    assert len(one["losses"]) == 40


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The job of a script, one of whose processes is killed; then the same command again."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", SCRIPT]
    options = {
        "stderr": subprocess.PIPE,
        "text": True,
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
    }
    never, folder = tmp_path / "never", tmp_path / "killed"
    never.mkdir()
    folder.mkdir()
    subprocess.run([*launch, never], check=True, **options)
    running = subprocess.Popen([*launch, folder], **options)
    while not (folder / "checkpoints" / "step-000000010.pt").exists():
        time.sleep(0.05)
    os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL)
    _, told = running.communicate()
    assert running.returncode != 0
    assert "Signal 9 (SIGKILL) received" in told
    assert "fit: expected all 2 processes to take part in each step" in told
    assert not list(folder.glob("*.pt"))
    subprocess.run([*launch, folder], check=True, **options)
    for rank in range(2):
        same(torch.load(folder / f"result-{rank}.pt"), torch.load(never / f"result-{rank}.pt"))


# ---------------------------------------------------------------------- faults


def test_what_is_not_finite_in_one_process_is_named_there_and_told_in_the_others(tmp_path):
    def act(rank):
        class Model(job.Model):
            calls = 0

            def forward(self, rows):
                Model.calls += 1
                if Model.calls == 30 and rank == 1:
                    x[8] = float("nan")
                super().forward(rows)

        x, model = job.X.clone(), Model("local")
        options = {"batch_size": job.N, "num_steps": 99, "seed": 0, "compile": False}
        px.fit(model, job.amortized(model), px.ELBO(), x, progress=False, **options)

    one, other = in_ranks(act, tmp_path)
    found = re.search(r"at step (\d+) in process 1, whose own message says where", one)
    assert found, one
    assert re.search(rf"(?s)at step {found[1]}\. .*rows \[8\]", other), other


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=3) as rows:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])


REFUSED = {
    "other data": (
        lambda rank: px.fit(job.Model("local"), data=job.X + rank),
        r"expected the data to be the same in all 2 processes.*with all rows",
    ),
    "a loader of the same rows": (
        lambda rank: px.fit(job.Model("local"), data=DataLoader(TensorDataset(job.X), 4)),
        r"expected a loader that gives each of the 2 processes rows of its own.*Distributed",
    ),
    "a subsample of its own": (
        lambda rank: px.fit(subsampled, data=job.X, batch_size=3),
        r"written for the rows .* plate 'data' with a subsample_size of its own",
    ),
    "a critic": (
        lambda rank: px.fit(job.Model("local"), None, px.Adversarial(4), job.X),
        "expected a loss without a critic in 2 processes",
    ),
    "no settings": (
        lambda rank: px.fit(job.Model("local"), data=job.X, optim="auto"),
        "expected settings in 2 processes, which go in step",
    ),
    "another folder": (
        lambda rank: job.long_fit(Path(os.environ["RANKS_FOLDER"]) / str(rank)),
        "expected the last checkpoint to be the same in all 2 processes; got None in process 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path, monkeypatch):
    act, match = REFUSED[name]
    monkeypatch.setenv("RANKS_FOLDER", str(tmp_path / "saved"))
    if name == "another folder":
        job.long_fit(tmp_path / "saved" / "1", num_steps=5)
    for text in in_ranks(act, tmp_path):
        assert re.search(match, text), text


def test_processes_of_torchrun_without_a_group_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match=r"form a group.*torch\.distributed\.init_process_group"):
        px.fit(job.Model("local"), data=job.X)
