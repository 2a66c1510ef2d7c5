import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LOSSES

import pyro_ext as px
from pyro_ext.training.compiled import step

X = [[0.3, -1.0], [1.2, 0.4], [-0.5, 0.9], [2.0, 0.0], [0.1, 0.1], [1.0, -2.0]]


def model(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), scale.unsqueeze(-1)).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


GUIDES = {
    "joint": lambda: px.AutoJoint(model, family=px.FullCovariance()),
    "amortized": lambda: px.AutoAmortized(model, torch.nn.Linear(2, 3), family=px.LowRank(rank=1)),
}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def train(guide, loss, *, compile):
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    adam = pyro.optim.Adam({"lr": 0.01})
    svi = px.CompiledSVI(model, GUIDES[guide](), adam, LOSSES[loss](2), compile=compile)
    x = torch.tensor(X)
    losses = torch.tensor([svi.step(x) for _ in range(200)])
    assert (svi._last is not None) == compile
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guide", "loss"), [("joint", "ELBO-reparam"), ("amortized", "IWAE-dreg")]
)
def test_compiled_steps_are_the_eager_ones_for_the_same_seed(guide, loss, dtype):
    found, expected = train(guide, loss, compile=True), train(guide, loss, compile=False)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    difference = (found - expected).abs() / expected.abs().clamp(min=1.0)
    assert difference.max() < tolerance


@pytest.mark.parametrize("form", ["triangular", pytest.param("lu", marks=pytest.mark.slow)])
def test_a_matrix_for_each_row_compiles(form):
    """The compiler's index_copy into an expanded tensor would make one matrix of all."""
    pyro.clear_param_store()
    guide = px.AutoAmortized(model, torch.nn.Linear(2, 3), family=px.FullCovariance(form))
    svi = px.CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), px.ELBO())
    for _ in range(2):
        svi.step(torch.tensor(X))
    assert svi._last is not None


def test_the_gradient_of_a_large_triangle_is_gathered_once(monkeypatch):
    """In each loop that reads it, it took 3.6 times the step of 1,000 dimensions."""

    def vector():
        z = pyro.sample("z", dist.Normal(torch.zeros(50), 1.0).to_event(1))
        pyro.factor("likelihood", -0.5 * (z.sum(-1) - 1.0).square())

    stored, losses = [], {}
    once = step.once
    monkeypatch.setattr(step, "once", lambda grad: stored.append(grad.numel()) or once(grad))
    for compile in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        guide = px.AutoJoint(vector, family=px.FullCovariance())
        adam = pyro.optim.Adam({"lr": 0.01})
        svi = px.CompiledSVI(vector, guide, adam, px.ELBO(), compile=compile)
        losses[compile] = torch.tensor([svi.step() for _ in range(20)])
        assert (svi._last is not None) == compile
    assert stored == [50 + 50 * 51 // 2]
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-10, atol=1e-10)
