"""Compiled steps are the eager ones, and Pyro's, for every optimizer and guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam, ClippedAdam
from training.compiled_cases import (
    WAYS,
    Y,
    adam,
    eight_schools,
    graph_svi,
    same_run,
    schools,
    train,
    vae,
)

import pyro_ext as px

OPTIMIZERS = {
    "pyro Adam": lambda: Adam({"lr": 0.05}),
    "pyro Adam per parameter": lambda: Adam(lambda name: {"lr": 0.05 if "loc" in name else 0.01}),
    "pyro Adam clipped": lambda: Adam({"lr": 0.05}, {"clip_norm": 1.0, "clip_value": 0.3}),
    "pyro ClippedAdam": lambda: ClippedAdam(
        {"lr": 0.05, "lrd": 0.99, "clip_norm": 0.5, "weight_decay": 0.01}
    ),
    "pyro ClippedAdam centered": lambda: ClippedAdam({"lr": 0.05, "centered_variance": True}),
    "pyro SGD": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
    "Adam": lambda: adam,
    "Adam decay": lambda: lambda ps: torch.optim.Adam(ps, lr=0.05, weight_decay=0.1),
    "AdamW": lambda: lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.1),
    "SGD": lambda: lambda ps: torch.optim.SGD(ps, lr=1e-3),
    "SGD nesterov": lambda: (
        lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.1)
    ),
    "two groups": lambda: (
        lambda ps: torch.optim.Adam(
            [{"params": ps[:1], "lr": 0.1}, {"params": ps[1:], "betas": (0.5, 0.9)}], lr=0.01
        )
    ),
    "outside the graph": lambda: lambda ps: torch.optim.RMSprop(ps, lr=0.01),
    "amsgrad, outside": lambda: lambda ps: torch.optim.Adam(ps, lr=0.05, amsgrad=True),
}


def autonormal():
    return schools, AutoNormal(schools), (Y,)


@pytest.mark.parametrize("compile", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_graph_and_eager_steps_agree_for_every_optimizer(name, compile):
    same_run(autonormal, compile=compile, optim=OPTIMIZERS[name])


@pytest.mark.parametrize("compile", WAYS)
def test_gradients_are_clipped_together(compile):
    free, _ = train(autonormal, optim=OPTIMIZERS["SGD"])
    losses, _ = train(autonormal, compile=compile, optim=OPTIMIZERS["SGD"], clip_norm=0.7)
    assert not torch.allclose(free, losses)
    same_run(autonormal, compile=compile, optim=OPTIMIZERS["SGD"], clip_norm=0.7)


@pytest.mark.parametrize(
    "name", ["pyro Adam", "pyro Adam per parameter", "pyro Adam clipped", "pyro ClippedAdam"]
)
def test_steps_are_those_of_pyros_svi(name):
    losses, params = train(autonormal, optim=OPTIMIZERS[name])
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide, args = autonormal()
    svi = SVI(model, guide, OPTIMIZERS[name](), px.ELBO())
    expected = torch.tensor([svi.step(*args) for _ in range(12)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0)
    for one, other in zip(params, pyro.get_param_store().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def subsampled():
    x = torch.linspace(-2, 2, 60)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=7) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    return model, px.AutoPerDatapoint(model), (x,)


def handwritten():
    def guide(y):
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc[0], scale[0]))
        pyro.sample("tau", dist.Gamma(1 + loc[1].exp(), scale[1]))
        with pyro.plate("schools", len(y)):
            pyro.sample("z", dist.StudentT(5.0, pyro.param("m", torch.zeros(8)), 1.0))

    return schools, guide, (Y,)


def discrete():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(4))))

    return model, guide, (torch.tensor([-1.0, 0.3, 1.0, 2.5]),)


PAIRS = {
    "AutoJoint": eight_schools,
    "full covariance": lambda: (schools, px.AutoJoint(schools, family=px.FullCovariance()), (Y,)),
    "LU covariance": lambda: (
        schools,
        px.AutoJoint(schools, family=px.FullCovariance("lu")),
        (Y,),
    ),
    "low rank": lambda: (schools, px.AutoJoint(schools, family=px.LowRank(rank=2)), (Y,)),
    "AutoNormal": autonormal,
    "AutoDiagonalNormal": lambda: (schools, AutoDiagonalNormal(schools), (Y,)),
    "AutoMultivariateNormal": lambda: (schools, AutoMultivariateNormal(schools), (Y,)),
    "subsampled": subsampled,
    "VAE": vae,
    "VAE dropout": lambda: vae(torch.nn.Dropout(0.3)),
    "handwritten": handwritten,
}


@pytest.mark.parametrize("compile", WAYS)
@pytest.mark.parametrize("name", PAIRS)
def test_graph_and_eager_steps_agree_for_every_guide(name, compile):
    same_run(PAIRS[name], compile=compile)


@pytest.mark.parametrize("compile", WAYS)
def test_batch_norm_keeps_its_statistics_in_the_graph(compile):
    # Not Adam: a bias before the layer has gradient zero, and Adam would follow its rounding.
    same_run(
        lambda: vae(torch.nn.BatchNorm1d(6)),
        compile=compile,
        optim=lambda: lambda ps: torch.optim.SGD(ps, lr=1e-3),
    )


@pytest.mark.parametrize("compile", WAYS)
def test_discrete_guide_by_score_function(compile):
    same_run(discrete, compile=compile, loss=px.ELBO(5, estimator="score"))


@pytest.mark.parametrize("compile", WAYS)
def test_annealing_follows_its_schedule_in_the_graph(compile):
    def loss():
        return px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=25))

    annealed = loss()
    losses, _ = train(eight_schools, compile=compile, loss=annealed, steps=30)
    expected, _ = train(eight_schools, loss=loss(), compile=False, steps=30)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    assert (annealed.step, annealed.beta) == (30, 1.0)


def test_learning_rate_schedules_are_followed():
    def run(*, compile):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optim = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8}
        )
        svi = graph_svi(schools, px.AutoJoint(schools), optim, compile=compile)
        losses = []
        for _ in range(20):
            losses.append(svi.step(Y))
            optim.step()
        assert svi.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.8**20)
        return torch.tensor(losses)

    torch.testing.assert_close(run(compile=True), run(compile=False), rtol=1e-10, atol=0)


def test_parameters_are_the_users_own_tensors():
    guide = px.AutoJoint(schools)
    svi = graph_svi(schools, guide)
    svi.step(Y)
    param, before = guide.params, guide.params.detach().clone()
    for _ in range(3):
        svi.step(Y)
    assert guide.params is param
    assert param.requires_grad
    assert not torch.equal(param, before)
    assert any(p is param for p in pyro.get_param_store()._params.values())
    assert param.grad is None


@pytest.mark.parametrize("compile", WAYS)
def test_proof_and_recording_leave_everything_as_it_was(compile):
    """Batch norm's statistics and the random state: a graph costs no draw and no step."""
    model, guide, args = vae(torch.nn.BatchNorm1d(6))
    svi = graph_svi(model, guide, compile=compile)
    svi.step(*args)  # looks at the pair's plates, which runs the model more than once
    norm = model.__closure__[0].cell_contents[1]
    first = norm.num_batches_tracked.clone()
    for count in range(1, 5):
        svi.step(*args)
        assert norm.num_batches_tracked == first + count
    assert svi._last is not None


