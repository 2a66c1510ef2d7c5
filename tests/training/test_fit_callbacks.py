"""Callbacks, what they may do, and what ends a fit besides."""

import os
import signal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from training.fit_cases import X, adam, amortized, local, quiet

import pyro_ext as px


def test_a_callback_sees_each_step_and_may_stop():
    seen = []

    def callback(progress):
        seen.append((progress.step, progress.loss))
        assert progress.num_steps == 20
        assert progress.elbo_per_datum is not None
        return "enough" if progress.step == 7 else None

    run = quiet(local, data=X, num_steps=20, seed=0, callbacks=[callback])
    assert run.stopped == "enough"
    assert [step for step, _ in seen] == list(range(8))
    assert [loss for _, loss in seen] == run.losses.tolist()


@pytest.mark.parametrize("batch_size", [None, 4])
def test_what_a_callback_draws_changes_nothing_of_the_fit(batch_size):
    def draw(progress):
        torch.randn(3)

    losses = []
    for callbacks in ([], [draw]):
        torch.manual_seed(2)
        guide = amortized()
        options = {"num_steps": 12, "seed": 0, "batch_size": batch_size, "callbacks": callbacks}
        losses.append(quiet(local, guide, px.ELBO(), X, adam, **options).losses)
    assert np.array_equal(*losses)


def test_a_parameter_that_comes_late_is_refused():
    """As one for each group of data, where the first batch does not have all groups."""
    calls = []

    def model(x):
        calls.append(1)
        loc = pyro.param("late", torch.tensor(0.0)) if len(calls) > 20 else 0.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    match = (
        r"fit: expected each parameter to be there from the first step on; got 'late' later, whic"
    )
    with pytest.raises(ValueError, match=match):
        quiet(model, amortized(), px.ELBO(), X, adam, num_steps=40, seed=0)
    pyro.clear_param_store()


def test_a_signal_that_is_no_end_of_the_process_is_told(tmp_path):
    told = []

    def ask(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        run = quiet(local, data=X, num_steps=20, callbacks=[ask], checkpoints=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]
    assert (run.num_steps, run.stopped) == (6, "told to end by a signal")


def test_tensorboard_says_what_to_install():
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install tensorboard"):
            px.TensorBoard()
    else:
        pytest.skip("tensorboard is installed")


def test_tensorboard_gets_loss_bound_and_holdout(tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = px.TensorBoard(str(tmp_path))
    options = {"num_steps": 101, "seed": 0, "callbacks": [writer]}
    run = quiet(
        local, amortized(), px.IWAE(2), X, adam, holdout=px.Holdout(X, every=25), **options
    )
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {name: [e.value for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    np.testing.assert_allclose(found["loss"], run.losses[::50], rtol=1e-6)
    np.testing.assert_allclose(found["elbo_per_datum"], run.elbo_per_datum, rtol=1e-6)
    assert len(found["holdout_per_datum"]) == 2
