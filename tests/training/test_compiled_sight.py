"""A step by graph is the eager one after any change that Python can see, or it is no graph."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from training.compiled_cases import normal

import pyro_ext as px
from pyro_ext.training.compiled.reading import Read, without_reading

X = torch.arange(10.0) / 10


def two_arguments():
    def model(x, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mu + x, 1.0), obs=y)

    return model, [(X, X)] * 4 + [(X, X + 5.0)] * 3


def an_argument_that_is_a_variable():
    data = X.clone()
    return lambda x: normal(x, scale=1.0 + data.std()), [(data,)] * 4 + [(data * 10,)] * 3


def a_list_that_grows():
    numbers = [1.0]

    def calls():
        for step in range(7):
            if step == 4:
                numbers.append(5.0)
            yield (X,)

    return lambda x: normal(x, scale=sum(numbers)), calls()


def a_list_that_shrinks():
    numbers = [1.0, 5.0]

    def calls():
        for step in range(7):
            if step == 4:
                numbers.pop()
            yield (X,)

    return lambda x: normal(x, scale=sum(numbers)), calls()


def a_key_that_is_added():
    options = {"a": 1.0}

    def calls():
        for step in range(7):
            if step == 4:
                options["b"] = 5.0
            yield (X,)

    return lambda x: normal(x, scale=sum(options.values())), calls()


def a_layer_that_is_added():
    layers = torch.nn.ModuleList([torch.nn.Softplus()])

    def model(x):
        loc = torch.ones(())
        for layer in layers:
            loc = layer(loc)
        normal(x, loc)

    def calls():
        for step in range(7):
            if step == 4:
                layers.append(torch.nn.Tanh())
            yield (X,)

    return model, calls()


def a_private_attribute():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self._options = {"scale": 1.0}

        def forward(self, x):
            normal(x, scale=self._options["scale"])

    model = Model()

    def calls():
        for step in range(7):
            if step == 4:
                model._options["scale"] = 3.0
            yield (X,)

    return model, calls()


def values_that_python_reads():
    return lambda x: normal(x, loc=max(x.tolist())), [(X,)] * 4 + [(X + 5.0,)] * 3


def values_that_numpy_reads():
    return (
        lambda x: normal(x, loc=torch.as_tensor(np.median(x.numpy()))),
        [(X,)] * 4 + [(X + 5.0,)] * 3,
    )


@dataclass
class Batch:
    x: torch.Tensor


def objects_among_the_arguments():
    return lambda batch: normal(batch.x), ((Batch(X + step),) for step in range(12))


def an_array_that_is_changed_in_place():
    array = np.zeros(10, dtype="float32")

    def calls():
        for step in range(6):
            array[:] = step
            yield (array,)

    return lambda x: normal(torch.as_tensor(x)), calls()


CASES = [
    two_arguments,
    an_argument_that_is_a_variable,
    a_list_that_grows,
    a_list_that_shrinks,
    a_key_that_is_added,
    a_layer_that_is_added,
    a_private_attribute,
    values_that_python_reads,
    values_that_numpy_reads,
    objects_among_the_arguments,
    an_array_that_is_changed_in_place,
]


def adam(params):
    return torch.optim.Adam(params, lr=0.05)


def losses(make, *, compile):
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, calls = make()
    svi = px.CompiledSVI(model, px.AutoJoint(model), adam, px.ELBO(), compile=compile)
    found = []
    for step, args in enumerate(calls):
        torch.manual_seed(step)
        found.append(svi.step(*args))
    return found


@pytest.mark.filterwarnings("ignore:CompiledSVI runs:UserWarning")
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_losses_are_the_eager_ones(make):
    assert losses(make, compile="record") == losses(make, compile=False)


def test_another_loss_is_taken():
    guide = px.AutoJoint(normal)
    svi = px.CompiledSVI(normal, guide, adam, px.Renyi(5, alpha=0.5), compile="record")
    for _ in range(3):
        svi.step(X)
    first = svi._last
    svi.loss.alpha = 0.0
    svi.step(X), svi.step(X)
    assert svi._last is not first
    second = svi._last
    svi.loss = px.ELBO()
    torch.manual_seed(0)
    loss = svi.step(X)
    torch.manual_seed(0)
    assert loss == pytest.approx(px.ELBO().loss(normal, guide, X), abs=1.0)
    svi.step(X)
    assert svi._last is not second


def test_rates_in_a_tensor_are_read_anew():
    def run(compile):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = px.CompiledSVI(
            normal,
            px.AutoJoint(normal),
            lambda params: torch.optim.Adam(params, lr=torch.tensor(0.05)),
            px.ELBO(),
            compile=compile,
            _backend="graph",
        )
        found = []
        for _ in range(8):
            found.append(svi.step(X))
            svi.optimizer.param_groups[0]["lr"].mul_(0.5)
        return torch.tensor(found)

    torch.testing.assert_close(run(True), run(False))  # noqa: FBT003


def test_reading_is_refused_in_this_context_alone():
    with pytest.raises(Read), without_reading():
        X.tolist()
    assert X.tolist()[0] == 0.0
    assert X.numpy()[0] == 0.0
    assert "tolist" not in vars(torch.Tensor)


@pytest.mark.filterwarnings("ignore:fit. expected a finite loss:UserWarning")
def test_steps_that_are_left_out_do_not_count_for_the_schedule():
    def run(compile):
        calls = []

        def model(x):
            normal(x)
            pyro.factor("sometimes", torch.where(torch.rand(()) < 0.5, torch.inf, 0.0))

        def schedule(optimizer):
            found = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            calls.append(found)
            return found

        options = {"num_steps": 40, "schedule": schedule, "nonfinite": "skip", "seed": 0}
        fitted = px.fit(model, px.AutoJoint(model), px.ELBO(), X, adam, compile=compile, **options)
        assert fitted.compiled.startswith("recorded") == (compile == "record")
        return calls[-1].last_epoch

    steps = run("record")
    assert 5 < steps < 35  # of 40, about a half
    assert run(False) == steps  # noqa: FBT003


class Network(torch.nn.Module):
    """Whose model and guide are methods, as those of Pyro's own VAE are."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.head = torch.nn.Linear(1, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        pyro.module("network", self)
        loc, raw = self.head(self.norm(x.unsqueeze(-1))).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(raw)))