def test_evaluate_loss_changes_nothing():
    guide = px.AutoJoint(schools)
    svi = graph_svi(schools, guide)
    svi.step(Y)
    before = guide.params.detach().clone()
    assert svi.evaluate_loss(Y) > 0
    assert torch.equal(guide.params, before)


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_in_a_step_and_the_setting_is_left(before):
    tiny, seen = torch.tensor(1e-40, dtype=torch.float32), []

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        seen.append((tiny * tiny.new_ones(())).item())
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    torch.set_flush_denormal(before)
    try:
        graph_svi(model, px.AutoJoint(model), compile=False).step()
        assert seen[-1] == 0.0
        assert ((tiny * tiny.new_ones(())).item() == 0.0) == before
    finally:
        torch.set_flush_denormal(False)


def test_run_takes_the_steps_that_step_takes():
    def run(many):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        svi = graph_svi(schools, px.AutoJoint(schools), Adam({"lr": 0.05}))
        return many(svi)

    expected = torch.tensor(run(lambda svi: [svi.step(Y) for _ in range(20)]))
    torch.testing.assert_close(run(lambda svi: svi.run(20, Y)), expected, rtol=0, atol=0)
    loader = [(Y,), (Y + 1,), (Y + 2,)]
    expected = torch.tensor(run(lambda svi: [svi.step(*loader[step % 3]) for step in range(10)]))
    found = run(lambda svi: svi.run(10, batches=loader))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
