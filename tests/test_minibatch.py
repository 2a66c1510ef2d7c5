import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_ext.minibatch import MiniBatch, current_minibatch, has_rows, rows_of

X = torch.arange(10.0)
ROWS = torch.tensor([7, 2, 4, 1])


def sliced(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        with pyro.plate("other", 2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, -1))


def inside(x):
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])


def trace_of(model, *args):
    return poutine.trace(model).get_trace(*args)


def test_sites_in_the_plate_are_scaled():
    with MiniBatch("data", 10, ROWS, sliced=True):
        nodes = trace_of(sliced, X[ROWS]).nodes
    assert nodes["mu"]["scale"] == 1.0
    assert nodes["z"]["scale"] == 2.5
    assert nodes["x"]["scale"] == 2.5
    frames = {frame.name: frame for frame in nodes["x"]["cond_indep_stack"]}
    assert (frames["data"].size, frames["data"].full_size) == (4, 10)
    assert (frames["other"].size, frames["other"].full_size) == (2, 2)


def test_the_scale_multiplies_another():
    with MiniBatch("data", 10, ROWS, sliced=True):
        nodes = trace_of(poutine.scale(sliced, 0.5), X[ROWS]).nodes
    assert nodes["z"]["scale"] == 1.25


def test_outside_nothing_changes():
    with MiniBatch("data", 10, ROWS, sliced=True):
        pass
    assert trace_of(sliced, X[ROWS]).nodes["z"]["scale"] == 1.0
    assert current_minibatch("data") is None


def test_the_models_own_draw_is_replaced():
    with MiniBatch("data", 10, ROWS, sliced=False):
        nodes = trace_of(inside, X).nodes
        assert current_minibatch("data") is None
    assert torch.equal(nodes["data"]["value"], ROWS)
    assert torch.equal(nodes["x"]["value"], X[ROWS])
    assert nodes["x"]["scale"] == 2.5


def test_given_rows_stay_as_they_are():
    def model(x, rows):
        with pyro.plate("data", len(x), subsample=rows) as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])

    with MiniBatch("data", 10, ROWS, sliced=False):
        nodes = trace_of(model, X, torch.tensor([0, 1])).nodes
    assert nodes["x"]["value"].tolist() == [0.0, 1.0]


def test_another_plate_is_left_alone():
    with MiniBatch("other name", 10, ROWS, sliced=True):
        assert trace_of(sliced, X[ROWS]).nodes["z"]["scale"] == 1.0
    with MiniBatch("other name", 10, ROWS, sliced=False):
        assert len(trace_of(inside, X).nodes["data"]["value"]) == 4


def test_a_plate_of_another_size_is_an_error():
    def model(x):
        with pyro.plate("data", 10):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with (
        MiniBatch("data", 10, ROWS, sliced=True),
        pytest.raises(ValueError, match=r"site 'z': .* 4 rows .*got 10.*pyro.plate\('data', len"),
    ):
        model(X[ROWS])


def test_batches_nest_and_survive_errors():
    outer = MiniBatch("data", 10, ROWS, sliced=True)
    with outer:
        with pytest.raises(KeyError), MiniBatch("data", 4, ROWS[:2], sliced=True):
            raise KeyError
        assert current_minibatch("data") is outer
    assert current_minibatch("data") is None


def test_rows_of():
    table, other = torch.randn(10, 3), torch.randn(4)
    cut = rows_of((X, table, other, "text", None), ROWS, 10)
    assert torch.equal(cut[0], X[ROWS])
    assert torch.equal(cut[1], table[ROWS])
    assert cut[2] is other
    assert cut[3:] == ("text", None)
    assert has_rows(X, 10)
    assert not has_rows(torch.tensor(10.0), 10)
    assert not has_rows([0] * 10, 10)
