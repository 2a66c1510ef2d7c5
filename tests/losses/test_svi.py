"""The losses in Pyro's engine and in torch's: parameters, stores, encoders, errors."""

import copy
import warnings
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as pyro_auto
import pytest
import torch
from cases import ELSEWHERE, EXACT, LOSSES, plain
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_ext as px
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.testing import NormalHierarchy, NormalLocal

every_loss = pytest.mark.parametrize("name", LOSSES)
FROZEN = [*EXACT, "PIWAE-reparam", "WakeSleep-wake"]
"""Estimators that run the guide again on its own draws."""
X = torch.randn(10, generator=torch.Generator().manual_seed(5)) + 3


class Model(PyroModule):
    """z ~ N(level, 1), x ~ N(z, exp(noise)): parameters of a model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.0))
        self.noise = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.level, 1.0))
            pyro.sample("x", dist.Normal(z, self.noise), obs=x)


class Guide(PyroModule):
    """An encoder by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)))


GUIDES: dict[str, Callable[[Any], Any]] = {
    "hand-written": lambda model: Guide(),
    "AutoPerDatapoint": px.AutoPerDatapoint,
    "AutoAmortized": lambda model: px.AutoAmortized(model, lambda x: x[:, None]),
    "AutoJoint": px.AutoJoint,
    "AutoNormal": pyro_auto.AutoNormal,
}


@pytest.fixture
def local_params() -> Iterator[None]:
    with pyro.settings.context(module_local_params=True):
        yield


# ---------------------------------------------------------------------- training


@every_loss
@pytest.mark.parametrize("optim", [pyro.optim.Adam, pyro.optim.ClippedAdam])
@pytest.mark.parametrize("guide", GUIDES)
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


# ---------------------------------------------------------------------- the encoder


