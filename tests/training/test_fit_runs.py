"""Held-out looks, plateaus, longer runs, less memory, and fitted pairs in a file."""

import dataclasses
import subprocess
import sys
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from training.fit_cases import X, adam, amortized, local, quiet

import pyro_ext as px
from pyro_ext.training.holdout import annealing_end


def test_text_of_a_run_and_of_its_guide():
    run = quiet(local, data=X, family=px.Diagonal(), num_steps=10, seed=3)
    guide, loss, steps, stopped, compiled = str(run).splitlines()
    assert guide == "guide    AutoJoint, Diagonal()"
    assert loss == "loss     ELBO(num_particles=1, estimator='reparam')"
    assert steps.startswith("steps    10 in ")
    assert steps.endswith(" s, seed 3")
    assert stopped == "stopped  num_steps=10 reached"
    assert compiled == "compiled no"
    assert repr(run.guide) == "AutoJoint(family=Diagonal())"
    judged = quiet(local, data=X, seed=0)
    assert str(judged).splitlines()[-1] == f"verdict  {judged.verdict}"


# ---------------------------------------------------------------------- model and guide apart


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        pyro.module("trained", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_model_and_guide_have_rates_of_their_own():
    sgd = partial(torch.optim.SGD, momentum=0.0)
    model = Trained()
    guide = px.AutoPerDatapoint(model)
    guide.setup(X)
    before = guide.local_params.detach().clone()
    optim = {"model": partial(sgd, lr=0.1), "guide": partial(sgd, lr=0.0)}
    run = quiet(model, guide, px.ELBO(), X, optim, num_steps=3, seed=0)
    assert torch.equal(guide.local_params, before)
    assert model.loc.abs() > 0
    (optimizer,) = run.session.stepper.optimizers.optimizers
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_what_optimizers_for_both_sides_must_be():
    model = Trained()
    fit = partial(quiet, model, px.AutoPerDatapoint(model), px.ELBO(), X, num_steps=2)
    with pytest.raises(ValueError, match=r"one kind for model and guide; got \['Adam', 'SGD'\]"):
        fit(optim={"model": partial(torch.optim.SGD, lr=0.1), "guide": adam})
    with pytest.raises(ValueError, match=r"expected optim for 'model' and 'guide'; got \['net'\]"):
        fit(optim={"net": adam})


# ---------------------------------------------------------------------- held-out data


def test_held_out_data_are_looked_at_with_the_same_noise():
    """A guide that stands still has the same value each time, whatever the training draws."""
    holdout = px.Holdout(X[:4], every=10)
    still = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
    run = quiet(local, amortized(), px.ELBO(), X, still, num_steps=35, seed=0, holdout=holdout)
    assert run.holdout_steps.tolist() == [9, 19, 29, 34]
    assert np.ptp(run.holdout_per_datum) == 0


def test_looking_changes_nothing_of_the_fit():
    options = {"num_steps": 30, "seed": 0, "batch_size": 4}
    torch.manual_seed(2)
    plain = quiet(local, amortized(), px.ELBO(), X, adam, **options)
    torch.manual_seed(2)
    looked = quiet(
        local, amortized(), px.ELBO(), X, adam, holdout=px.Holdout(X, every=3), **options
    )
    assert np.array_equal(plain.losses, looked.losses)
    assert looked.holdout_per_datum[-1] > looked.holdout_per_datum[0]


def test_layers_are_in_the_mode_for_use_while_looked_at():
    modes = []
    layer = nn.Dropout(0.5)
    layer.register_forward_hook(lambda module, args, out: modes.append(module.training))
    guide = px.AutoAmortized(local, nn.Sequential(nn.Unflatten(0, (-1, 1)), layer))
    quiet(local, guide, data=X, num_steps=2, holdout=px.Holdout(X, every=1))
    assert layer.training
    assert True in modes
    assert False in modes


def weighed(scale, x):
    mu = pyro.sample("mu", dist.Normal(0.0, scale.sum()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_a_look_is_divided_by_the_rows_of_the_data_plate():
    """The first argument has other rows than the data."""
    held_out, guide = (torch.ones(3), X[:4]), px.AutoJoint(weighed, init_scale=1e-6)
    still = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
    looks = px.Holdout(held_out, every=1, loss=px.ELBO(form="entropy"))
    run = quiet(
        weighed, guide, px.ELBO(), (torch.ones(3), X), still, num_steps=1, seed=0, holdout=looks
    )
    expected = -px.ELBO(form="entropy").loss(weighed, guide, *held_out) / 4
    np.testing.assert_allclose(run.holdout_per_datum, expected, rtol=1e-3)


def test_a_look_takes_no_more_particles_at_once_than_a_step(monkeypatch):
    real, most = px.IWAE._weigh, []

    def counted(self, pair, particles):
        most.append(particles.inner)
        return real(self, pair, particles)

    monkeypatch.setattr(px.IWAE, "_weigh", counted)
    looks = px.Holdout(X[:4], every=1)
    quiet(local, amortized(), px.IWAE(12), X, adam, num_steps=2, holdout=looks, chunk=3)
    assert max(most) == 3


def test_a_plate_that_the_model_does_not_have_is_refused():
    match = (
        r"fit: expected plate to be one of the model's, \['data'\]; got 'dta'\. Write: the name"
    )
    with pytest.raises(ValueError, match=match):
        quiet(local, amortized(), px.ELBO(), X, adam, num_steps=2, plate="dta")


def test_a_look_is_without_annealing():
    loss = px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=0.9))
    still = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
    run = quiet(local, amortized(), loss, X, still, num_steps=30, holdout=px.Holdout(X, every=10))
    assert np.ptp(run.holdout_per_datum) == 0


# ---------------------------------------------------------------------- plateau


def test_a_plateau_ends_a_fit_that_has_converged():
    run = quiet(
        local,
        px.AutoPerDatapoint(local),
        px.ELBO(4),
        X,
        adam,
        num_steps=5000,
        seed=0,
        plateau=px.Plateau(window=100),
    )
    assert 200 < run.num_steps < 2000
    assert run.stopped.startswith("plateau: from one window of 100 steps to the next the loss")
    assert run.losses[-100:].mean() < run.losses[:20].mean()


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_that_falls_is_no_plateau(seed):
    slow = lambda params: torch.optim.SGD(params, lr=2e-3)  # noqa: E731
    run = quiet(
        local,
        px.AutoPerDatapoint(local),
        px.ELBO(16, estimator="stl"),
        X,
        slow,
        num_steps=400,
        seed=seed,
        plateau=px.Plateau(window=100, patience=1),
    )
    assert run.stopped == "num_steps=400 reached"


@pytest.mark.parametrize(("num_steps", "chunk"), [(300, None), (0.75, None), (0.25, 2)])
def test_no_plateau_before_the_annealing_ends(num_steps, chunk):
    loss = px.Annealed(px.ELBO(2), px.LinearSchedule(1.0, 1.0, num_steps=num_steps))
    still = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
    options = {"plateau": px.Plateau(window=20, z=5.0, patience=1), "seed": 0, "chunk": chunk}
    run = quiet(local, data=X, loss=loss, optim=still, num_steps=400, **options)
    assert run.num_steps == annealing_end(loss) + 40


@pytest.mark.parametrize("option", [{"window": 10}, {"z": -1.0}, {"patience": 0}])
def test_options_of_a_plateau(option):
    with pytest.raises(ValueError, match="Plateau: expected window >= 20, z >= 0"):
        px.Plateau(**option)
    with pytest.raises(ValueError, match=r"Holdout: expected every >= 1; got 0\."):
        px.Holdout(X, every=0)


# ---------------------------------------------------------------------- longer runs


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_longer_run_is_one_that_was_longer_from_the_start(batch_size):
    options = {"batch_size": batch_size, "seed": 0}
    torch.manual_seed(2)
    whole = quiet(local, amortized(), px.IWAE(2), X, adam, num_steps=60, **options)
    torch.manual_seed(2)
    first = quiet(local, amortized(), px.IWAE(2), X, adam, num_steps=23, **options)
    torch.manual_seed(5)
    longer = first.resume(37)
    assert np.array_equal(longer.losses, whole.losses)
    assert np.array_equal(longer.elbo_per_datum, whole.elbo_per_datum)
    assert longer.num_steps == 60
    assert first.num_steps == 23
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.parametrize("loss", [px.ELBO(), px.IWAE(2)])
@pytest.mark.parametrize("further", [10, 1])
def test_a_step_that_was_broken_off_leaves_no_record(loss, further):
    """Step 50 is recorded whatever comes, and the only step of one more is the last."""
    broken = []

    def breaking(x):
        if broken:
            raise KeyboardInterrupt
        local(x)

    guide = px.AutoPerDatapoint(breaking)
    first = quiet(breaking, guide, loss, X, adam, num_steps=50, seed=0)
    broken.append(True)
    with pytest.raises(KeyboardInterrupt):
        first.resume(further)
    broken.clear()
    run = first.resume(60)
    assert run.elbo_steps.tolist() == [0, 50, 100, 109]
    assert len(run.elbo_per_datum) == 4
    if isinstance(loss, px.ELBO):
        np.testing.assert_allclose(run.elbo_per_datum, -run.losses[run.elbo_steps] / 10)


def test_a_look_that_fails_leaves_no_record():
    looks = px.Holdout(X[:4], every=5)
    guide = px.AutoPerDatapoint(local)
    run = quiet(local, guide, px.ELBO(), X, adam, num_steps=4, seed=0)
    broken = dataclasses.replace(run.session.settings, holdout=looks)
    run.session.settings = broken
    with pytest.raises(ValueError, match="expected plate 'data' to have the 10 datapoints"):
        run.resume(5)
    assert run.session.history.holdout_steps == []


def test_a_loss_that_is_annealed_in_two_runs_has_the_time_of_each():
    loss = px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=0.5))
    run = quiet(local, amortized(), loss, X, adam, num_steps=20, seed=0)
    quiet(local, amortized(), loss, X, adam, num_steps=1000, seed=0)
    run.resume(10)
    assert loss.beta == 1.0


