"""Model and guide see the same rows of the data plate, and train their latents."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from autoguide.data_plates import (
    CLUSTERS,
    EVERY_SOURCE,
    NUM,
    amortized,
    indexed_batch,
    indexed_full,
    inside,
    per_datapoint,
    recovered,
    rows_of_traces,
    sliced,
)

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.minibatch import MiniBatch


@EVERY_SOURCE
def test_the_models_own_subsample(build):
    guide = build(inside)
    guide.setup(CLUSTERS)
    seen = set()
    for _ in range(20):
        (ours, theirs), scales = rows_of_traces(inside, guide, CLUSTERS)
        assert torch.equal(ours, theirs)
        assert len(ours) == 4
        assert scales == [3.0, 3.0]
        seen |= set(ours.tolist())
        if build is amortized:
            assert torch.equal(guide.encoder.seen[-1], CLUSTERS[ours])
    assert len(seen) > 4


@EVERY_SOURCE
@pytest.mark.parametrize("model", [indexed_full, indexed_batch])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_given_rows(build, model, size):
    guide = build(model)
    guide.setup(CLUSTERS, torch.arange(NUM))
    for rows in torch.randperm(NUM).split(size):
        x = CLUSTERS if model is indexed_full else CLUSTERS[rows]
        (ours, theirs), scales = rows_of_traces(model, guide, x, rows)
        assert torch.equal(ours, rows)
        assert torch.equal(theirs, rows)
        assert scales == [NUM / len(rows)] * 2
        if build is amortized:
            assert torch.equal(guide.encoder.seen[-1], CLUSTERS[rows])


@EVERY_SOURCE
@pytest.mark.parametrize("model", [indexed_full, indexed_batch])
def test_a_permuted_full_batch_after_a_smaller_one(build, model):
    guide = build(model)
    few, rows = torch.tensor([2, 7]), torch.randperm(NUM)
    guide.setup(CLUSTERS if model is indexed_full else CLUSTERS[few], few)
    x = CLUSTERS if model is indexed_full else CLUSTERS[rows]
    (ours, theirs), _ = rows_of_traces(model, guide, x, rows)
    assert torch.equal(ours, theirs)
    if build is amortized:
        assert torch.equal(guide.encoder.seen[-1], CLUSTERS[rows])


def test_a_permuted_full_batch_at_first_is_ambiguous_for_an_encoder():
    rows = torch.arange(NUM).flip(0)
    with pytest.raises(ValueError, match=r"all 12 rows in another order.*subsample=torch.arange"):
        amortized(indexed_full).setup(CLUSTERS, rows)
    per_datapoint(indexed_full).setup(CLUSTERS, rows)


def train(model, guide, batches, num_steps=250):
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    loss = px.ELBO(2, estimator="stl")
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss.differentiable_loss(model, guide, *next(batches)).backward()
        optimizer.step()
        schedule.step()


def loader(model):
    """Shuffled rows, the last batch of an epoch short."""
    while True:
        for rows in torch.randperm(NUM).split(5):
            yield (CLUSTERS if model is indexed_full else CLUSTERS[rows]), rows


@EVERY_SOURCE
@pytest.mark.parametrize("model", [indexed_full, indexed_batch])
def test_rows_of_a_loader_train_their_own_latents(build, model):
    guide = build(model)
    guide.setup(CLUSTERS, torch.arange(NUM))
    train(model, guide, loader(model))
    assert recovered(guide, CLUSTERS, torch.arange(NUM))


@EVERY_SOURCE
@pytest.mark.parametrize("model", [sliced, inside])
def test_rows_of_fit_train_their_own_latents(build, model):
    guide = build(model)
    optim = partial(torch.optim.Adam, lr=0.4)
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=250)
    run = px.fit(
        model,
        guide,
        px.ELBO(2, estimator="stl"),
        CLUSTERS,
        optim,
        schedule=schedule,
        num_steps=250,
        batch_size=5 if model is sliced else 4,
        seed=0,
        progress=False,
    )
    assert recovered(guide, CLUSTERS)
    assert run.sample(7)["z"].shape == (7, NUM)


@EVERY_SOURCE
def test_rows_of_the_models_own_draw_train_their_own_latents(build):
    guide = build(inside)
    guide.setup(CLUSTERS)

    def always():
        while True:
            yield (CLUSTERS,)

    train(inside, guide, always())
    assert recovered(guide, CLUSTERS)


@EVERY_SOURCE
@pytest.mark.parametrize("size", [1, 4, NUM])
def test_the_rows_of_a_mini_batch(build, size):
    guide = build(sliced)
    guide.setup(CLUSTERS)
    rows = torch.randperm(NUM)[:size]
    with MiniBatch("data", NUM, rows, sliced=True):
        draws = guide(CLUSTERS[rows])["z"]
        assert draws.shape == (size,)
        with torch.no_grad():
            loss = px.ELBO().loss(sliced, guide, CLUSTERS[rows])
            (term,) = px.log_weights(sliced, guide, CLUSTERS[rows], num_particles=3).terms
    assert loss > 0
    assert term.log_w.shape == (3, size)
    assert term.scale == NUM / size
    if build is amortized:
        assert torch.equal(guide.encoder.seen[-1], CLUSTERS[rows])


@EVERY_SOURCE
def test_a_plate_of_a_fixed_size_is_named(build):
    def fixed(x):
        with pyro.plate("data", NUM):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    message = rf"plate 'data' to have the 3 rows of the mini-batch; got {NUM}.*len\(x\)"
    with pytest.raises(ValueError, match=message):
        px.fit(fixed, build(fixed), data=CLUSTERS, num_steps=1, batch_size=3, progress=False)


def test_a_mini_batch_reads_its_own_rows_of_the_table():
    guide = per_datapoint(sliced)
    guide.setup(CLUSTERS)
    with torch.no_grad():
        guide.local_params[:, 0] = CLUSTERS
        guide.local_params[:, 1] = -30.0
    rows = torch.randperm(NUM)
    with MiniBatch("data", NUM, rows, sliced=True):
        torch.testing.assert_close(guide(CLUSTERS[rows])["z"], CLUSTERS[rows])
    torch.testing.assert_close(guide(CLUSTERS)["z"], CLUSTERS)


def test_only_the_rows_of_the_batch_get_gradients():
    guide = per_datapoint(indexed_batch)
    guide.setup(CLUSTERS, torch.arange(NUM))
    rows = torch.tensor([1, 8])
    px.ELBO().differentiable_loss(indexed_batch, guide, CLUSTERS[rows], rows).backward()
    moved = guide.local_params.grad.abs().sum(-1).nonzero().flatten()
    assert torch.equal(moved, rows)


@EVERY_SOURCE
def test_summaries_are_of_all_rows_where_the_model_draws_its_own(build):
    guide = build(inside)
    guide.setup(CLUSTERS)
    draws = guide.sample_posterior(3, CLUSTERS)
    assert draws["z"].shape == (3, NUM)
    assert guide.median(CLUSTERS)["z"].shape == (NUM,)
    assert guide.log_prob(draws, CLUSTERS).shape == (3,)


def test_the_scale_of_the_latents_makes_the_loss_unbiased_in_the_batch():
    """The mean of the mini-batch losses over all batches is the full loss."""
    guide = per_datapoint(sliced)
    guide.setup(CLUSTERS)
    gaps = []
    for _ in range(100):
        parts = []
        for rows in torch.randperm(NUM).split(3):
            with MiniBatch("data", NUM, rows, sliced=True):
                parts.append(px.ELBO().loss(sliced, guide, CLUSTERS[rows]))
        gaps.append(sum(parts) / 4 - px.ELBO().loss(sliced, guide, CLUSTERS))
    assert_mean(torch.tensor(gaps), 0.0)
