import copy
import pickle

import pytest
import torch
from torch.distributions import Normal

import pyro_ext as px
from helpers import assert_mean
from pyro_ext.families import Flow, Householder
from pyro_ext.families.flow_kinds import KINDS

ANY = [name for name, kind in KINDS.items() if kind.density == "any"]
OWN = [name for name, kind in KINDS.items() if kind.density == "own"]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_INVERTIBLE = pytest.mark.parametrize("kind", ANY)
EVERY_ONE_WAY = pytest.mark.parametrize("kind", OWN)
EVERY_CONTEXT = pytest.mark.parametrize("context", [0, 3])
EVERY_DIM = pytest.mark.parametrize("dim", [1, 2, 5])
BATCHES = [(), (4,), (2, 3)]


def start(family, dim, batch=()):
    """Return the start: π around a random place, and new networks."""
    loc, scale = torch.randn(*batch, dim), torch.rand(*batch, dim) + 0.5
    return family.initial_params(loc, scale), family.network(dim)


def bent(family, dim, batch=(), *, by=0.1):
    """Return π and networks away from the start."""
    params, network = start(family, dim, batch)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(by * torch.randn_like(param))
    return params + by * torch.randn_like(params), network


@EVERY_KIND
@EVERY_DIM
@EVERY_CONTEXT
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_a_flow_starts_as_its_base(kind, dim, context, batch):
    family = Flow(kind, base=px.FullCovariance(), context=context, hidden=(8,))
    params, network = start(family, dim, batch)
    q = family.distribution(params, dim, network)
    assert q.batch_shape == batch
    assert q.event_shape == (dim,)
    base = family.base.distribution(params[..., : family.base.num_params(dim)], dim)
    torch.manual_seed(0)
    value = q.rsample((6,))
    torch.manual_seed(0)
    torch.testing.assert_close(value, base.rsample((6,)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.log_prob(value), base.log_prob(value), rtol=0, atol=1e-11)


@EVERY_KIND
@EVERY_DIM
@EVERY_CONTEXT
@pytest.mark.parametrize("num_transforms", [1, 3])
def test_every_parameter_moves_within_two_steps(kind, dim, context, num_transforms):
    family = Flow(kind, context=context, num_transforms=num_transforms, hidden=(8, 8))
    params, network = start(family, dim, (4,))
    tensors = {"π": params.requires_grad_(), **dict(network.named_parameters())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    optimizer = torch.optim.Adam(tensors.values(), lr=0.01)
    for _ in range(2):
        q = family.distribution(params, dim, network)
        value = q.rsample((50,))
        log_target = -(value - value.roll(1, -1).square()).square() - value**4 + value
        optimizer.zero_grad()
        (q.log_prob(value) - log_target.sum(-1)).mean().backward()
        optimizer.step()
    still = [name for name, tensor in tensors.items() if torch.equal(tensor, before[name])]
    assert not still
    assert (params != before["π"]).all()


@EVERY_KIND
@EVERY_DIM
@EVERY_CONTEXT
def test_log_determinant_is_that_of_the_jacobian(kind, dim, context):
    family = Flow(kind, base=px.FullCovariance("lu"), context=context, hidden=(8,))
    params, network = bent(family, dim)
    transform = family.transform(params, dim, network)
    for noise in torch.randn(3, dim) * torch.tensor([[0.5], [1.0], [3.0]]):
        jacobian = torch.autograd.functional.jacobian(transform, noise)
        found = transform.log_abs_det_jacobian(noise, transform(noise))
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-8)
        value, log_det = transform.forward_and_log_det(noise)
        torch.testing.assert_close(value, transform(noise))
        torch.testing.assert_close(log_det, found)


@EVERY_KIND
def test_the_map_is_not_affine(kind):
    family = Flow(kind)
    params, network = bent(family, 3)
    transform = family.transform(params, 3, network)
    noise = torch.randn(3)
    middle = (transform(noise) + transform(-noise)) / 2
    assert (middle - transform(torch.zeros(3))).abs().max() > 1e-4


@EVERY_KIND
def test_every_coordinate_depends_on_every_noise(kind):
    """Orders and halves turn from transform to transform."""
    family = Flow(kind)
    params, network = bent(family, 4)
    transform = family.transform(params, 4, network)
    jacobian = torch.autograd.functional.jacobian(transform, torch.randn(4))
    assert (jacobian.abs() > 1e-9).all()


@EVERY_INVERTIBLE
def test_the_map_makes_torchs_transformed_distribution(kind):
    family = Flow(kind, base=px.FullCovariance(), context=2)
    params, network = bent(family, 3, (4,))
    noise = torch.distributions.Independent(Normal(torch.zeros(3), 1.0), 1)
    made = torch.distributions.TransformedDistribution(
        noise, [family.transform(params, 3, network)]
    )
    assert made.batch_shape == (4,)
    q = family.distribution(params, 3, network)
    value = q.sample((5,))
    torch.testing.assert_close(made.log_prob(value), q.log_prob(value), rtol=0, atol=1e-8)


@EVERY_INVERTIBLE
@EVERY_DIM
@EVERY_CONTEXT
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_the_inverse_inverts(kind, dim, context, batch):
    family = Flow(kind, base=px.FullCovariance(), context=context, hidden=(8,))
    params, network = bent(family, dim, batch)
    transform = family.transform(params, dim, network)
    noise = torch.randn(6, *batch, dim) * 2
    value, log_det = transform.forward_and_log_det(noise)
    back, same = transform.inverse_and_log_det(value)
    torch.testing.assert_close(back, noise, rtol=0, atol=1e-8)
    torch.testing.assert_close(same, log_det, rtol=0, atol=1e-8)
    torch.testing.assert_close(transform.inv(value), noise, rtol=0, atol=1e-8)
    assert same.shape == (6, *batch)


@EVERY_INVERTIBLE
def test_a_draw_and_its_copy_have_one_density(kind):
    family = Flow(kind, context=2)
    params, network = bent(family, 3, (4,))
    q = family.distribution(params, 3, network)
    first, value = q.rsample((5,)), q.rsample((5,))
    again = family.distribution(params, 3, network)
    torch.testing.assert_close(q.log_prob(value), again.log_prob(value), rtol=0, atol=1e-8)
    torch.testing.assert_close(q.log_prob(first), again.log_prob(first), rtol=0, atol=1e-8)
    torch.testing.assert_close(q.log_prob(value.clone()), q.log_prob(value), rtol=0, atol=1e-8)


def gradients(total, params, network):
    tensors = [params, *network.parameters()]
    return torch.autograd.grad(total, tensors, retain_graph=True, materialize_grads=True)


def assert_same_gradients(ones, others):
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@EVERY_INVERTIBLE
def test_own_noise_and_inverse_have_the_same_gradient(kind):
    """d/dθ log q(z(ε; θ); θ) is the same if ε is remembered and if it is computed from z."""
    family = Flow(kind, context=2, hidden=(8,))
    params, network = bent(family, 3, (4,))
    params.requires_grad_()
    q, fresh = (family.distribution(params, 3, network) for _ in range(2))
    value = q.rsample((5,))
    own = gradients(q.log_prob(value).sum(), params, network)
    inverse = gradients(fresh.log_prob(value).sum(), params, network)
    assert_same_gradients(own, inverse)


@EVERY_INVERTIBLE
@pytest.mark.parametrize("how", ["detached draw", "draw without gradients"])
def test_the_density_of_a_given_value_has_the_gradient_of_the_score(kind, how):
    family = Flow(kind, context=2, hidden=(8,))
    params, network = bent(family, 3, (4,))
    params.requires_grad_()
    q = family.distribution(params, 3, network)
    value = q.rsample((5,)).detach() if how == "detached draw" else q.sample((5,))
    leaf = value.clone().requires_grad_()
    fresh = family.distribution(params, 3, network).log_prob(leaf).sum()
    mine = gradients(q.log_prob(value).sum(), params, network)
    assert_same_gradients(mine, gradients(fresh, params, network))

    tensors = [params.detach(), *(param.detach() for param in network.parameters()), value]
    ways = [torch.randn_like(tensor) for tensor in tensors]

    @torch.no_grad()
    def moved(step):
        for tensor, way in zip(tensors, ways, strict=True):
            tensor.add_(step * way)
        result = family.distribution(tensors[0], 3, network).log_prob(value).sum()
        for tensor, way in zip(tensors, ways, strict=True):
            tensor.sub_(step * way)
        return result

    slopes = [*mine, torch.autograd.grad(fresh, leaf)[0]]
    slope = sum((g * way).sum() for g, way in zip(slopes, ways, strict=True))
    finite = (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close(slope, finite, rtol=1e-5, atol=1e-5)


def integral(q, dim, half, points):
    """Integrate q by the trapezoidal rule over a cube around 0."""
    axis = torch.linspace(-half, half, points)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    with torch.no_grad():
        density = q.log_prob(grid).exp().reshape([points] * dim)
    for _ in range(dim):
        density = torch.trapezoid(density, axis, dim=-1)
    return density


@EVERY_INVERTIBLE
@EVERY_CONTEXT
@pytest.mark.parametrize(
    ("dim", "half", "points", "error"), [(1, 20, 40_001, 1e-5), (2, 12, 401, 2e-3)]
)
def test_densities_integrate_to_one(kind, context, dim, half, points, error):
    """The rule errs by O(h²), most where splines have kinks: by 3e-6 and 5e-4 as measured."""
    family = Flow(kind, base=px.FullCovariance(), context=context, hidden=(8,))
    params, network = bent(family, dim, by=0.2)
    q = family.distribution(params, dim, network)
    torch.testing.assert_close(
        integral(q, dim, half, points), torch.tensor(1.0), rtol=0, atol=error
    )


@EVERY_KIND
@pytest.mark.parametrize("dim", [1, 3])
def test_draws_have_the_density(kind, dim):
    """E_q[r / q] = 1 for a normal r inside q: the one test of flows that score own draws only."""
    family = Flow(kind, hidden=(8,))
    params, network = bent(family, dim, by=0.2)
    q = family.distribution(params, dim, network)
    with torch.no_grad():
        value = q.rsample((20_000,))
        inside = Normal(value.mean(0), 0.4 * value.std(0))
        weight = (inside.log_prob(value).sum(-1) - q.log_prob(value)).exp()
    assert_mean(weight, 1.0)


@EVERY_INVERTIBLE
@EVERY_DIM
def test_far_values_are_finite(kind, dim):
    family = Flow(kind, context=2)
    params, network = bent(family, dim)
    params.requires_grad_()
    q = family.distribution(params, dim, network)
    for far in (-1e3, 1e3):
        log_q = q.log_prob(torch.full((dim,), far))
        assert log_q.isfinite()
        assert all(g.isfinite().all() for g in gradients(log_q, params, network))


@EVERY_KIND
@pytest.mark.parametrize("context", [0, 2])
def test_particles_share_parameters_and_context(kind, context):
    """π of shape (B, 1, P), as a plate left of others has it, and K particles."""
    family = Flow(kind, base=px.FullCovariance(), context=context)
    params, network = bent(family, 2, (4, 1))
    q = family.distribution(params, 2, network)
    assert q.batch_shape == (4, 1)
    wide = q.expand((6, 4, 3))
    assert wide.transform is q.transform
    assert wide.batch_shape == (6, 4, 3)
    value = wide.rsample((2,))
    log_q = wide.log_prob(value)
    assert value.shape == (2, 6, 4, 3, 2)
    assert log_q.shape == (2, 6, 4, 3)
    assert value.flatten(0, -2).unique(dim=0).shape == (144, 2)
    if family.density == "any":
        for row in range(4):
            alone = family.distribution(params[row, 0], 2, network)
            expected = alone.log_prob(value[:, :, row])
            torch.testing.assert_close(log_q[:, :, row], expected, rtol=0, atol=1e-8)
            broadcast = wide.log_prob(value[0, 0, row, 0])[row, 0]
            torch.testing.assert_close(broadcast, expected[0, 0, 0], rtol=0, atol=1e-8)


@EVERY_KIND
@EVERY_CONTEXT
def test_the_context_bends(kind, context):
    """Elements whose π differ in c alone have densities of another shape."""
    family = Flow(kind, context=context)
    params, network = bent(family, 2, by=0.3)
    other = params.clone()
    other[4:] += 1.0
    noise = torch.randn(2)
    one, two = (family.transform(p, 2, network)(noise) for p in (params, other))
    assert torch.equal(one, two) == (context == 0)


@EVERY_ONE_WAY
def test_without_an_inverse_only_the_latest_draw_is_scored(kind):
    family = Flow(kind)
    params, network = bent(family, 2)
    q = family.distribution(params, 2, network)
    first, value = q.rsample(), q.rsample()
    assert q.log_prob(value).isfinite()
    no_inverse = rf"Flow: .*just drawn by rsample.*'{kind}' has no inverse.*estimator='reparam'"
    for other in (value.detach(), value.clone(), first, torch.zeros(2)):
        with pytest.raises(ValueError, match=no_inverse):
            q.log_prob(other)
    value = q.sample()
    with pytest.raises(ValueError, match=no_inverse):  # it would have no gradient
        q.log_prob(value)
    with torch.no_grad():
        assert q.log_prob(value).isfinite()
    with pytest.raises(ValueError, match="has no inverse"):
        family.transform(params, 2, network).inv(value)


@EVERY_INVERTIBLE
@pytest.mark.parametrize(
    "base", [px.Diagonal(), px.FullCovariance("dense"), Householder()], ids=str
)
def test_any_affine_base(kind, base):
    family = Flow(kind, base=base)
    params, network = bent(family, 3)
    assert params.shape == (base.num_params(3),)
    q = family.distribution(params, 3, network)
    value = q.rsample((3,))
    torch.testing.assert_close(q.log_prob(value), q.log_prob(value.clone()), rtol=0, atol=1e-8)


@EVERY_KIND
@EVERY_CONTEXT
def test_networks_copy_save_and_cast(kind, context):
    family = Flow(kind, context=context)
    params, network = bent(family, 3)
    noise = torch.randn(5, 3)
    expected = family.transform(params, 3, network).forward_and_log_det(noise)
    loaded = family.network(3)
    loaded.load_state_dict(network.state_dict())
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        assert {id(p) for p in other.parameters()}.isdisjoint(id(p) for p in network.parameters())
        same = family.transform(params, 3, other).forward_and_log_det(noise)
        torch.testing.assert_close(same, expected, rtol=0, atol=0)
    single = family.transform(params.float(), 3, copy.deepcopy(network).float())
    found = single.forward_and_log_det(noise.float())
    assert all(tensor.dtype == torch.float32 for tensor in found)
    torch.testing.assert_close([f.double() for f in found], list(expected), rtol=1e-4, atol=1e-4)
    double = family.transform(params, 3, copy.deepcopy(network).float().double())
    torch.testing.assert_close(double(noise), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["realnvp", "nice", "nsf-coupling"])
def test_a_value_is_scored_by_one_pass_of_each_network(kind):
    family = Flow(kind, num_transforms=2)
    network, passes = family.network(5), []
    for layer in network:
        layer.lazy.hyper.register_forward_hook(lambda *_: passes.append(1))
        layer(None).inverse(torch.randn(3, 5))
    assert len(passes) == 2