def test_a_run_goes_to_arviz():
    run = quiet(local, amortized(), px.ELBO(), X, adam, num_steps=3, seed=0)
    mine = run.to_datatree(num_samples=5, seed=1).posterior["z"]
    theirs = px.to_datatree(run, num_samples=5, seed=1).posterior["z"]
    assert mine.sizes["draw"] == 5
    assert np.array_equal(mine, theirs)


# ---------------------------------------------------------------------- memory


def test_chunk_auto_halves_until_a_step_fits(monkeypatch):
    real = px.IWAE._weigh

    def limited(self, pair, particles):
        if particles.inner > 3:
            raise MemoryError
        return real(self, pair, particles)

    loss = px.IWAE(12)
    whole = quiet(local, amortized(), loss.in_chunks(3), X, adam, num_steps=5, seed=0)
    monkeypatch.setattr(px.IWAE, "_weigh", limited)
    match = r"not enough memory for all 12 particles; the steps go on with \d at once"
    with pytest.warns(UserWarning, match=match) as told:
        run = quiet(local, amortized(), loss, X, adam, num_steps=5, seed=0, chunk="auto")
    assert len(told) == 2
    assert run.num_steps == whole.num_steps == 5
    with pytest.raises(MemoryError):
        quiet(local, amortized(), loss, X, adam, num_steps=5)
    with pytest.raises(ValueError, match="expected chunk to be a number of particles, 'auto'"):
        quiet(local, data=X, chunk="half")


