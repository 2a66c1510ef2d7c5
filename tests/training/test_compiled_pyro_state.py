"""Pyro's optimizers save and load the moments that compiled steps leave and go on from."""

import io
from itertools import product

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import SGD, Adam, ClippedAdam, ExponentialLR
from training.compiled_cases import Y, graph_svi, schools

import pyro_ext as px

WAYS = [True, "record", False]
OPTIMIZERS = {
    "Adam": lambda: Adam({"lr": 0.05}),
    "per parameter": lambda: Adam(lambda name: {"lr": 0.05 if "loc" in name else 0.01}),
    "clipped": lambda: Adam({"lr": 0.05}, {"clip_norm": 1.0}),
    "ClippedAdam": lambda: ClippedAdam({"lr": 0.05, "lrd": 0.9}),
    "SGD": lambda: SGD({"lr": 1e-3, "momentum": 0.9}),
    "outside the graph": lambda: pyro.optim.RMSprop({"lr": 0.01}),
}


def scheduled():
    return ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8})


def compiled(optim, guide, compile):
    return graph_svi(schools, guide, optim, compile=compile)


def by_pyro(optim, guide, compile):
    return SVI(schools, guide, optim, px.ELBO())


def steps(svi, numbers):
    """Take a step with the noise of each number, and return the losses."""
    losses = []
    for number in numbers:
        pyro.set_rng_seed(number)
        losses.append(svi.step(Y))
    return torch.tensor(losses)


def saved_after(make, optim, compile):
    """Return the state of optimizer and parameters after some steps, and the losses of others."""
    pyro.clear_param_store()
    svi = make(optim, AutoNormal(schools), compile)
    steps(svi, range(4))
    file, params = io.BytesIO(), pyro.get_param_store().get_state()
    torch.save([optim.get_state(), params], file)
    return file.getvalue(), steps(svi, range(4, 8))


def taken_up(make, state, optim, compile):
    pyro.clear_param_store()
    of_optim, of_params = torch.load(io.BytesIO(state), weights_only=False)
    pyro.get_param_store().set_state(of_params)
    optim.set_state(of_optim)
    return steps(make(optim, AutoNormal(schools), compile), range(4, 8))


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("name", "compile"),
    [*((name, False) for name in OPTIMIZERS), *product(["Adam", "ClippedAdam"], WAYS[:2])],
)
@pytest.mark.parametrize(
    ("saver", "loader"), [(compiled, compiled), (compiled, by_pyro), (by_pyro, compiled)]
)
def test_a_state_goes_on_here_and_in_pyros_svi(saver, loader, name, compile):
    state, expected = saved_after(saver, OPTIMIZERS[name](), compile)
    close(taken_up(loader, state, OPTIMIZERS[name](), compile), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_has_the_names_and_options_of_pyros(name):
    found, expected = (
        torch.load(
            io.BytesIO(saved_after(make, OPTIMIZERS[name](), compile=False)[0]),
            weights_only=False,
        )[0]
        for make in (compiled, by_pyro)
    )
    assert found.keys() == expected.keys()
    for param, state in expected.items():
        (options,), (group,) = found[param]["param_groups"], state["param_groups"]
        assert {**options, "fused": None} == {**group, "fused": None}
        assert found[param]["state"].keys() == state["state"].keys()


@pytest.mark.parametrize("name", ["clipped", "ClippedAdam"])
@pytest.mark.parametrize(
    "makers", [(compiled, compiled), (compiled, by_pyro), (by_pyro, compiled)]
)
def test_another_svi_with_the_same_optimizer_goes_on(makers, name):
    def run(first, second):
        pyro.clear_param_store()
        optim, guide = OPTIMIZERS[name](), AutoNormal(schools)
        steps(first(optim, guide, compile=True), range(4))
        return steps(second(optim, guide, compile=True), range(4, 8))

    close(run(*makers), run(by_pyro, by_pyro))


@pytest.mark.parametrize("compile", WAYS)
def test_a_schedule_goes_on(compile):
    def run(optim, svi, numbers):
        losses = []
        for number in numbers:
            losses.append(steps(svi, [number]))
            optim.step()
        return torch.cat(losses)

    optim, guide = scheduled(), AutoNormal(schools)
    svi = compiled(optim, guide, compile)
    run(optim, svi, range(4))
    of_optim, of_params = optim.get_state(), pyro.get_param_store().get_state()
    file = io.BytesIO()
    torch.save([of_optim, of_params], file)
    expected = run(optim, svi, range(4, 8))
    pyro.clear_param_store()
    of_optim, of_params = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    pyro.get_param_store().set_state(of_params)
    again = scheduled()
    again.set_state(of_optim)
    close(run(again, compiled(again, AutoNormal(schools), compile), range(4, 8)), expected)
    assert float(next(iter(again.optim_objs.values())).get_last_lr()[0]) == pytest.approx(
        0.1 * 0.8**8
    )


def test_schedules_of_single_parameters_are_refused():
    state, _ = saved_after(by_pyro, scheduled(), compile=False)
    with pytest.raises(ValueError, match=r"expected a state of one learning-rate .* Write: a new"):
        taken_up(compiled, state, scheduled(), compile=False)
