"""A factorization that fails in a graph is not finite, and is not taken for one that did not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.training.compiled.factorizations import mark_failures
from pyro_ext.training.compiled.private import record_graph

RIGHT = torch.arange(6.0).reshape(3, 2)

FUNCTIONS = {
    "cholesky": torch.linalg.cholesky,
    "upper": lambda x: torch.linalg.cholesky(x, upper=True),
    "inverse": torch.linalg.inv,
    "matrices": lambda x: torch.linalg.solve(x, RIGHT),
    "vectors": lambda x: torch.linalg.solve(x, RIGHT[:, 0].expand(len(x), 3)),
    "lu": lambda x: torch.linalg.lu_factor(x)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_matrix_that_fails_gives_nan_and_the_others_what_they_gave(name):
    function = FUNCTIONS[name]
    good = torch.eye(3).repeat(2, 1, 1) + 0.3
    graph = record_graph(lambda x: (function(x),), [good])
    mark_failures(graph)
    graph.recompile()
    expected, (found,) = function(good), graph(good)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    bad = torch.stack([good[0], torch.zeros(3, 3)])
    with pytest.raises(RuntimeError):
        function(bad)
    (found,) = graph(bad)
    assert torch.equal(found[0], expected[0])
    assert found[1].isnan().all()


def curve(covariance, y):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(torch.linalg.cholesky(covariance) @ z, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("compile", ["record", pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_whose_factorization_fails_is_not_taken(compile):
    # What is left of the second matrix is a triangle of finite numbers.
    good, bad = torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    guide, y = px.AutoJoint(curve), torch.ones(2)
    svi = px.CompiledSVI(curve, guide, pyro.optim.Adam({"lr": 0.1}), px.ELBO(), compile=compile)
    for _ in range(3):
        svi.step(good, y)
    assert svi._last is not None
    before = [param.detach().clone() for param in guide.parameters()]
    with pytest.raises(ValueError, match="expected a finite loss and gradient; got others in 1"):
        svi.step(bad, y)
    assert all(map(torch.equal, guide.parameters(), before))
