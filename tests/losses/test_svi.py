"""The losses in Pyro's engine and in torch's: parameters, stores, several pairs."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LOSSES
from losses.pairs import GUIDES, Guide, Model, X, every_loss
from pyro.infer import SVI
from torch import Tensor

import pyro_ext as px
from pyro_ext.testing import NormalLocal


@pytest.fixture
def local_params() -> Iterator[None]:
    with pyro.settings.context(module_local_params=True):
        yield


# ---------------------------------------------------------------------- training


@every_loss
@pytest.mark.parametrize(
    ("guide", "optim"),
    [("hand-written", pyro.optim.ClippedAdam), *((guide, pyro.optim.Adam) for guide in GUIDES)],
)
def test_svi_improves_the_bound(guide: str, optim: Any, name: str) -> None:
    model = Model()
    svi = SVI(model, fitted := GUIDES[guide](model), optim({"lr": 0.1}), loss=LOSSES[name](3))
    svi.step(X)
    state = copy.deepcopy({k: v for k, v in fitted.state_dict().items()})
    before = svi.evaluate_loss(X)
    assert isinstance(before, float)
    for _ in range(15):
        assert isinstance(svi.step(X), float)
    assert svi.evaluate_loss(X) < before
    assert all(not torch.equal(state[k], v) for k, v in fitted.state_dict().items())
    assert model.level.item() != 0
    assert all(p.requires_grad for p in (*model.parameters(), *fitted.parameters()))


@every_loss
def test_loss_is_a_module_for_torch_optimizers(name: str) -> None:
    model, guide = Model(), Guide()
    # The jackknife is no bound: nothing keeps a guide that maximises it.
    jackknife = name.startswith("Jackknife")
    objective = LOSSES[name](100 if jackknife else 3)(model, guide)
    trained = model if jackknife else objective
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective(X)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert len(list(objective.parameters())) == 4


@every_loss
@pytest.mark.usefixtures("local_params")
@pytest.mark.parametrize("guide", GUIDES)
def test_module_local_params(name: str, guide: str) -> None:
    """The parameters stay in the modules, and frozen is frozen here too."""
    model = Model()
    fitted = GUIDES[guide](model)
    fitted(X)
    objective = LOSSES[name](3)(model, fitted)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    before = [p.detach().clone() for p in objective.parameters()]
    objective(X).backward()
    optimizer.step()
    assert not list(pyro.get_param_store().keys())
    assert all(
        not torch.equal(old, new) for old, new in zip(before, objective.parameters(), strict=True)
    )


@every_loss
@pytest.mark.parametrize("local", [False, True])
def test_gradients_do_not_depend_on_where_parameters_live(name: str, local: bool) -> None:  # noqa: FBT001
    grads = []
    for setting in (False, local):
        pyro.clear_param_store()
        with pyro.settings.context(module_local_params=setting):
            pyro.set_rng_seed(2)
            model, guide = Model(), Guide()
            LOSSES[name](3).loss_and_grads(model, guide, X)
        grads.append([p.grad for p in (*model.parameters(), *guide.parameters())])
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


@every_loss
def test_the_three_ways_to_call_a_loss_agree(name: str) -> None:
    model, guide = Model(), Guide()
    loss = LOSSES[name](3)
    values = []
    for call in (
        lambda: loss.loss(model, guide, X),
        lambda: loss.loss_and_grads(model, guide, X),
        lambda: loss.differentiable_loss(model, guide, X).item(),
        lambda: loss(model, guide)(X).item(),
    ):
        pyro.set_rng_seed(4)
        values.append(call())
    assert values == pytest.approx([values[0]] * 4, abs=1e-12)


@every_loss
def test_no_grad(name: str) -> None:
    model, guide = Model(), Guide()
    with torch.no_grad():
        loss = LOSSES[name](3).differentiable_loss(model, guide, X)
        LOSSES[name](3).loss_and_grads(model, guide, X)
    assert not loss.requires_grad
    LOSSES[name](3).loss(model, guide, X)
    assert all(p.grad is None for p in (*model.parameters(), *guide.parameters()))
    assert all(p.requires_grad for p in (*model.parameters(), *guide.parameters()))


@every_loss
def test_retain_graph(name: str) -> None:
    guide, upstream = Guide(), torch.tensor(1.0, requires_grad=True)
    shift = upstream**2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    loss = LOSSES[name](3)
    loss.retain_graph = True
    loss.loss_and_grads(model, guide, X)
    loss.loss_and_grads(model, guide, X)
    loss.retain_graph = False
    loss.loss_and_grads(model, guide, X)
    with pytest.raises(RuntimeError, match="second time"):
        loss.loss_and_grads(model, guide, X)


@every_loss
@pytest.mark.filterwarnings("ignore:.*was not registered")  # Pyro's, under every loss
def test_frozen_parameters_stay_frozen(name: str) -> None:
    model, guide = Model(), Guide()
    guide.encoder.bias.requires_grad = False
    LOSSES[name](3).loss_and_grads(model, guide, X)
    assert guide.encoder.bias.grad is None
    assert not guide.encoder.bias.requires_grad
    assert guide.encoder.weight.grad is not None


@every_loss
def test_an_error_in_the_guide_leaves_its_parameters_trainable(name: str) -> None:
    class Fragile(Guide):
        calls = 0

        def forward(self, x: Tensor) -> None:
            Fragile.calls += 1
            if Fragile.calls == 3:
                raise KeyError("lost")
            super().forward(x)

    Fragile.calls = 0
    model, guide = Model(), Fragile()
    for _ in range(4):
        try:
            LOSSES[name](3).loss_and_grads(model, guide, X)
        except KeyError:
            break
    assert all(p.requires_grad for p in guide.parameters())


@every_loss
def test_parameters_shared_by_model_and_guide(name: str) -> None:
    """What is stopped in log q is not stopped in log p."""

    def shared(sample: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def fn(x: Tensor) -> None:
            level = pyro.param("level", torch.tensor(0.5))
            with pyro.plate("data", len(x)):
                sample(level)

        return fn

    def joint(level: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(level, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    model = shared(joint)
    guide = shared(lambda level: pyro.sample("z", dist.Normal(0.5 * X + 0 * level, 0.5**0.5)))
    pyro.set_rng_seed(0)
    LOSSES[name](3).loss_and_grads(model, guide, X)
    assert pyro.param("level").grad.abs() > 0.1


# ---------------------------------------------------------------------- several pairs


@every_loss
def test_one_loss_object_serves_two_pairs(name: str) -> None:
    loss = LOSSES[name](3)
    pairs = [(Model(), Guide(), X), (Model(), Guide(), X[:4] - 6)]
    for round_ in range(2):
        for model, guide, x in pairs:
            pyro.set_rng_seed(round_)
            value = loss.loss(model, guide, x)
            pyro.set_rng_seed(round_)
            assert value == LOSSES[name](3).loss(model, guide, x)


@pytest.mark.parametrize("kind", ["AutoPerDatapoint", "AutoAmortized", "AutoJoint"])
@pytest.mark.parametrize("clear", [False, True], ids=["store kept", "store cleared"])
def test_two_guides_never_share_parameters(kind: str, clear: bool) -> None:  # noqa: FBT001
    """Of one class, on one model: Pyro's own meet under one name in the store."""
    model = NormalLocal(X).model
    first, second = GUIDES[kind](model), GUIDES[kind](model)
    SVI(model, first, pyro.optim.Adam({"lr": 0.1}), loss=px.ELBO()).step(X)
    fitted = [p.detach().clone() for p in first.parameters()]
    if clear:
        pyro.clear_param_store()
    pyro.set_rng_seed(0)
    second.setup(X)
    start = [p.detach().clone() for p in second.parameters()]
    other = SVI(model, second, pyro.optim.Adam({"lr": 0.1}), loss=px.ELBO())
    for _ in range(3):
        other.step(X)
    for old, now in zip(fitted, first.parameters(), strict=True):
        assert torch.equal(old, now)
    for old, now in zip(start, second.parameters(), strict=True):
        assert not torch.equal(old, now)
    assert not {p.data_ptr() for p in first.parameters()} & {
        p.data_ptr() for p in second.parameters()
    }


@pytest.mark.parametrize("kind", ["AutoPerDatapoint", "AutoAmortized", "AutoJoint"])
def test_a_copy_trains_apart_from_its_original(kind: str) -> None:
    model = NormalLocal(X).model
    guide = GUIDES[kind](model)
    guide.setup(X)
    twin = copy.deepcopy(guide)
    SVI(model, twin, pyro.optim.Adam({"lr": 0.1}), loss=px.IWAE(3)).step(X)
    for old, now in zip(guide.parameters(), twin.parameters(), strict=True):
        assert not torch.equal(old, now)
    assert guide.model is not None


@every_loss
def test_no_loss_warns(name: str) -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in GUIDES.values():
            LOSSES[name](3).loss_and_grads(model, make(model), X)
