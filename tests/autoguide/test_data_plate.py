"""Which plate is the data plate, what sizes it may have, and create_plates."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from autoguide.data_plates import (
    CLUSTERS,
    EVERY_SOURCE,
    NUM,
    Encoder,
    amortized,
    indexed_batch,
    inside,
    per_datapoint,
    recovered,
    rows_of_traces,
    sliced,
)
from pyro import poutine

import pyro_ext as px

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

    with pytest.raises(ValueError, match=r"got sites \['z'\] in none. Write: px.AutoJoint"):
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

    with pytest.raises(
        ValueError, match=r"got site 'w' in plate 'features' too, .* 3 of 6.*Write: pyro.plate"
    ):
        px.AutoPerDatapoint(model, plate="rows").setup(CLUSTERS)


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
