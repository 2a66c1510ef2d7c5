"""A fit by graph is the fit by eager steps; and when it becomes one."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px
from pyro_ext.testing import NormalLocal
from pyro_ext.training import graphs
from pyro_ext.training.compiled.optimizer import clip
from pyro_ext.training.optimizers import Optimizers
from pyro_ext.training.payoff import (
    CountOperations,
    cheapest,
    compiling_seconds,
    recording_seconds,
)

X = torch.linspace(-2, 3, 10)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch, request):
    """Graphs are run by torch here, without the time to compile them."""
    if "inductor" not in request.node.name:
        monkeypatch.setattr(graphs, "BACKEND", "graph")


@pytest.fixture
def built(monkeypatch):
    """The steps that were built."""
    calls = []

    def counted(*args, **options):
        calls.append(args)
        return real(*args, **options)

    real = graphs.build
    monkeypatch.setattr(graphs, "build", counted)
    return calls


class Model(nn.Module):
    """Local latents, with parameters of its own."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(())), scale

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)


def fit(guide=px.AutoPerDatapoint, loss=None, data=X, optim=None, num_steps=30, **options):
    pyro.clear_param_store()
    options = {"seed": 3, "progress": False, "schedule": None, **options}
    model = options.pop("model", Model())
    loss = px.ELBO() if loss is None else loss
    optim = partial(Adam, lr=0.05) if optim is None else optim
    run = px.fit(model, guide(model), loss, data, optim, num_steps=num_steps, **options)
    params = [p.detach().clone() for m in (model, run.guide) for p in nn.Module.parameters(m)]
    return run, params


def assert_same(make=dict, **options):
    """Assert that graph, recorded and eager steps give the same fit; return that by graph."""
    found, params = fit(compile=True, **make(), **options)
    recorded, bits = fit(compile="record", **make(), **options)
    expected, wanted = fit(compile=False, **make(), **options)
    assert found.compiled.startswith("from step 1 on")
    assert recorded.compiled.startswith("recorded from step 1 on")
    assert expected.compiled == "no: compile=False"
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-10)
    np.testing.assert_allclose(found.elbo_per_datum, expected.elbo_per_datum, rtol=1e-10)
    assert recorded.losses.tolist() == expected.losses.tolist()
    assert recorded.elbo_per_datum.tolist() == expected.elbo_per_datum.tolist()
    assert found.elbo_steps.tolist() == expected.elbo_steps.tolist()
    assert all(map(torch.equal, bits, wanted))
    for one, other in zip(params, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    return found


def amortized(model):
    torch.manual_seed(0)
    return px.AutoAmortized(model, nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 2)))


@pytest.mark.parametrize("guide", [px.AutoPerDatapoint, px.AutoJoint, amortized])
def test_the_full_batch(guide):
    assert_same(guide=guide, num_steps=60)


@pytest.mark.parametrize("guide", [px.AutoPerDatapoint, amortized])
def test_mini_batches_and_a_short_last_one_that_needs_no_graph(guide, built):
    assert_same(guide=guide, batch_size=4)
    assert len(built) == 2  # compiled and recorded


def test_a_model_that_subsamples(built):
    make = lambda: {"model": NormalLocal(X, subsample_size=5).model}  # noqa: E731
    pyro.clear_param_store()
    for compile in (True, False):
        model = make()["model"]
        guide = px.AutoPerDatapoint(model)
        run = px.fit(
            model, guide, px.ELBO(), X, batch_size=5, num_steps=20, seed=0, compile=compile
        )
        built.append(run)
    np.testing.assert_allclose(built[1].losses, built[2].losses, rtol=1e-10)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_parameters_that_the_optimizer_leaves_out_stay_as_they_are(clip_norm):
    guides = []

    def guide(model):
        guides.append(px.AutoPerDatapoint(model))
        return guides[-1]

    only = lambda params: SGD(guides[-1].parameters(), lr=0.05)  # noqa: E731
    make = lambda: {"model": Model()}  # noqa: E731
    run = assert_same(make, guide=guide, optim=only, clip_norm=clip_norm)
    assert run.model.loc == 0.0


