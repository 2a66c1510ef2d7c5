import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import pyro_ext as px
from helpers import assert_mean
from pyro_ext._strata import stratify
from pyro_ext.families.affine_normal import AffineNormal
from pyro_ext.families.mixture import Mixture

BASES = {
    "diagonal": px.Diagonal(),
    "triangle": px.FullCovariance(),
    "low-rank": px.LowRank(rank=2),
}
EVERY_BASE = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
BATCHES = [(), (4,), (2, 3)]


def random(family, dim, *batch):
    return family.distribution(torch.randn(*batch, family.num_params(dim)), dim)


def covariance(components):
    """The covariance of each component."""
    if isinstance(components, AffineNormal) or hasattr(components, "covariance_matrix"):
        return components.covariance_matrix
    return torch.diag_embed(components.variance)


def torchs(q):
    normals = MultivariateNormal(q.components.mean, covariance(q.components))
    return MixtureSameFamily(Categorical(logits=q.log_share), normals)


@EVERY_BASE
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_density_and_moments_are_torchs(base, dim, batch, count):
    q = random(Mixture(base, num_components=count), dim, *batch)
    exact = torchs(q)
    assert (q.batch_shape, q.event_shape) == (batch, (dim,))
    for sample in ((), (7,), (2, 5)):
        value = 3 * torch.randn(*sample, *batch, dim)
        torch.testing.assert_close(q.log_prob(value), exact.log_prob(value))
        assert q.sample(sample).shape == (*sample, *batch, dim)
    torch.testing.assert_close(q.mean, exact.mean)
    torch.testing.assert_close(q.variance, exact.variance)


