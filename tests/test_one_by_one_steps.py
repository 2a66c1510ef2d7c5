"""Steps of models that take one draw at a time: recorded, compiled, or eager."""

import itertools
import re
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from one_draw import (
    LOSSES,
    MODELS,
    Network,
    X,
    Y,
    branched,
    groups,
    guide_of,
    regression,
    with_auxiliary,
)
from torch import Tensor
from weight_pairs import close

import pyro_ext as px

NUM_STEPS = 3  # one eager, one that is recorded, one that is not


def steps(model: Any, guide: Any, loss: Any, *, compile: Any) -> tuple[Tensor, list[str]]:
    """Return the losses of some steps, and what was said of eager ones."""
    torch.manual_seed(1)
    optim = pyro.optim.Adam({"lr": 0.01})
    svi = px.CompiledSVI(model, guide, optim, loss=loss, compile=compile)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses = [svi.step(X, Y) for _ in range(NUM_STEPS)]
    texts = [str(w.message) for w in told if "eagerly" in str(w.message)]
    return torch.tensor(losses), texts


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        *((make, px.IWAE(4, estimator="dreg", num_outer=2)) for make in MODELS[:-1]),
        *((groups, loss) for loss in LOSSES[:-1]),
    ],
)
def test_a_recorded_step_has_the_bits_of_an_eager_one(loss: Any, make: Any) -> None:
    model = make(many=False)
    expected, _ = steps(model, guide_of(model), loss, compile=False)
    found, said = steps(model, guide_of(model), loss, compile="record")
    assert not said
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_a_network_of_layers_compiles() -> None:
    network = Network()
    expected, _ = steps(network, px.AutoJoint(network), px.IWAE(5), compile=False)
    found, said = steps(network, px.AutoJoint(network), px.IWAE(5), compile=True)
    assert not said
    close(found, expected)


def test_a_graph_maps_all_draws() -> None:
    """One run tells the sites and one is mapped, however many draws there are."""
    calls = itertools.count()
    model = regression(many=False)

    def counted(x: Tensor, y: Tensor) -> None:
        next(calls)
        model(x, y)

    runs = []
    for num in (4, 40):
        optim = pyro.optim.Adam({"lr": 0.01})
        svi = px.CompiledSVI(counted, guide_of(counted), optim, px.IWAE(num), compile="record")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            svi.step(X, Y)
            before = next(calls)
            svi.step(X, Y)
            runs.append(next(calls) - before)
            svi.step(X, Y)
        assert next(calls) == before + runs[-1] + 1
    assert runs[0] == runs[1]


def masked(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)), pyro.poutine.mask(mask=(x @ w).abs() < 1e6):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def dropped(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    loc = torch.nn.functional.dropout(x @ w, 0.5)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, 0.5), obs=y)


def trained(x: Tensor, y: Tensor) -> None:
    """A guide that takes one draw at a time too."""
    a = pyro.sample("a", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
    pyro.sample("w", dist.Normal(torch.stack([a, -a, a / 2]), 1.0).to_event(1))


@pytest.mark.parametrize("compile", [True, "record"])
@pytest.mark.parametrize(
    ("model", "guide", "why"),
    [
        (branched(many=False), None, r"an if, float\(x\).*Write torch\.where"),
        (masked, None, "draws of the model are run one by one.*Write"),
        (dropped, None, "draws of the model are run one by one.*Write"),
        (with_auxiliary(regression(many=False)), trained, "draws of the model are run one.*Write"),
    ],
    ids=["branch", "mask", "dropout", "guide"],
)
def test_what_cannot_be_mapped_is_eager(model: Any, guide: Any, why: str, compile: Any) -> None:
    expected, _ = steps(model, guide or guide_of(model), px.IWAE(4), compile=False)
    pyro.clear_param_store()
    found, said = steps(model, guide or guide_of(model), px.IWAE(4), compile=compile)
    assert len(said) == 1
    assert re.search(why, said[0])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("compile", [False, "record"])
def test_a_fit_is_that_of_the_model_for_many_draws(compile: Any) -> None:
    losses = []
    for many in (True, False):
        model = regression(many=many)
        options: dict[str, Any] = {"num_steps": 20, "seed": 0, "compile": compile}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = px.fit(model, loss=px.ELBO(10), data=(X, Y), **options)
        losses.append(torch.as_tensor(run.losses))
    close(losses[1], losses[0])
