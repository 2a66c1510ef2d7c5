"""Every loss and estimator in a graph: the steps are the eager ones."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import LOSSES
from training.compiled_cases import WAYS

import pyro_ext as px

X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.5, 0.9]])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z + pyro.param("shift", torch.zeros(2))
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def run(loss, *, compile):
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    guide = px.AutoAmortized(model, torch.nn.Linear(2, 3), family=px.FullCovariance())
    adam = pyro.optim.Adam({"lr": 0.01})
    svi = px.CompiledSVI(model, guide, adam, loss, compile=compile, _backend="graph")
    losses = torch.tensor([svi.step(X) for _ in range(4)])
    assert (svi._last is not None) == bool(compile)
    return losses, [p.detach().clone() for p in pyro.get_param_store().values()]


@pytest.mark.parametrize("compile", WAYS)
@pytest.mark.parametrize("name", [*LOSSES, "Sleep", "ELBO-kl", "ELBO-entropy"])
def test_graph_and_eager_steps_agree_for_every_loss(name, compile):
    def loss():
        if name == "Sleep":
            return px.Sleep({"x": 0})
        form = name.partition("-")[2]
        return px.ELBO(2, form=form) if form in ("kl", "entropy") else LOSSES[name](2)

    rtol, atol = (0.0, 0.0) if compile == "record" else (1e-9, 1e-12)
    found, params = run(loss(), compile=compile)
    expected, wanted = run(loss(), compile=False)
    torch.testing.assert_close(found, expected, rtol=0.1 * rtol, atol=0)
    for one, other in zip(params, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def scaled(fn, which):
    def scaled(x, *scales):
        with pyro.poutine.scale(scale=scales[which]):
            fn(x)

    return scaled


@pytest.mark.parametrize("compile", WAYS)
@pytest.mark.parametrize("loss", [px.IWAE(4), px.ELBO(4)], ids=repr)
def test_scales_that_agree_at_some_steps_and_not_at_others(loss, compile):
    """A scale goes outside the log where model and guide share it: one graph does both."""
    rows = [([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]), ([2.0, 3.0, 1.0], [2.0, 3.0, 1.0])]
    values = [(2.0, 2.0), (2.0, 3.0), (3.0, 3.0), *rows, *rows]
    scales = [tuple(map(torch.tensor, pair)) for pair in values]
    found = {}
    for way in (compile, False):
        pyro.clear_param_store()
        guide = px.AutoAmortized(model, torch.nn.Linear(2, 3))
        with torch.no_grad():
            for param in guide.parameters():
                param.fill_(0.1)
        svi = px.CompiledSVI(
            scaled(model, 0),
            scaled(guide, 1),
            pyro.optim.Adam({"lr": 0.01}),
            loss,
            compile=way,
            _backend="graph",
        )
        pyro.set_rng_seed(5)
        found[way] = torch.tensor([svi.step(X, *pair) for pair in scales])
        assert sum(map(len, svi._graphs.values())) == (2 if way else 0)  # one for each shape
    torch.testing.assert_close(found[compile], found[False], rtol=1e-10, atol=0)