class Counted(nn.Module):
    """An encoder that counts its calls and rows."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(1, 4), nn.Dropout(dropout)
        self.rows: list[int] = []

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        self.rows.append(len(x))
        features: Tensor = self.dropout(self.linear(x[:, None]))
        return features


@every_loss
def test_encoder_runs_once_a_step(name: str) -> None:
    loss = LOSSES[name](3)
    exact = NormalHierarchy(X) if loss.hierarchies else NormalLocal(X)
    encoder = Counted()
    guide = px.AutoAmortized(exact.model, encoder)
    loss.loss_and_grads(exact.model, guide, X)
    encoder.rows.clear()
    loss.loss_and_grads(exact.model, guide, X)
    assert encoder.rows == [10]
    loss.loss(exact.model, guide, X)
    assert encoder.rows == [10, 10]


@every_loss
@pytest.mark.parametrize("way", ["subsample_size", "subsample", "sliced"])
def test_encoder_sees_the_rows_of_the_batch_only(name: str, way: str) -> None:
    def model(x: Tensor, rows: Tensor | None = None) -> None:
        size = 3 if way == "subsample_size" else None
        with pyro.plate("data", len(x), size, subsample=rows) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    encoder = Counted()
    guide = px.AutoAmortized(model, encoder)
    guide.setup(X)
    encoder.rows.clear()
    for _ in range(3):
        rows = torch.randperm(10)[:3]
        if way == "sliced":
            with px.MiniBatch("data", 10, rows, sliced=True):
                LOSSES[name](3).loss_and_grads(model, guide, X[rows])
        else:
            LOSSES[name](3).loss_and_grads(model, guide, X, *([rows] * (way == "subsample")))
    assert set(encoder.rows) == {3}
    encoder.rows.clear()
    rows = torch.tensor([1, 4, 7])
    if way == "sliced":
        with px.MiniBatch("data", 10, rows, sliced=True):
            LOSSES[name](3).loss_and_grads(model, guide, X[rows])
    else:
        LOSSES[name](3).loss_and_grads(model, guide, X, *([rows] * (way == "subsample")))
    assert encoder.rows == [3]


@pytest.mark.parametrize("name", EXACT)
def test_frozen_replay_sees_the_same_dropout(name: str) -> None:
    """The value is that of the plain estimator: log q is that of the π that was drawn from."""
    exact = NormalLocal(X)
    guide = px.AutoAmortized(exact.model, Counted(dropout=0.5), init_scale=0.5)
    guide.setup(X)
    guide.head.weight.data.normal_()
    reparam = plain(name)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        value = LOSSES[name](3).loss_and_grads(exact.model, guide, X)
        pyro.set_rng_seed(seed)
        assert value == pytest.approx(reparam.loss(exact.model, guide, X), abs=1e-10)


@every_loss
def test_encoder_with_the_wrong_output(name: str) -> None:
    exact = NormalLocal(X)
    message = r"one feature vector for each of the 10 elements.*shape \(10, features\); got \({}\)"
    for encoder, shape in (
        (lambda x: x, "10,"),
        (lambda x: x[:, None, None], "10, 1, 1"),
        (lambda x: x[:4, None], "4, 1"),
    ):
        guide = px.AutoAmortized(exact.model, encoder)
        with pytest.raises(ValueError, match=message.format(shape)):
            LOSSES[name](3).loss(exact.model, guide, X)


@pytest.mark.parametrize("name", FROZEN)
def test_dropout_in_a_hand_written_guide_raises(name: str) -> None:
    """Run again, it is another q, from which the draws did not come."""

    class Noisy(Guide):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(1, 20), nn.Dropout(0.5), nn.Linear(20, 2))

    model, guide = NormalLocal(X).model, Noisy()
    with pytest.raises(ValueError, match=r"site 'z'.*dropout.*guide\.eval\(\)"):
        LOSSES[name](3).loss_and_grads(model, guide, X)
    LOSSES[name](3).loss_and_grads(model, guide.eval(), X)
    px.IWAE(3).loss_and_grads(model, guide.train(), X)


# ---------------------------------------------------------------------- bad input


PUBLIC = {
    name: loss
    for name in px.losses.__all__
    if issubclass(loss := getattr(px.losses, name), BoundLoss)
}
every_class = pytest.mark.parametrize(
    "loss", [loss for loss in PUBLIC.values() if "num_particles" in signature(loss).parameters]
)


def test_every_public_loss_and_estimator_is_in_the_battery() -> None:
    found = {(type(make(2)).__name__, make(2).estimator) for make in LOSSES.values()}
    wanted = {(n, e) for n, loss in PUBLIC.items() for e in loss.estimators if n not in ELSEWHERE}
    assert found == wanted
    assert {f"{loss}-{estimator}" for loss, estimator in found} == set(LOSSES)


@every_class
def test_arguments_of_a_loss(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"estimator to be one of \[.*got 'exact'.*Write"):
        loss(estimator="exact")
    for option in {"num_particles", "num_outer"} & set(signature(loss).parameters):
        for number in (0, -1):
            with pytest.raises(ValueError, match=rf"{option} >= 1; got {number}\. Write: px"):
                loss(**{option: number})
        for wrong in (2.0, True, "3"):
            with pytest.raises(TypeError, match=option):
                loss(**{option: wrong})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: px.CIWAE(beta=1.1), r"CIWAE: expected beta in \[0, 1\]; got 1\.1\. Write"),
        (lambda: px.CIWAE(beta=-0.1), r"CIWAE: expected beta in \[0, 1\]; got -0\.1\. Write"),
        (lambda: px.CUBO(order=0.5), r"CUBO: expected a finite order >= 1; got 0\.5\. Write"),
        (lambda: px.CUBO(order=torch.nan), r"CUBO: expected a finite order >= 1; got nan\. Write"),
        (lambda: px.Renyi(alpha=torch.nan), r"Renyi: expected a finite alpha; got nan\. Write"),
        (lambda: px.Renyi(alpha=-torch.inf), r"Renyi: expected a finite alpha; got -inf\. Write"),
        (
            lambda: px.JackknifeIWAE(1),
            r"JackknifeIWAE: expected num_particles >= 2; got 1\. Write",
        ),
    ],
)
def test_ranges_of_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_class
def test_repr_makes_the_loss_again(loss: Any) -> None:
    known = signature(loss).parameters
    others: dict[str, Any] = {"num_particles": 3, "num_outer": 5, "joint": True, "beta": 0.25}
    others |= {"alpha": 0.75, "order": 3.0, "estimator": loss.estimators[-1]}
    for given in ({}, {name: value for name, value in others.items() if name in known}):
        made = loss(**given)
        again = eval(repr(made), PUBLIC)
        assert repr(again) == repr(made)
        for name in known:
            owner = made.particles if name == "num_outer" else made
            other = again.particles if name == "num_outer" else again
            name = "outer" if name == "num_outer" else name
            assert getattr(owner, name) == getattr(other, name)


@every_loss
def test_guide_site_without_reparameterization(name: str) -> None:
    def model() -> None:
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(k, 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        pyro.sample("k", dist.Poisson(pyro.param("rate", torch.tensor(2.0))))

    if name.endswith(("-score", "-vimco", "-wake")):
        LOSSES[name](3).loss_and_grads(model, guide)
        assert pyro.param("rate").grad != 0
    else:
        message = (
            r"site 'k' is Poisson, which is not\. Write: px\.\w+\(estimator='(score|vimco)'\)"
        )
        with pytest.raises(ValueError, match=message):
            LOSSES[name](3).loss_and_grads(model, guide)
    assert isinstance(LOSSES[name](3).loss(model, guide), float)


@every_loss
def test_guide_called_with_another_data_size(name: str) -> None:
    exact = NormalLocal(X)
    guide = px.AutoPerDatapoint(exact.model)
    LOSSES[name](3).loss(exact.model, guide, X)
    with pytest.raises(ValueError, match=r"plate 'data'.*10 .*got 4"):
        LOSSES[name](3).loss(exact.model, guide, X[:4])


@every_loss
def test_nan_in_the_data_names_the_site(name: str) -> None:
    x = X.clone()
    x[2] = torch.nan
    with pytest.raises(ValueError, match="site 'x'"):
        LOSSES[name](3).loss_and_grads(NormalLocal(X).model, px.AutoPerDatapoint(Model()), x)


@pytest.mark.parametrize("name", FROZEN)
def test_messenger_guides_cannot_be_replayed(name: str) -> None:
    guide = pyro_auto.AutoNormalMessenger(model := Model())
    with pytest.raises(ValueError, match=r"messenger guide AutoNormalMessenger.*Write: px"):
        LOSSES[name](3).loss_and_grads(model, guide, X)
    px.IWAE(3).loss_and_grads(model, guide, X)


@pytest.mark.parametrize("name", EXACT)
def test_a_parameter_that_cannot_be_stopped_raises(name: str) -> None:
    """A guide that closes over a leaf without ``pyro.param``: its score could not be left out."""
    encoder = nn.Linear(1, 2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    model = NormalLocal(X).model
    with pytest.raises(ValueError, match=r"site 'z'.*pyro\.module"):
        LOSSES[name](3).loss_and_grads(model, guide, X)

    def registered(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        guide(x)

    LOSSES[name](3).loss_and_grads(model, registered, X)

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def guide(self, x: Tensor) -> None:
            guide(x)

    LOSSES[name](3).loss_and_grads(model, Owner().guide, X)
    plain(name).loss_and_grads(model, guide, X)


@every_loss
def test_no_loss_warns(name: str) -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in GUIDES.values():
            LOSSES[name](3).loss_and_grads(model, make(model), X)
