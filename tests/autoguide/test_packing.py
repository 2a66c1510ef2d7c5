"""Round trip of awkward sites through one vector, and its log determinant by autograd."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import biject_to

from pyro_ext.autoguide.packing import Frame, Latent, Packing


def site(name, fn, *frames):
    return Latent(name, fn.support, fn.event_shape, tuple(sorted(frames, key=lambda f: f.dim)))


RIGHT, LEFT = Frame("right", -1, 2), Frame("left", -3, 4)
DATA_1, DATA_2 = Frame("data", -1, 5), Frame("data", -2, 5)
OTHER_1, OTHER_2 = Frame("other", -1, 3), Frame("other", -2, 3)

AWKWARD = {
    "scalar": dist.Normal(0.0, 1.0),
    "gamma": dist.Gamma(2.0, 1.0),
    "beta": dist.Beta(2.0, 1.0),
    "interval": dist.Uniform(-1.0, 3.0),
    "vector": dist.Normal(torch.zeros(3), 1.0).to_event(1),
    "matrix": dist.Gamma(torch.ones(2, 3), 1.0).to_event(2),
    "simplex": dist.Dirichlet(torch.ones(4)),
    "correlation": dist.LKJCholesky(3, torch.tensor(2.0)),
    "lower_cholesky": dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
}

LAYOUTS = {
    "global": (None, [()]),
    "global in plates": (None, [(), (RIGHT,), (OTHER_2,), (RIGHT, LEFT), (LEFT,)]),
    "data at -1": (DATA_1, [(DATA_1,)]),
    "data at -1, a plate left": (DATA_1, [(DATA_1,), (DATA_1, OTHER_2), (DATA_1, LEFT)]),
    "data at -2": (DATA_2, [(DATA_2,)]),
    "data at -2, plates on both sides": (
        DATA_2,
        [(DATA_2,), (DATA_2, OTHER_1), (DATA_2, LEFT), (DATA_2, LEFT, RIGHT)],
    ),
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def packing_of(layout):
    plate, places = layout
    sites = tuple(
        site(f"{name}_{i}", fn, *frames)
        for i, frames in enumerate(places)
        for name, fn in AWKWARD.items()
    )
    return Packing(sites, plate)


def batch_dims(packing, size=None):
    """Return the batch dims that a vector of the group has, those of nested plates as ones."""
    dims = [1] * packing.nesting
    if packing.plate is not None:
        dims[packing.plate.dim] = packing.plate.size if size is None else size
    return tuple(dims)


def site_shape(latent, size=None):
    dims = [1] * latent.nesting
    for frame in latent.frames:
        dims[frame.dim] = frame.size if size is None or frame.name != "data" else size
    return (*dims, *latent.event_shape)


@EVERY_LAYOUT
@pytest.mark.parametrize("sample", [(), (7,), (3, 2)], ids=str)
@pytest.mark.parametrize("size", [None, 2, 1])
def test_round_trip(layout, sample, size):
    packing = packing_of(layout)
    batch = batch_dims(packing, size)
    z = torch.randn(*sample, *batch, packing.dim)
    unpacked = packing.unpack(z)
    values = packing.align({name: v for name, (v, _) in unpacked.items()}, len(sample))
    for latent in packing.sites:
        value = values[latent.name]
        assert value.shape == (*sample, *site_shape(latent, size)), latent
        assert latent.support.check(value).all(), latent
    back, log_det = packing.pack(values)
    torch.testing.assert_close(back, z)
    assert log_det.shape == (*sample, *batch)
    total = sum(d.reshape(*sample, -1).sum(-1) for _, d in unpacked.values())
    torch.testing.assert_close(log_det.reshape(*sample, -1).sum(-1), total)


@EVERY_LAYOUT
@pytest.mark.parametrize("particles", [(), (7,), (3, 1, 2)], ids=str)
def test_values_as_a_trace_has_them(layout, particles):
    """With particles to the left of all plates; what a plate or particle shares is broadcast."""
    packing = packing_of(layout)
    batch_dims_of_z = 0 if packing.plate is None else -packing.plate.dim
    z = torch.randn(*particles, *batch_dims(packing), packing.dim)
    if not particles:
        z = z.reshape(z.shape[packing.nesting - batch_dims_of_z :])
    values = {name: value for name, (value, _) in packing.unpack(z).items()}
    taken, back = packing.take(values, 5, batch_dims_of_z)
    torch.testing.assert_close(back, z)
    for name, value in values.items():
        assert torch.equal(taken[name], value), name
    if not particles:
        return
    shared = {name: value[:1] for name, value in values.items()}
    first = packing.sites[0].name
    mixed = shared | {first: values[first]}
    taken, back = packing.take(mixed, 5, batch_dims_of_z)
    assert all(taken[name].shape == value.shape for name, value in values.items())
    torch.testing.assert_close(back[0], z[0])
    assert not torch.equal(back[1], back[0])


@EVERY_LAYOUT
def test_each_row_of_the_data_plate_has_its_own_part_of_the_vector(layout):
    packing = packing_of(layout)
    if packing.plate is None:
        return
    z = torch.randn(*batch_dims(packing), packing.dim)
    moved = z.clone()
    axis = packing.plate.dim - 1
    moved.select(axis, 3).add_(1.0)
    before, after = packing.unpack(z), packing.unpack(moved)
    for latent in packing.sites:
        change = (before[latent.name][0] != after[latent.name][0]).movedim(
            packing.plate.dim - len(latent.event_shape), 0
        )
        assert change[3].any(), latent
        assert not change[[0, 1, 2, 4]].any(), latent


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("frames", [(), (RIGHT,), (OTHER_2, RIGHT), (LEFT, OTHER_2)], ids=str)
def test_log_determinant_against_autograd(name, frames):
    """The support's own coordinates: a simplex or a triangle has redundant entries."""
    latent = site(name, AWKWARD[name], *frames)
    packing = Packing((latent,), None)
    z = torch.randn(packing.dim)

    def free(z):
        ((value, _),) = packing.unpack(z).values()
        if name == "simplex":
            return value[..., :-1].flatten()
        if name == "correlation":
            row, col = torch.tril_indices(3, 3, -1)
            return value[..., row, col].flatten()
        return value.flatten()

    jacobian = torch.autograd.functional.jacobian(free, z)
    ((_, log_det),) = packing.unpack(z).values()
    torch.testing.assert_close(log_det.sum(), torch.linalg.slogdet(jacobian).logabsdet)


