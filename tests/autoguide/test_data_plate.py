"""Which plate is the data plate, and that model and guide see the same rows of it."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.minibatch import MiniBatch

NUM = 12
CLUSTERS = torch.where(torch.arange(NUM) < NUM // 2, -5.0, 5.0) + torch.linspace(-1, 1, NUM)
"""Rows so far apart that a latent shows at once which row it was fitted to."""


def sliced(x):
    """Called with the rows of the batch."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def inside(x, size=4):
    """Called with all rows; draws its own subsample."""
    with pyro.plate("data", len(x), subsample_size=size) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def indexed_full(x, rows):
    """Called with all rows, and with those to use."""
    with pyro.plate("data", NUM, subsample=rows) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def indexed_batch(x, rows):
    """Called with the rows of the batch and their indices, as a DataLoader gives them."""
    with pyro.plate("data", NUM, subsample=rows):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Encoder:
    """The datum itself, and a record of the rows that it was asked for."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, *rest):
        self.seen.append(x.clone())
        return torch.stack([x, torch.ones_like(x)], -1)


def per_datapoint(model):
    return px.AutoPerDatapoint(model)


def amortized(model):
    return px.AutoAmortized(model, Encoder())


EVERY_SOURCE = pytest.mark.parametrize("build", [per_datapoint, amortized])


# ---------------------------------------------------------------------- which plate


def two_plates(x, *, subsample_size=None):
    with pyro.plate("features", 3, dim=-2):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=subsample_size, dim=-1) as rows:
        z = pyro.sample("z", dist.Normal(w.sum(-2, keepdim=True), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


@pytest.mark.parametrize("name", ["rows", "features"])
def test_the_named_plate(name):
    guide = px.AutoPerDatapoint(two_plates, plate=name)
    guide.setup(CLUSTERS)
    assert guide.plate == name
    assert len(guide.local_params) == {"rows": NUM, "features": 3}[name]
    assert px.ELBO(3).loss(two_plates, guide, CLUSTERS) > 0
    assert px.IWAE(3).loss(two_plates, guide, CLUSTERS) > 0


def test_the_only_plate():
    guide = px.AutoPerDatapoint(sliced)
    assert guide.plate is None
    guide.setup(CLUSTERS)
    assert guide.plate == "data"


def test_a_plate_without_latents_does_not_count():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("other", 3):
            pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.zeros(3))

    guide = px.AutoPerDatapoint(model)
    guide.setup(CLUSTERS)
    assert guide.plate == "data"


def test_the_subsampled_plate():
    model = partial(two_plates, subsample_size=4)
    guide = px.AutoPerDatapoint(model)
    guide.setup(CLUSTERS)
    assert guide.plate == "rows"
    assert guide.local_params.shape == (NUM, 2)
    assert guide(CLUSTERS)["z"].shape[-1] == 4
    assert guide.sample_posterior(2, CLUSTERS)["w"].shape == (2, 3, 1)


@pytest.mark.parametrize("name", ["AutoPerDatapoint", "AutoAmortized"])
def test_ambiguous_plates_are_an_error_that_lists_them(name):
    args = (Encoder(),) if name == "AutoAmortized" else ()
    with pytest.raises(ValueError, match=rf"{name}: .*\['features', 'rows'\].*plate='"):
        getattr(px, name)(two_plates, *args).setup(CLUSTERS)


def test_no_plate_is_an_error():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"\['z'\] are in none.*px.AutoJoint"):
        px.AutoPerDatapoint(model).setup()


def test_an_absent_name_is_an_error():
    with pytest.raises(ValueError, match=r"a plate named 'batch'.*\['features', 'rows'\]"):
        px.AutoPerDatapoint(two_plates, plate="batch").setup(CLUSTERS)


def test_a_second_subsampled_plate_is_an_error():
    def model(x):
        with pyro.plate("rows", len(x), subsample_size=4, dim=-1) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("features", 6, subsample_size=3, dim=-2):
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w.sum(-2, keepdim=True), 1.0), obs=x[rows])

    with pytest.raises(ValueError, match=r"site 'w' is also in plate 'features', .* 3 of 6"):
        px.AutoPerDatapoint(model, plate="rows").setup(CLUSTERS)


# ---------------------------------------------------------------------- the same rows


def rows_of_traces(model, guide, *args):
    """Return the plate's rows on both sides, and the scale of the latent on both sides."""
    lw = px.log_weights(model, guide, *args)
    traces = lw.model_trace, lw.guide_trace
    scales = [trace.nodes["z"]["scale"] for trace in traces]
    return [trace.nodes["data"]["value"] for trace in traces], scales


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


