"""Mini-batches of K-sample bounds: a bound whatever the batch, and the same one."""

from functools import cache
from itertools import combinations
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scripts import load
from torch import Tensor

import pyro_ext as px
from helpers import assert_at_most, assert_mean
from pyro_ext.testing import NormalGlobal, NormalHierarchy

REPEATS = 100


@cache
def rows() -> list[Any]:
    pyro.set_rng_seed(1)
    return load("subsampling").table(repeats=REPEATS, ways=load("subsampling").WAYS)


def test_estimates_stay_at_or_below_the_evidence() -> None:
    """Within 4 standard errors, whatever K, B, and the way in which the batch is made."""
    exact = load("subsampling").exact_evidence()
    ours = [row for row in rows() if row.way != "RenyiELBO"]
    assert len(ours) == 27
    for row in ours:
        assert row.mean <= exact + 4 * row.error, (row.particles, row.size, row.way)
        assert_at_most(row.adjusted, exact)


@pytest.mark.parametrize("particles", [1, 5, 50])
def test_expectation_does_not_depend_on_the_batch(particles: int) -> None:
    """Pairwise t-tests of all sizes and ways, with the noise of the choice of rows taken out."""
    ours = [r for r in rows() if r.way != "RenyiELBO" and r.particles == particles]
    for one, other in combinations(ours, 2):
        assert_mean(one.adjusted - other.adjusted, 0.0)
        assert_mean(one.values - other.values, 0.0)


def test_more_particles_are_closer_to_the_evidence() -> None:
    def mean(particles: int) -> float:
        chosen = [r for r in rows() if r.way != "RenyiELBO" and r.particles == particles]
        return float(torch.stack([r.adjusted for r in chosen]).mean())

    assert mean(1) < mean(5) < mean(50) <= load("subsampling").exact_evidence() + 0.05


def test_pyros_renyi_elbo_exceeds_the_evidence() -> None:
    """The full batch is a bound, a mini-batch is none: it fails the test above."""
    exact = load("subsampling").exact_evidence()
    for row in rows():
        if row.way == "RenyiELBO" and row.size == 40:
            assert_at_most(row.adjusted, exact)
        elif row.way == "RenyiELBO":
            error = float(row.adjusted.std()) / len(row.adjusted) ** 0.5
            assert float(row.adjusted.mean()) > exact + 4 * error, (row.particles, row.size)


def test_table_is_markdown() -> None:
    text = load("subsampling").markdown(rows())
    lines = text.splitlines()
    assert lines[0].startswith("Exact log evidence: -")
    assert len(lines) == 4 + len(rows())
    assert all(line.count("|") == 7 for line in lines[2:])
    assert "(above)" in text
    assert not any("(above)" in line for line in lines if "px.IWAE" in line)


# ---------------------------------------------------------------------- structure


def test_global_latents_alone_cannot_be_subsampled() -> None:
    """One weight for the whole data set has the scale inside: K > 1 raises, the ELBO is right."""
    exact = NormalGlobal(NormalGlobal.simulate(20).x, subsample_size=5)
    message = r"subsampled plate 'data'.*is no bound.*Write: px\.ELBO\(\)"
    for estimator in ("reparam", "dreg"):
        with pytest.raises(ValueError, match=message):
            px.IWAE(5, estimator=estimator).loss(exact.model, exact.guide, *exact.args)
    px.IWAE(1).loss(exact.model, exact.guide, *exact.args)
    values = [-px.ELBO(20).loss(exact.model, exact.guide, *exact.args) for _ in range(300)]
    assert_mean(torch.tensor(values), exact.log_evidence())


def test_global_latents_alone_cannot_be_sliced() -> None:
    exact = NormalGlobal.simulate(20)
    with (
        px.MiniBatch("data", 20, torch.arange(5), sliced=True),
        pytest.raises(ValueError, match="subsampled plate 'data'"),
    ):
        px.IWAE(5).loss(exact.model, exact.guide, exact.x[:5])


def test_a_sequential_plate_cannot_be_subsampled_either() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 20, 5):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(x.mean(), 0.3))

    with pytest.raises(ValueError, match="subsampled plate 'data'"):
        px.IWAE(5).loss(model, guide, torch.randn(20))
    px.ELBO(5).loss(model, guide, torch.randn(20))


@pytest.mark.parametrize("sliced", [False, True])
def test_hierarchy_keeps_its_scale_outside(sliced: bool) -> None:  # noqa: FBT001
    """With the exact posterior the local weights are constant: the mean is the evidence."""
    full = NormalHierarchy.simulate(20, scale=0.7)
    exact = NormalHierarchy(full.x, scale=0.7, subsample_size=None if sliced else 5)
    values = []
    for _ in range(400):
        rows = torch.randperm(20)[:5]
        if sliced:
            with px.MiniBatch("data", 20, rows, sliced=True):
                values.append(-px.IWAE(5).loss(exact.model, exact.guide, exact.x[rows]))
        else:
            values.append(-px.IWAE(5).loss(exact.model, exact.guide, exact.x))
    assert_mean(torch.tensor(values), full.log_evidence())


def test_mini_batch_of_the_wrong_size_names_the_site() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = px.AutoAmortized(model, lambda x: x.unsqueeze(-1))
    x = torch.randn(20)
    guide.setup(x)
    with (
        px.MiniBatch("data", 20, torch.arange(5), sliced=True),
        pytest.raises(ValueError, match=r"the 5 rows of the mini-batch; got 20"),
    ):
        px.IWAE(5).loss(model, guide, x)


@pytest.mark.parametrize("way", ["subsample_size", "subsample", "sliced"])
@pytest.mark.parametrize("kind", ["per datapoint", "amortized"])
def test_auto_guides_see_the_rows_of_the_model(kind: str, way: str) -> None:
    """An exact automatic guide has zero gradient on every mini-batch, and the batch's evidence."""
    x = torch.randn(20)

    def model(x: Tensor, rows: Tensor | None = None) -> None:
        size = 5 if way == "subsample_size" else None
        with pyro.plate("data", len(x), size, subsample=rows) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    guide: Any
    exact = px.Diagonal().initial_params(torch.zeros(1), torch.full((1,), 0.5).sqrt())
    if kind == "amortized":
        guide = px.AutoAmortized(model, lambda x, rows=None: x.unsqueeze(-1))
        guide.setup(x)
        guide.head.weight.data = torch.tensor([[0.5], [0.0]])
        guide.head.bias.data = exact
    else:
        guide = px.AutoPerDatapoint(model)
        guide.setup(x)
        guide.local_params.data = torch.stack([x / 2, exact[1].expand(20)], -1)
    evidence = torch.distributions.Normal(0.0, 2**0.5).log_prob(x)
    loss = px.IWAE(7, estimator="dreg")
    for _ in range(5):
        rows = torch.randperm(20)[:5]
        seen = load("subsampling")._SeeRows(None if way == "subsample_size" else rows)
        with seen:
            if way == "sliced":
                with px.MiniBatch("data", 20, rows, sliced=True):
                    value = loss.loss_and_grads(model, guide, x[rows])
            else:
                value = loss.loss_and_grads(model, guide, x, *([rows] * (way == "subsample")))
        assert -value == pytest.approx(4 * evidence[seen.rows].sum().item(), abs=1e-10)
    assert max(float(p.grad.abs().max()) for p in guide.parameters()) < 1e-10