def test_the_log_determinant_of_a_row_is_the_rows_own():
    latent = site("gamma", AWKWARD["gamma"], DATA_2, OTHER_1)
    packing = Packing((latent,), DATA_2)
    z = torch.randn(5, 1, packing.dim)
    value, log_det = packing.unpack(z)["gamma"]
    torch.testing.assert_close(log_det, value.log())
    _, packed = packing.pack({"gamma": value})
    torch.testing.assert_close(packed, value.log().sum(-1, keepdim=True))


def test_the_order_inside_a_site_is_kept():
    """A vector in two plates: the value at [left, other] comes from its own entries."""
    latent = site("vector", AWKWARD["vector"], LEFT, OTHER_2)
    packing = Packing((latent,), None)
    value, _ = packing.unpack(torch.arange(float(packing.dim)))["vector"]
    assert value.shape == (4, 3, 1, 3)
    assert torch.equal(value.flatten(), torch.arange(36.0))


def test_bounds_with_batch_dims():
    high = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    fn = dist.Uniform(torch.zeros(5), high)
    latent = site("uniform", fn, DATA_1)
    assert latent.unconstrained_shape == ()
    assert latent.support_varies(DATA_1)
    packing = Packing((latent,), DATA_1)
    assert packing.dim == 1
    value, log_det = packing.unpack(torch.zeros(5, 1))["uniform"]
    torch.testing.assert_close(value, high / 2)
    torch.testing.assert_close(log_det, (high / 4).log())
    assert packing.pack({"uniform": value})[0].shape == (5, 1)
    assert not site("scalar", AWKWARD["interval"], DATA_1).support_varies(DATA_1)
    nested = site("nested", dist.Uniform(torch.zeros(2), torch.ones(2)), DATA_2, RIGHT)
    assert nested.support_varies(RIGHT)
    assert not nested.support_varies(DATA_2)
    assert Packing((nested,), DATA_2).dim == 2


def test_sizes_are_those_of_the_unconstrained_space():
    packing = packing_of(LAYOUTS["data at -2, plates on both sides"])
    sizes = dict(zip([s.name for s in packing.sites], packing.sizes, strict=True))
    assert sizes["simplex_0"] == 3
    assert sizes["correlation_0"] == 3
    assert sizes["matrix_0"] == 6
    assert sizes["matrix_3"] == 6 * 4 * 2
    assert packing.dim == sum(sizes.values())


@pytest.mark.parametrize("data_dim", [-1, -2])
def test_against_the_model_itself(data_dim):
    """The unpacked values are what a model with the same plates accepts and scores."""
    frame = Frame("data", data_dim, 5)
    other = Frame("other", -3 - data_dim, 3)
    sites = tuple(site(n, fn, *f) for n, fn in AWKWARD.items() for f in [(frame, other)])
    packing = Packing(sites, frame)
    unpacked = packing.unpack(torch.randn(*batch_dims(packing), packing.dim))

    def model():
        plates = {f.name: pyro.plate(f.name, f.size, dim=f.dim) for f in (frame, other)}
        with plates["data"], plates["other"]:
            for name, fn in AWKWARD.items():
                pyro.sample(name, fn)

    values = {name: value for name, (value, _) in unpacked.items()}
    trace = poutine.trace(poutine.condition(model, values)).get_trace()
    for name, fn in AWKWARD.items():
        assert trace.nodes[name]["value"].shape == trace.nodes[name]["fn"].shape()
        assert trace.nodes[name]["fn"].log_prob(values[name]).shape == unpacked[name][1].shape
        plain = biject_to(fn.support).inv(values[name])
        assert math.isfinite(plain.sum())