def recovered(guide, *args):
    """Tell whether each row's latent lies at its own datum."""
    return torch.allclose(guide.median(*args)["z"], CLUSTERS * 100 / 101, rtol=0, atol=0.3)


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


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [NUM - 1, NUM + 1, 1])
def test_a_table_of_another_size_is_an_error(size):
    guide = per_datapoint(sliced)
    guide.setup(CLUSTERS)
    for call in (guide, guide.median, partial(guide.sample_posterior, 2)):
        with pytest.raises(ValueError, match=rf"'data' to have the 12 datapoints.*got {size}"):
            call(torch.zeros(size))
    for loss in (px.ELBO(), px.IWAE(3)):
        with pytest.raises(ValueError, match="12"):
            loss.loss(sliced, guide, torch.zeros(size))


@pytest.mark.parametrize("size", [1, NUM + 5])
def test_an_encoder_follows_the_data(size):
    guide = amortized(sliced)
    guide.setup(CLUSTERS)
    assert guide(torch.zeros(size))["z"].shape == (size,)
    assert px.IWAE(3).loss(sliced, guide, torch.zeros(size)) > 0


# ---------------------------------------------------------------------- create_plates


@EVERY_SOURCE
def test_create_plates_with_a_subsample(build):
    def plates(x):
        return pyro.plate("data", len(x), subsample_size=4, dim=-1)

    extra = (Encoder(),) if build is amortized else ()
    guide = type(build(inside))(inside, *extra, create_plates=plates)
    guide.setup(CLUSTERS)
    for _ in range(5):
        (ours, theirs), scales = rows_of_traces(inside, guide, CLUSTERS)
        assert torch.equal(ours, theirs)
        assert scales == [3.0, 3.0]
        if extra:
            assert torch.equal(guide.encoder.seen[-1], CLUSTERS[ours])
    assert guide.sample_posterior(3, CLUSTERS)["z"].shape == (3, NUM)


@EVERY_SOURCE
def test_create_plates_in_fit(build):
    extra = (Encoder(),) if build is amortized else ()
    guide = type(build(sliced))(
        sliced, *extra, create_plates=lambda x: pyro.plate("data", len(x), dim=-1)
    )
    px.fit(
        sliced,
        guide,
        px.ELBO(2, estimator="stl"),
        CLUSTERS,
        partial(torch.optim.Adam, lr=0.4),
        schedule=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=250),
        num_steps=250,
        batch_size=5,
        seed=0,
        progress=False,
    )
    assert recovered(guide, CLUSTERS)


def test_create_plates_of_permuted_rows():
    rows = torch.arange(NUM).flip(0)
    guide = px.AutoPerDatapoint(
        indexed_batch,
        create_plates=lambda x, rows: pyro.plate("data", NUM, subsample=rows, dim=-1),
    )
    guide.setup(CLUSTERS, torch.arange(NUM))
    with torch.no_grad():
        guide.local_params[:, 0] = CLUSTERS
        guide.local_params[:, 1] = -30.0
    torch.testing.assert_close(guide(CLUSTERS[rows], rows)["z"], CLUSTERS[rows])


def test_create_plates_of_a_joint_guide():
    guide = px.AutoJoint(sliced, create_plates=lambda x: pyro.plate("data", len(x), dim=-1))
    guide.setup(CLUSTERS)
    trace = poutine.trace(guide).get_trace(CLUSTERS)
    assert trace.nodes["z"]["cond_indep_stack"][0].name == "data"
    assert px.ELBO(3).loss(sliced, guide, CLUSTERS) > 0


# ---------------------------------------------------------------------- supports by row


def uniform(x, high):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(torch.zeros_like(high), high))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@EVERY_SOURCE
def test_a_support_of_its_own_in_each_row(build):
    guide = build(uniform)
    high = torch.linspace(1.0, 50.0, NUM)
    guide.setup(CLUSTERS, high)
    assert (guide.quantiles([0.999999], CLUSTERS, high)["z"] < high).all()
    assert (guide.sample_posterior(200, CLUSTERS, high)["z"] < high).all()
    assert px.IWAE(3).loss(uniform, guide, CLUSTERS, high) > 0
    with pytest.raises(ValueError, match=r"the same support.*site 'z'.*pyro.deterministic"):
        px.fit(
            uniform, guide, px.ELBO(), (CLUSTERS, high), num_steps=2, batch_size=4, progress=False
        )
