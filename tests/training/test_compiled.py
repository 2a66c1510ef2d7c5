import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam, ClippedAdam

import pyro_ext as px
from pyro_ext.training.compiled.builder import Built

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y):
    mu, tau = pyro.sample("mu", dist.Normal(0, 5)), pyro.sample("tau", dist.HalfCauchy(5))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(mu + tau * z, SIGMA[: len(y)]), obs=y)


def adam(params):
    return torch.optim.Adam(params, lr=0.05)


def graph_svi(model, guide, optim=adam, loss=None, **options):
    """A compiled SVI whose graphs are run by torch, without the time to compile them."""
    loss = px.ELBO() if loss is None else loss
    return px.CompiledSVI(model, guide, optim, loss, _backend="graph", **options)


def train(make, *, optim=lambda: adam, steps=12, compile=True, seed=1, **options):
    """Return the losses and the parameters of a run with a fresh pair."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide, args = make()
    optim = optim()
    svi = graph_svi(model, guide, optim, compile=compile, **options)
    losses = [svi.step(*args) for _ in range(steps)]
    assert (svi._last is not None) == compile
    params = {name: p.detach().clone() for name, p in pyro.get_param_store().items()}
    return torch.tensor(losses), list(params.values())


def same_run(make, **options):
    """Assert that graph and eager steps give the same run."""
    losses, params = train(make, **options)
    expected, expected_params = train(make, compile=False, **options)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    for one, other in zip(params, expected_params, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert len(params) > 0


def eight_schools():
    return schools, px.AutoJoint(schools), (Y,)


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_graph_and_eager_steps_agree_for_every_optimizer(name):
    same_run(autonormal, optim=OPTIMIZERS[name])


def test_gradients_are_clipped_together():
    free, _ = train(autonormal, optim=OPTIMIZERS["SGD"])
    losses, _ = train(autonormal, optim=OPTIMIZERS["SGD"], clip_norm=0.7)
    assert not torch.allclose(free, losses)
    same_run(autonormal, optim=OPTIMIZERS["SGD"], clip_norm=0.7)


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


def vae(*layers):
    torch.manual_seed(0)
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 6), *layers, torch.nn.Linear(6, 5))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    encoder = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh())
    return model, px.AutoAmortized(model, encoder), ((torch.rand(9, 5) < 0.5).double(),)


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


@pytest.mark.parametrize("name", PAIRS)
def test_graph_and_eager_steps_agree_for_every_guide(name):
    same_run(PAIRS[name])


def test_batch_norm_keeps_its_statistics_in_the_graph():
    # Not Adam: a bias before the layer has gradient zero, and Adam would follow its rounding.
    same_run(
        lambda: vae(torch.nn.BatchNorm1d(6)), optim=lambda: lambda ps: torch.optim.SGD(ps, lr=1e-3)
    )


def test_discrete_guide_by_score_function():
    same_run(discrete, loss=px.ELBO(5, estimator="score"))


def test_annealing_follows_its_schedule_in_the_graph():
    def loss():
        return px.Annealed(px.ELBO(), px.LinearSchedule(0.0, 1.0, num_steps=25))

    annealed = loss()
    losses, _ = train(eight_schools, loss=annealed, steps=30)
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


def test_changed_and_loaded_optimizers_are_noticed():
    svi = graph_svi(*eight_schools()[:2])
    for _ in range(3):
        svi.step(Y)
    first = svi._last
    svi.optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    svi.step(Y), svi.step(Y)
    assert svi._last is not first
    second, count = svi._last, svi.optimizer.state_dict()["state"][0]["step"]
    assert count == 5
    svi.optimizer.load_state_dict(svi.optimizer.state_dict())
    svi.step(Y), svi.step(Y)
    assert svi._last is not second
    assert svi.optimizer.state_dict()["state"][0]["step"] == 7


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


def built_by(svi):
    built = svi._last
    assert isinstance(built, Built)
    return built


def test_first_call_is_validated():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(z.exp() + 2), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="Bernoulli"):
        graph_svi(model, px.AutoJoint(model)).step()


def test_mode_switch_leads_to_another_graph_and_back():
    model, guide, args = vae(torch.nn.Dropout(0.5))
    svi = graph_svi(model, guide)
    dropout = model.__closure__[0].cell_contents[1]
    svi.step(*args), svi.step(*args)
    training = built_by(svi)
    dropout.eval()
    svi.step(*args), svi.step(*args)
    evaluating = built_by(svi)
    assert evaluating is not training
    dropout.train()
    svi.step(*args)
    assert built_by(svi) is training


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
def test_frozen_parameter_stays_and_thaws():
    model, guide, args = vae()
    svi = graph_svi(model, guide)
    svi.step(*args), svi.step(*args)
    decoder = model.__closure__[0].cell_contents
    weight = decoder[0].weight
    weight.requires_grad = False
    frozen, other = weight.detach().clone(), decoder[0].bias.detach().clone()
    for _ in range(3):
        svi.step(*args)
    assert torch.equal(weight, frozen)
    assert not torch.equal(decoder[0].bias, other)
    weight.requires_grad = True
    for _ in range(3):
        svi.step(*args)
    assert not torch.equal(weight, frozen)


SCALE = torch.tensor(1.0)


class Holder:
    def __init__(self):
        self.scale = torch.tensor(1.0)


def rebinding(kind):
    """Return a model whose scale is held in some way, and a function that binds another."""
    scale, holder, table, module = torch.tensor(1.0), Holder(), {}, torch.nn.Linear(1, 1)
    table["scale"], listed = torch.tensor(1.0), [torch.tensor(1.0)]
    module.register_buffer("scale", torch.tensor(1.0))
    number = 1.0

    def model(x):
        known = {
            "closure": scale,
            "number": number,
            "global": SCALE,
            "object": holder.scale,
            "dict": table["scale"],
            "list": listed[0],
            "buffer": module.scale,
        }
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, known[kind]), obs=x)

    def rebind(value):
        nonlocal scale, number
        if kind == "closure":
            scale = value
        elif kind == "number":
            number = value.item()
        elif kind == "global":
            globals()["SCALE"] = value
        elif kind == "object":
            holder.scale = value
        elif kind == "dict":
            table["scale"] = value
        elif kind == "list":
            listed[0] = value
        else:
            module.scale = value

    return model, rebind


KINDS = ["closure", "number", "global", "object", "dict", "list", "buffer"]


@pytest.mark.parametrize("kind", KINDS)
def test_rebinding_is_noticed(kind, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", torch.tensor(1.0))
    model, rebind = rebinding(kind)
    x = torch.tensor(50.0)
    svi = graph_svi(model, px.AutoJoint(model), lambda ps: torch.optim.SGD(ps, lr=0.0))
    for _ in range(3):
        assert svi.step(x) > 1000  # x is 50 standard deviations away
    first = built_by(svi)
    rebind(torch.tensor(100.0))
    for _ in range(3):
        assert svi.step(x) < 10
    assert built_by(svi) is not first


def test_edits_in_place_are_seen_without_a_new_graph():
    model, _ = rebinding("closure")
    svi = graph_svi(model, px.AutoJoint(model), lambda ps: torch.optim.SGD(ps, lr=0.0))
    x = torch.tensor(50.0)
    for _ in range(3):
        assert svi.step(x) > 1000
    first = built_by(svi)
    next(
        c.cell_contents
        for c in model.__closure__
        if c.cell_contents is not x and isinstance(c.cell_contents, torch.Tensor)
    ).fill_(100.0)
    assert svi.step(x) < 10
    assert built_by(svi) is first


def test_what_changes_at_every_step_runs_eagerly_in_the_end():
    model, rebind = rebinding("number")
    svi = graph_svi(model, px.AutoJoint(model))
    x = torch.tensor(0.0)

    def many():
        for step in range(20):
            rebind(torch.tensor(1.0 + step))
            svi.step(x)

    with pytest.warns(UserWarning, match="'number' of function model"):
        many()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(x)


def test_shapes_have_a_graph_each_up_to_a_limit():
    guide = px.AutoJoint(schools)
    svi = graph_svi(schools, guide, max_graphs=1)
    guide.setup(Y)
    for _ in range(3):
        svi.step(Y)
    assert len(svi._graphs) == 1
    other = Y.float()
    with pytest.warns(UserWarning, match="larger max_graphs"):
        svi.step(other)
    svi.step(other)
    assert len(svi._graphs) == 1
    more = graph_svi(schools, guide, max_graphs=2)
    for _ in range(2):
        more.step(Y), more.step(other)
    assert len(more._graphs) == 2


def test_numbers_among_the_arguments_count():
    def model(x, scale=1.0):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x, scale):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    svi = graph_svi(model, guide, lambda ps: torch.optim.SGD(ps, lr=0.0))
    x = torch.tensor(50.0)
    for _ in range(3):
        assert svi.step(x, scale=1.0) > 1000
        assert svi.step(x, scale=100.0) < 10
    assert len(svi._graphs) == 2


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


def test_untested_torch_runs_eagerly(monkeypatch):
    from pyro_ext.training.compiled import private

    monkeypatch.setattr(private, "TESTED_TORCH", ("1.0",))
    private.unsupported.cache_clear()
    try:
        with pytest.warns(UserWarning, match="not among the versions"):
            svi = graph_svi(schools, px.AutoJoint(schools))
        for _ in range(3):
            svi.step(Y)
        assert svi._last is None
    finally:
        private.unsupported.cache_clear()


def test_handler_around_the_step_is_not_ignored():
    svi = graph_svi(schools, px.AutoJoint(schools))
    for _ in range(3):
        svi.step(Y)
    with pytest.warns(UserWarning, match="effect handler"), pyro.poutine.scale(scale=100.0):
        assert svi.step(Y) > 1000
    assert svi.step(Y) < 1000


def test_wrong_graph_is_refused(monkeypatch):
    from pyro_ext.training.compiled import builder, graph

    def scaled(loss, params, tensors):
        return graph.record(lambda *inputs: 1.001 * loss(*inputs), params, tensors)

    monkeypatch.setattr(builder, "record", scaled)
    svi = graph_svi(schools, px.AutoJoint(schools))
    svi.step(Y)
    with pytest.warns(UserWarning, match="differs from the eager one"):
        svi.step(Y)
    assert svi._last is None


@pytest.mark.parametrize("compile", [True, False])
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


def test_proof_and_recording_leave_everything_as_it_was():
    """Batch norm's statistics and the random state: a graph costs no draw and no step."""
    model, guide, args = vae(torch.nn.BatchNorm1d(6))
    svi = graph_svi(model, guide)
    svi.step(*args)  # looks at the pair's plates, which runs the model more than once
    norm = model.__closure__[0].cell_contents[1]
    first = norm.num_batches_tracked.clone()
    for count in range(1, 5):
        svi.step(*args)
        assert norm.num_batches_tracked == first + count
    assert svi._last is not None


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"optim": 3}, TypeError, "optim"),
        ({"clip_norm": -1.0}, ValueError, "expected clip_norm > 0"),
        ({"nonfinite": "ignore"}, ValueError, "expected nonfinite to be one of"),
        ({"max_graphs": 0}, ValueError, "expected max_graphs >= 1"),
    ],
)
def test_wrong_arguments(options, error, match):
    with pytest.raises(error, match=match):
        graph_svi(schools, px.AutoJoint(schools), **options)


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


def test_rebinding_behind_an_encoder_is_noticed():
    factor = torch.tensor(1.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def encoder(x):
        return factor * x.unsqueeze(-1)

    x = torch.tensor([1.0, 2.0])
    svi = graph_svi(model, px.AutoAmortized(model, encoder))
    for _ in range(3):
        svi.step(x)
    first = built_by(svi)
    factor = torch.tensor(2.0)
    for _ in range(2):
        svi.step(x)
    assert built_by(svi) is not first