def test_held_out_data_leave_no_trace_behind_methods():
    network = Network()
    px.fit(
        network.model,
        network.guide,
        px.ELBO(),
        X,
        num_steps=10,
        holdout=px.Holdout(X + 1000.0, every=5),
        compile=False,
        seed=0,
    )
    assert network.norm.running_mean.abs() < 1.0


def test_a_parameter_with_two_names_is_fitted():
    shared = torch.nn.Linear(1, 1)

    def model(x):
        one, two = pyro.module("one", shared), pyro.module("two", shared)
        loc = (one(x.unsqueeze(-1)) + two(x.unsqueeze(-1))).squeeze(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    run = px.fit(model, px.AutoPerDatapoint(model), px.ELBO(), X, num_steps=20, seed=0)
    assert len(run.losses) == 20

    def globals_only(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.sum(-1, keepdim=True), 1.0), obs=x)

    flow = pyro.infer.autoguide.AutoIAFNormal(globals_only)
    assert len(px.fit(globals_only, flow, px.ELBO(), X, num_steps=20, seed=0).losses) == 20


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (({"x": X},), ({"x": X + 1.0},)),
        ((np.zeros(3),), (np.ones(3),)),
        ((X, 1.0), (X, 5.0)),
        (([X, X],), ([X, X + 1.0],)),
    ],
)
def test_digests_tell_data_from_other_data(one, other):
    from pyro_ext.training.snapshot import digest

    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


def test_correlations_can_be_trusted():
    """The entries of their factor that are constants have no sd to be measured in."""
    x = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])).sample(
        (50,)
    )

    def model(x):
        factor = pyro.sample("factor", dist.LKJCholesky(2, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=x)

    run = px.fit(model, data=x, optim="auto", seed=0)
    assert run.verdict.grade == "trusted", str(run.verdict)