# ---------------------------------------------------------------------- serving

SERVE = """
import sys, torch, pyro, pyro.distributions as dist, pyro_ext as px
torch.set_default_dtype(torch.float64)
def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
guide = px.AutoAmortized(local, torch.nn.Unflatten(0, (-1, 1)))
x = torch.tensor([1.0, 4.0, -2.0])
px.load_pair(sys.argv[1], local, guide, x)
torch.manual_seed(0)
print(guide.sample_posterior(4000, x)["z"].mean(0).tolist())
"""


def test_a_fitted_pair_serves_new_data_in_a_fresh_process(tmp_path):
    guide = amortized()
    quiet(local, guide, px.ELBO(8, estimator="stl"), X, adam, num_steps=300, seed=0)
    px.save_pair(tmp_path / "fitted.pt", local, guide, X)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(tmp_path / "fitted.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    means = torch.tensor([float(word.strip("[],")) for word in done.stdout.split()])
    torch.testing.assert_close(means, torch.tensor([0.5, 2.0, -1.0]), rtol=0, atol=0.06)


def test_a_pair_of_another_kind_is_refused(tmp_path):
    px.save_pair(tmp_path / "fitted.pt", local, amortized(), X)
    with pytest.raises(ValueError, match=r"load_pair: .*expected a checkpoint of this model and"):
        px.load_pair(tmp_path / "fitted.pt", local, px.AutoPerDatapoint(local), X)