LOSSES = {
    "IWAE": lambda: px.IWAE(3, estimator="dreg"),
    "score": lambda: px.ELBO(3, estimator="score"),
    "annealed": lambda: px.Annealed(px.ELBO(), px.LinearSchedule(0.1, 1.0, num_steps=0.5)),
    "wake-sleep": lambda: px.WakeSleep(3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    assert_same(make=lambda: {"loss": LOSSES[name]()}, num_steps=60)


OPTIMIZERS = {
    "SGD with momentum": partial(SGD, lr=0.01, momentum=0.9),
    "outside the graph": partial(RMSprop, lr=0.01),
    "two groups": lambda ps: Adam([{"params": ps[:1], "lr": 0.1}, {"params": ps[1:]}], lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    assert_same(optim=OPTIMIZERS[name], schedule=partial(CosineAnnealingLR, T_max=30))


def test_the_default_optimizer():
    pyro.clear_param_store()
    runs = [px.fit(Model(), data=X, num_steps=20, seed=0, compile=c) for c in (True, False)]
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=1e-10)


@pytest.mark.parametrize("train", ["guide", "model"])
def test_one_side(train):
    run = assert_same(train=train)
    assert all(p.requires_grad for p in (*run.model.parameters(), *run.guide.parameters()))


def test_clipping():
    free, _ = fit(optim=partial(SGD, lr=0.1), compile=False)
    clipped = assert_same(optim=partial(SGD, lr=0.1), clip_norm=0.5)
    assert not np.allclose(free.losses, clipped.losses)
    with pytest.raises(ValueError, match=r"expected clip_norm > 0; got -1\."):
        fit(clip_norm=-1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip_norm", [0.1, 100.0])
def test_clipping_is_the_same_to_the_last_bit_everywhere(dtype, clip_norm):
    sizes = [(7, 3), (1000,), ()]
    params = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    grads = [torch.randn(size, dtype=dtype) for size in sizes]
    one = Optimizers(partial(SGD, lr=0.1), None, params, clip_norm=clip_norm)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    one.step()
    clipped = clip([{}] * 3, grads, clip_norm)
    assert all(torch.equal(p.grad, c) for p, c in zip(params, clipped, strict=True))


def test_sparse_gradients_run_eagerly_and_say_so():
    guide = partial(px.AutoPerDatapoint, sparse=True)
    with pytest.warns(UserWarning, match="fit runs eagerly, because a gradient is sparse") as told:
        run, _ = fit(guide=guide, batch_size=4, compile=True)
    assert len(told) == 1
    assert "sparse" in run.compiled
    expected, _ = fit(guide=guide, batch_size=4, compile=False)
    assert np.array_equal(run.losses, expected.losses)


def test_a_branch_on_a_latent_runs_eagerly_and_says_so():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu if mu > 0 else 2 * mu, 1.0), obs=x)

    with pytest.warns(UserWarning, match=r"fit runs eagerly, because Python looks at the value"):
        run = px.fit(model, data=X, num_steps=5, compile=True, seed=0)
    assert run.num_steps == 5


def test_a_critic_is_not_compiled():
    loss = px.Adversarial(4, warmup=1, critic_steps=1)
    with pytest.warns(UserWarning, match="fit runs eagerly, because its loss trains a critic"):
        fit(loss=loss, compile=True, num_steps=3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [float("inf"), 1e200])
@pytest.mark.parametrize("optim", [SGD, RMSprop])
def test_what_is_not_finite_is_named(rate, optim):
    def blow_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate if step == 4 else 1.0
        )

    match = r"expected a finite loss.* at step [56]\."
    with pytest.raises(ValueError, match=match):
        fit(optim=partial(optim, lr=1e-3), schedule=blow_up, compile=True, num_steps=20)


def test_a_model_that_changes_gets_another_graph(built):
    model = Model()

    class Switching(CosineAnnealingLR):
        def step(self, *args):
            super().step(*args)
            if self.last_epoch == 10:
                model.scale = 2.0

    make = {"schedule": partial(Switching, T_max=100)}
    found, _ = fit(model=model, compile=True, **make)
    model.scale = 1.0
    model.loc.data.zero_()
    expected, _ = fit(model=model, compile=False, **make)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-10)
    assert len(built) == 2