@EVERY_BASE
def test_density_integrates_to_one(base):
    q = random(Mixture(base, num_components=3), 2)
    sd = q.components.variance.sqrt()
    low, high = (
        part.detach()
        for part in (
            (q.components.mean - 12 * sd).amin(0),
            (q.components.mean + 12 * sd).amax(0),
        )
    )
    axes = [torch.linspace(float(a), float(b), 801) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    total = q.log_prob(grid).exp().sum() * cell
    torch.testing.assert_close(total, torch.ones(()), rtol=0, atol=1e-8)


@EVERY_BASE
def test_draws_have_the_moments(base):
    q = random(Mixture(base, num_components=3), 2, 2)
    drawn = q.sample((20_000,))
    assert_mean(drawn, q.mean)
    assert_mean((drawn - q.mean).square(), q.variance)
    assert not q.has_rsample


@EVERY_BASE
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_expanded_particles_share_the_parameters(base, batch):
    q = random(Mixture(base, num_components=2), 3, *batch)
    wide = q.expand((6, *batch))
    assert wide.components is q.components
    value = wide.sample()
    assert value.shape == (6, *batch, 3)
    torch.testing.assert_close(wide.log_prob(value), torchs(q).log_prob(value))
    assert wide.mean.shape == wide.variance.shape == (6, *batch, 3)


@EVERY_BASE
@pytest.mark.parametrize("dim", [1, 2, 6])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_initial_params_give_mean_and_scale_and_different_components(base, dim, batch, count):
    family = Mixture(base, num_components=count)
    loc, scale = torch.randn(*batch, dim), torch.rand(*batch, dim) + 0.01
    params = family.initial_params(loc, scale)
    assert params.shape == (*batch, family.num_params(dim))
    q = family.distribution(params, dim)
    torch.testing.assert_close(q.mean, loc)
    torch.testing.assert_close(q.variance.sqrt(), scale)
    means = q.components.mean
    apart = (means.unsqueeze(-2) - means.unsqueeze(-3)).abs() / scale[..., None, None, :]
    assert (apart.amax(-1) + torch.eye(count) > 0.05).all()
    torch.testing.assert_close(params, family.initial_params(loc, scale), rtol=0, atol=0)


@EVERY_BASE
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("prob", [1e-6, 0.05, 0.5, 0.9])
def test_quantiles_of_normal_components_are_exact(base, batch, prob):
    family = Mixture(base, num_components=3)
    q = random(family, 2, *batch)
    value = family.quantile(q.expand((1, *batch)), prob)
    assert value.shape == (1, *batch, 2)
    share, sd = q.log_share.exp().unsqueeze(-1), q.components.variance.sqrt()
    below = torch.special.ndtr((value.unsqueeze(-2) - q.components.mean) / sd)
    torch.testing.assert_close((share * below).sum(-2), torch.full_like(value, prob))


class Laplaces(px.Diagonal):
    """A base whose coordinates are not normal."""

    def distribution(self, params, dim, network=None):
        return dist.Laplace(params[..., :dim], params[..., dim:].exp()).to_event(1)


def test_quantiles_of_others_come_from_draws():
    family = Mixture(Laplaces(), num_components=2)
    q = random(family, 2)
    share, each = q.log_share.exp().unsqueeze(-1), q.components.base_dist
    below = (share * each.cdf(family.quantile(q, 0.3).expand(2, 2))).sum(-2)
    # 4096 draws: a standard error of 0.0072.
    torch.testing.assert_close(below, torch.full((2,), 0.3), rtol=0, atol=5 * 0.0072)


def test_extreme_params_stay_finite():
    family = Mixture(px.FullCovariance())
    for raw in (-1e3, 1e3):
        params = torch.full((family.num_params(1),), raw)
        params[0] = -params[0]
        params.requires_grad_()
        q = family.distribution(params, 1)
        log_q = q.log_prob(q.mean.detach())
        assert log_q.isfinite()
        assert torch.autograd.grad(log_q, params)[0].isfinite().all()
    q = family.distribution(torch.zeros(family.num_params(1)), 1)
    assert q.log_prob(torch.tensor([1e3])).isfinite()


def test_a_mixture_of_one_is_its_base():
    family = Mixture(px.FullCovariance(), num_components=1)
    params = family.initial_params(torch.zeros(2), torch.ones(2))
    value = torch.randn(5, 2)
    base = px.FullCovariance().distribution(params[1:], 2)
    torch.testing.assert_close(
        family.distribution(params, 2).log_prob(value), base.log_prob(value)
    )


# ---------------------------------------------------------------------- strata


@pytest.mark.parametrize("axis", [-2, -3])
def test_particles_are_shared_out_evenly_in_orders_that_cross(axis):
    family = Mixture(px.Diagonal(), num_components=3)
    with stratify((axis,)):
        q = random(family, 2, 50)
    shape = {-2: (6, 50), -3: (6, 1, 50)}[axis]
    q = q.expand(shape)
    assert q.strata_dim == axis
    chosen = q._share_out(torch.Size())
    assert (torch.nn.functional.one_hot(chosen, 3).sum(0) == 2).all()
    assert len(chosen.reshape(6, 50).unique(dim=1).T) > 10
    shares = (q.log_share + math.log(3)).expand(*shape, 3)
    expected = shares.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(q.log_strata, expected)


@EVERY_BASE
def test_stratified_draws_estimate_expectations(base):
    """Σ C α h(z) / K is unbiased, and its derivative by the shares is right."""
    family = Mixture(base, num_components=2)
    params = torch.randn(family.num_params(2)).requires_grad_()
    mean = family.distribution(params, 2).mean.sum()
    exact = torch.autograd.grad(mean, params)[0]
    with stratify((-1,)):
        q = family.distribution(params, 2).expand((4,))
    values, grads = [], []
    for _ in range(500):
        value = _estimate(q).mean()
        values.append(value.detach())
        grads.append(torch.autograd.grad(value, params, retain_graph=True)[0])
    assert_mean(torch.stack(values)[:, None], mean.detach())
    assert_mean(torch.stack(grads), exact)


def _estimate(q):
    drawn = q.rsample()
    return q.log_strata.exp() * drawn.sum(-1)


def test_a_number_that_is_no_multiple_is_drawn_independently():
    with stratify((-1,)):
        q = random(Mixture(px.Diagonal(), num_components=2), 1).expand((3,))
    assert q.has_rsample
    assert not q.rsample().requires_grad
    assert not q.has_rsample
    assert q.log_strata is None


def test_pyro_draws_from_strata_where_it_is_asked():
    params = torch.randn(Mixture(px.Diagonal()).num_params(1), requires_grad=True)

    def guide():
        with pyro.plate("particles", 4, dim=-2), pyro.plate("data", 3, dim=-1):
            return pyro.sample("z", Mixture(px.Diagonal()).distribution(params, 1))

    assert not guide().requires_grad
    with stratify((-2,)):
        assert guide().requires_grad


# ---------------------------------------------------------------------- errors


class Samples(px.Diagonal):
    density = "none"


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: Mixture(Mixture(px.Diagonal(), num_components=3)),
            ValueError,
            r"no mixtures; got .* Write: px.Mixture\(Diagonal\(\), num_components=6\)",
        ),
        (lambda: Mixture(Samples()), ValueError, r"scores any z.*got Samples\(\)"),
        (lambda: Mixture(2), TypeError, r"base to be a family; got 2\. Write: base=px\.Full"),
        (lambda: Mixture(px.Diagonal(), num_components=0), ValueError, r">= 1; got 0. Write"),
    ],
)
def test_what_makes_no_mixture_is_an_error(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_numbers_of_params():
    assert Mixture(px.Diagonal(), num_components=3).num_params(2) == 15
    assert Mixture(px.Diagonal()) == Mixture(px.Diagonal(), num_components=2)
    assert Mixture(px.Diagonal()).network(2) is None
