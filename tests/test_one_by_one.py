"""Models that take no batch dim for particles: their draws are run one by one."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from one_draw import (
    MODELS,
    NUM,
    SLOWER,
    X,
    Y,
    branched,
    exact_evidence,
    guide_of,
    posterior,
    regression,
)
from torch import Tensor
from weight_pairs import close

import pyro_ext as px
from pyro_ext import _one_by_one


@pytest.fixture(params=["mapped", "looped"])
def way(request: Any, monkeypatch: Any) -> str:
    """Run draws as torch.func.vmap does, where it can, and in a loop."""
    if request.param == "looped":
        monkeypatch.setattr(_one_by_one, "mapped", lambda *_: None)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("sizes", [(3, 4), (NUM, 1), (3, 1)])
def test_log_weights_are_those_of_the_model_for_many_draws(
    make: Any,
    joint: bool,  # noqa: FBT001
    sizes: tuple[int, int],
) -> None:
    """Also where there are as many draws as rows, groups or covariates."""
    guide = guide_of(make(many=True))
    found = []
    for many in (True, False):
        torch.manual_seed(1)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            weights = px.log_weights(
                make(many=many),
                guide,
                X,
                Y,
                num_particles=sizes[0],
                num_outer=sizes[1],
                joint=joint,
            )
        assert [bool(told)] == [not many]
        found.append(weights)
    expected, got = found
    assert [term.plates for term in got.terms] == [term.plates for term in expected.terms]
    for one, other in zip(got.terms, expected.terms, strict=True):
        close(one.log_p, other.log_p)
        close(one.log_q, other.log_q)
    for name, value in expected.latents.items():
        assert torch.equal(got.latents[name], value)


def test_evidence_is_exact_where_the_guide_is_the_posterior() -> None:
    model = regression(many=False)
    with pytest.warns(UserWarning, match=SLOWER):
        found = px.evidence(model, posterior(), X, Y, num_particles=30, num_repeats=2)
    assert found.log_evidence.value == pytest.approx(exact_evidence(X, Y), abs=1e-10)
    assert found.draws.std() < 1e-10  # each weight is the evidence


def test_evidence_of_another_guide_is_within_its_error() -> None:
    model = regression(many=False)
    with pytest.warns(UserWarning, match=SLOWER):
        found = px.evidence(model, posterior(1.5), X, Y, num_particles=100, seed=0)
    error = found.log_evidence.value - exact_evidence(X, Y)
    assert abs(error) < 4 * found.log_evidence.se
    assert found.log_evidence.se < 0.05


def test_all_draws_are_mapped_at_once(monkeypatch: Any) -> None:
    found = []

    def watched(*args: Any) -> Any:
        found.append(mapped(*args) is not None)
        return mapped(*args)

    mapped = _one_by_one.mapped
    monkeypatch.setattr(_one_by_one, "mapped", watched)
    for make in MODELS:
        model = make(many=False)
        with pytest.warns(UserWarning, match=SLOWER):
            px.log_weights(model, guide_of(make(many=True)), X, Y, num_particles=7, joint=True)
        assert found[-1] == (make is not branched)  # Python cannot branch on all at once


@pytest.mark.parametrize("bad", ["scale", "concentration", "data"])
def test_a_fault_of_one_draw_is_raised(bad: str) -> None:
    """Also one that leaves a finite density: log Gamma of a negative number is a number."""

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        loc = (x @ w).sum()
        if bad == "scale":
            fn: Any = dist.Normal(0.0, 2 + loc)
        elif bad == "concentration":
            fn = dist.Beta(2 + loc, 1.5)
        else:
            fn = dist.Pareto(0.1 + loc.abs() / 3, 1.0)
        pyro.sample("y", fn, obs=torch.tensor(0.5))

    guide = px.AutoJoint(model, init_scale=1.0)
    torch.manual_seed(0)
    message = "within the support" if bad == "data" else "satisfy the constraint"
    with (
        pytest.warns(UserWarning, match=SLOWER),
        pytest.raises(ValueError, match=message) as caught,
    ):
        px.log_weights(model, guide, X, Y, num_particles=300)
    assert not hasattr(caught.value, "__notes__")


def test_it_is_said_once_for_each_model() -> None:
    model = regression(many=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for guide in (posterior(), posterior(1.5)):
            px.k_hat_joint(model, guide, X, Y, num_samples=30, chunk_size=2)
            px.to_datatree(model, guide, X, Y, num_samples=30)
    assert len(told) == 1


def test_the_random_numbers_are_those_of_the_model_for_many_draws() -> None:
    states = []
    for many in (True, False):
        torch.manual_seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            px.log_weights(regression(many=many), posterior(), X, Y, num_particles=5)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_model_that_takes_two_draws_and_no_more() -> None:
    """Of two groups and two rows, `u[group]` of two draws is `u`: only three draws fail."""
    group = torch.arange(2)

    def model(y: Tensor) -> None:
        with pyro.plate("groups", 2):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(u[group], 0.5), obs=y)

    guide = px.AutoJoint(model, init_scale=0.5)
    for num, told in ((2, False), (3, True), (2, False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = px.log_weights(model, guide, Y[:2], num_particles=num, joint=True)
        assert bool(caught) == told
        u = found.latents["u"]
        log_p = dist.Normal(0.0, 1.0).log_prob(u) + dist.Normal(u, 0.5).log_prob(Y[:2])
        close(found.terms[0].log_p, log_p.sum(1))


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, KeyError])
def test_what_is_no_matter_of_shapes_is_raised(kind: type[Exception], most: int) -> None:
    def hungry(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        if w.numel() > 3 * most:
            raise kind("too many")
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 0.5), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind, match="too many"):
            px.log_weights(hungry, guide_of(regression(many=True)), X, Y, num_particles=4)