# ---------------------------------------------------------------------- when it pays


def test_operations_of_the_backward_pass_count():
    x = torch.ones(3, requires_grad=True)
    with CountOperations() as forward:
        y = (2 * x).sum()
    with CountOperations() as backward:
        y.backward()
    assert forward.count == 2
    assert backward.count > 0


def test_what_pays():
    compiling, recording = compiling_seconds(200), recording_seconds(200)
    step = 2e-3  # all of which is what Python costs
    assert cheapest(int(0.9 * recording / step), 200, step) is None
    assert cheapest(int(2 * recording / step), 200, step) == "record"
    assert cheapest(int(0.9 * compiling / step), 200, step) == "record"
    assert cheapest(int(4 * compiling / step), 200, step) == "inductor"
    assert cheapest(1, 200, 1.0) is None
    assert cheapest(1000, 200, 1.0) == "inductor"  # of a long step, a share is saved


def test_auto_stays_eager_where_it_does_not_pay(built):
    run, _ = fit(num_steps=30)
    assert not built
    assert run.compiled.startswith("no: 18 steps of")


def test_auto_compiles_where_it_pays(monkeypatch, capsys):
    way = lambda steps, operations, eager: "inductor" if operations > 20 else None  # noqa: E731
    monkeypatch.setattr(graphs, "cheapest", way)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    run, _ = fit(num_steps=30, progress=True)
    assert run.compiled.startswith("from step 12 on, in ")
    assert "compiling" in capsys.readouterr().err
    expected, _ = fit(num_steps=30, compile=False)
    np.testing.assert_allclose(run.losses, expected.losses, rtol=1e-10)


def test_deterministic_asks_no_clock_and_keeps_the_bits(monkeypatch):
    monkeypatch.setattr(graphs, "cheapest", None)
    run, params = fit(num_steps=20, deterministic=True)
    assert run.compiled == "no: fewer than 500 steps"
    monkeypatch.setattr(graphs, "RECORDING_PAYS", 20)
    recorded, same = fit(num_steps=20, deterministic=True)
    assert recorded.compiled.startswith("recorded from step 1 on")
    assert np.array_equal(recorded.losses, run.losses)
    assert all(map(torch.equal, params, same))


@pytest.mark.parametrize(
    ("compile", "due"), [(True, "graph"), ("record", "record"), ("auto", None)]
)
@pytest.mark.parametrize("used", [True, False])
def test_state_of_an_earlier_version_has_no_backend(compile, due, used):
    params = [torch.zeros(1)]
    chosen = graphs.Graphs(
        (Model(), Model(), px.ELBO()), params, compile=compile, deterministic=False, say=print
    )
    chosen.load({"used": used, "seen": 0, "first": None, "told": "no"})
    assert chosen._due(50, 100) == (due if used else None)
    assert chosen.state()["backend"] is None


@pytest.mark.parametrize("compile", ["yes"])
def test_other_values(compile):
    match = "expected compile to be 'auto', True, False or 'record'; got"
    with pytest.raises(ValueError, match=match):
        fit(compile=compile)


# ---------------------------------------------------------------------- compiled in earnest


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_200_steps_by_inductor(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        data, loss = X.to(dtype), px.IWAE(3, estimator="dreg")
        options = {"guide": amortized, "data": data, "loss": loss, "batch_size": 4}
        found, _ = fit(compile=True, num_steps=200, **options)
        expected, _ = fit(compile=False, num_steps=200, **options)
    finally:
        torch.set_default_dtype(before)
    assert found.compiled.startswith("from step 1 on")
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    difference = np.abs(found.losses - expected.losses)
    assert (difference / np.maximum(np.abs(expected.losses), 1.0)).max() < tolerance


def test_a_buffer_that_is_an_expanded_view_is_left_alone() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("one", torch.ones(()).expand(3))
            self.register_buffer("seen", torch.zeros(3))

        def forward(self) -> None:
            self.seen += 1
            pyro.sample("z", dist.Normal(0.0, self.one).to_event(1))

    model = Model()
    run = px.fit(model, num_steps=5, seed=0)
    assert len(run.losses) == 5
    assert model.seen.tolist() == [model.seen[0].item()] * 3
