"""Where a compiled SVI runs eagerly, leaves a step out, or raises."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from training.compiled_cases import Y, adam, graph_svi, schools, train, vae

import pyro_ext as px
from pyro_ext.training.compiled import private
from pyro_ext.training.compiled.nonfinite import all_finite


def test_first_call_is_validated():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(z.exp() + 2), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="Bernoulli"):
        graph_svi(model, px.AutoJoint(model)).step()


def branching(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    scale = 1.0 if z > 0 else 2.0
    pyro.sample("x", dist.Normal(z, scale), obs=x)


def test_branch_on_a_latent_runs_eagerly_and_says_why():
    svi = graph_svi(branching, px.AutoJoint(branching))
    svi.step(torch.tensor(1.0))
    with pytest.warns(UserWarning, match=r"value of a tensor.*Write torch\.where"):
        svi.step(torch.tensor(1.0))
    losses, _ = train(
        lambda: (branching, px.AutoJoint(branching), (torch.tensor(1.0),)), compile=False
    )
    assert torch.isfinite(losses).all()
    assert svi._last is None


def test_with_an_untested_torch_steps_are_recorded(monkeypatch):
    monkeypatch.setattr(private, "TESTED_TORCH", ("1.0",))
    svi = px.CompiledSVI(schools, px.AutoJoint(schools), pyro.optim.Adam({"lr": 0.01}), px.ELBO())
    svi.step(Y)
    with pytest.warns(UserWarning, match=r"recorded, but not compiled.*not among.*Write compile="):
        svi.step(Y)
    assert svi._last.backend == "record"


def test_handler_around_the_step_is_not_ignored():
    svi = graph_svi(schools, px.AutoJoint(schools))
    for _ in range(3):
        svi.step(Y)
    with pytest.warns(UserWarning, match="effect handler"), pyro.poutine.scale(scale=100.0):
        assert svi.step(Y) > 1000
    assert svi.step(Y) < 1000


def test_wrong_graph_is_refused(monkeypatch):
    from pyro_ext.training.compiled import builder, graph

    def scaled(loss, params, tensors, rewrite):
        return graph.record(lambda *inputs: 1.001 * loss(*inputs), params, tensors, rewrite)

    monkeypatch.setattr(builder, "record", scaled)
    svi = graph_svi(schools, px.AutoJoint(schools))
    svi.step(Y)
    with pytest.warns(UserWarning, match="differs from the eager one"):
        svi.step(Y)
    assert svi._last is None


def test_without_a_compiler_steps_are_recorded(monkeypatch):
    from pyro_ext.training.compiled import step

    def broken(*args, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(step, "compile_graph", broken)
    pyro.set_rng_seed(0)
    svi = px.CompiledSVI(schools, px.AutoJoint(schools), pyro.optim.Adam({"lr": 0.1}), px.ELBO())
    svi.step(Y)
    with pytest.warns(
        UserWarning,
        match=r"recorded, but not compiled, because of RuntimeError: No working C\+\+ compiler.*"
        "Write compile='record'",
    ):
        svi.step(Y)
    assert svi._last.backend == "record"
    with pytest.warns(UserWarning, match="not compiled"):
        run = px.fit(schools, data=Y, num_steps=20, compile=True, seed=0, progress=False)
    assert run.compiled.startswith("recorded from step 1 on")
    eager = px.fit(schools, data=Y, num_steps=20, compile=False, seed=0, progress=False)
    assert run.losses.tolist() == eager.losses.tolist()


def test_a_compiled_step_that_is_wrong_is_recorded(monkeypatch):
    from pyro_ext.training.compiled import step

    def wrong(graph, inputs, **options):
        def call(inputs):
            (loss,) = graph(*inputs)
            return [1.001 * loss]

        return call

    monkeypatch.setattr(step, "compile_graph", wrong)
    svi = px.CompiledSVI(schools, px.AutoJoint(schools), pyro.optim.Adam({"lr": 0.1}), px.ELBO())
    svi.step(Y)
    with pytest.warns(UserWarning, match="not compiled, because the compiled step differs"):
        svi.step(Y)
    assert svi._last.backend == "record"


def test_numpys_random_numbers_are_not_held():
    def model(y):
        shift = np.random.random_sample()  # noqa: NPY002 (what a user may write)
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("schools", len(y)):
            pyro.sample("y", dist.Normal(mu + shift, 10.0), obs=y)

    svi = px.CompiledSVI(model, px.AutoJoint(model), adam, px.ELBO(), compile="record")
    svi.step(Y)
    before = np.random.get_state()[2]  # noqa: NPY002
    with pytest.warns(UserWarning, match=r"draws random numbers by NumPy.*Write torch\.rand"):
        svi.step(Y)
    assert svi._last is None
    assert np.random.get_state()[2] != before  # noqa: NPY002 (the eager step draws)


@pytest.mark.parametrize("compile", [True, False, "record"])
def test_step_that_is_not_finite_is_not_applied(compile):
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = px.AutoJoint(model)
    svi = graph_svi(model, guide, compile=compile)
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    for _ in range(3):
        svi.step(good)
    before = guide.params.detach().clone()
    state = svi.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with pytest.raises(ValueError, match="expected a finite loss and gradient"):
        svi.step(bad)
    assert torch.equal(guide.params, before)
    assert torch.equal(svi.optimizer.state_dict()["state"][0]["exp_avg"], state)
    svi.step(good)
    assert not torch.equal(guide.params, before)
    patient = graph_svi(model, guide, compile=compile, nonfinite="skip")
    for x in (good, good, bad, bad, good):
        patient.step(x)
    assert patient.num_skipped == 2


@pytest.mark.parametrize("optim", [adam, partial(torch.optim.Adagrad, lr=0.01)])
@pytest.mark.parametrize("compile", [True, False, "record"])
def test_a_step_that_is_left_out_changes_no_statistics(compile, optim):
    model, guide, (x,) = vae(torch.nn.BatchNorm1d(6))
    norm = model.__closure__[0].cell_contents[1]
    svi = graph_svi(model, guide, optim, compile=compile, nonfinite="skip")
    for _ in range(3):
        svi.step(x)
    before = {name: value.clone() for name, value in norm.named_buffers()}
    svi.step(torch.full_like(x, torch.nan))
    assert svi.num_skipped == 1
    for name, value in norm.named_buffers():
        assert torch.equal(value, before[name]), name
    svi.step(x)
    assert not torch.equal(norm.running_mean, before["running_mean"])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"optim": 3}, TypeError, "optim"),
        ({"compile": "auto"}, ValueError, "expected compile to be True, False or 'record'"),
        ({"clip_norm": -1.0}, ValueError, "expected clip_norm > 0"),
        ({"nonfinite": "ignore"}, ValueError, "expected nonfinite to be one of"),
        ({"max_graphs": 0}, ValueError, "expected max_graphs >= 1"),
    ],
)
def test_wrong_arguments(options, error, match):
    with pytest.raises(error, match=match):
        graph_svi(schools, px.AutoJoint(schools), **options)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda svi: svi.run(-1, Y), "num_steps >= 0"),
        (lambda svi: svi.run(1, Y, batches=[Y]), "arguments or batches"),
        (lambda svi: svi.run(1, batches=[]), "expected batches"),
        (lambda svi: svi.run(4, batches=iter([Y])), "used up"),
    ],
)
def test_wrong_arguments_of_run(call, match):
    with pytest.raises(ValueError, match=match):
        call(graph_svi(schools, px.AutoJoint(schools)))


LARGE = torch.full((4,), 3e38, dtype=torch.float32)


@pytest.mark.parametrize(
    ("tensors", "finite"),
    [
        ([torch.ones(2), torch.ones((), dtype=torch.float32), torch.ones(0)], True),
        ([LARGE, -LARGE], True),  # sums overflow, entries do not
        ([torch.ones(2), torch.tensor([1.0, float("nan")])], False),
        ([torch.tensor(float("inf")), torch.tensor(-float("inf"))], False),
    ],
)
def test_entries_count_and_not_their_sums(tensors, finite):
    assert all_finite(tensors) == finite


def test_run_reports_steps_that_were_left_out():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide, x = px.AutoJoint(model), torch.tensor(1.0)
    svi = graph_svi(model, guide)
    svi.run(3, x)
    x.fill_(float("nan"))
    with pytest.raises(ValueError, match="in 5 of the steps up to number 8"):
        svi.run(5, x)
    assert torch.isfinite(guide.params).all()
    assert svi.num_skipped == 5


def sees_too_much():
    others = [object() for _ in range(20_001)]

    def model(x):
        assert others
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def test_a_model_that_sees_too_many_objects_runs_eagerly():
    model = sees_too_much()
    svi = graph_svi(model, px.AutoJoint(model))
    with (
        pytest.warns(UserWarning, match="too many objects to look at all: buffers of"),
        pytest.warns(UserWarning, match=r"too many objects to watch\. Pass the data"),
    ):
        losses = [svi.step(torch.tensor(1.0)) for _ in range(3)]
    assert torch.isfinite(torch.tensor(losses)).all()
    assert svi._last is None


def test_a_fit_of_a_model_that_sees_too_many_objects():
    model, options = sees_too_much(), {"num_steps": 3, "progress": False}
    with (
        pytest.warns(UserWarning, match="too many objects to look at all: buffers of"),
        pytest.warns(UserWarning, match="too many objects to watch"),
    ):
        run = px.fit(model, data=torch.tensor(1.0), compile=True, **options)
    assert run.num_steps == 3
