import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_ext as px
from pyro_ext.families import Householder
from pyro_ext.families.affine_normal import AffineNormal
from pyro_ext.families.family import inverse_positive, positive
from pyro_ext.families.linear_map import Triangle

FAMILIES = {
    "diagonal": px.Diagonal(),
    "triangle": px.FullCovariance(),
    "dense": px.FullCovariance("dense"),
    "lu": px.FullCovariance("lu"),
    "low-rank": px.LowRank(rank=2),
    "householder": Householder(num_reflections=2),
    "odd householder": Householder(num_reflections=3),
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
FLOORED = {name: family for name, family in FAMILIES.items() if name != "dense"}
"""Those with a least scale; the entries of a dense S are free."""
BATCHES = [(), (4,), (2, 3)]


@EVERY_FAMILY
@pytest.mark.parametrize("dim", [1, 2, 6])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_initial_params_give_mean_and_scale(family, dim, batch):
    loc, scale = torch.randn(*batch, dim), torch.rand(*batch, dim) + 1e-3
    params = family.initial_params(loc, scale)
    assert params.shape == (*batch, family.num_params(dim))
    q = family.distribution(params, dim)
    assert q.batch_shape == batch
    assert q.event_shape == (dim,)
    torch.testing.assert_close(q.mean, loc, rtol=0, atol=0)
    torch.testing.assert_close(q.variance.sqrt(), scale, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["triangular", "dense", "lu"])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_initial_params_give_a_whole_matrix(form, dim):
    loc, factor = torch.randn(4, dim), torch.randn(4, dim, dim) * 0.3 + torch.eye(dim)
    if form == "triangular":
        factor = factor.tril()
    if form == "lu":
        upper = torch.randn(4, dim, dim).triu(1) + torch.diag_embed(torch.rand(4, dim) + 0.1)
        factor = (torch.randn(4, dim, dim).tril(-1) + torch.eye(dim)) @ upper
    family = px.FullCovariance(form)
    params = family.initial_params(loc, factor)
    assert params.shape == (4, family.num_params(dim))
    q = family.distribution(params, dim)
    torch.testing.assert_close(q.linear.matrix(), factor, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q.mean, loc, rtol=0, atol=0)


def test_a_matrix_without_lu_is_an_error():
    family = px.FullCovariance("lu")
    turned = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    with pytest.raises(
        ValueError, match=r"expected a matrix S = L U .*px.FullCovariance\('dense'"
    ):
        family.initial_params(torch.zeros(2), turned)


def test_an_unknown_form_is_an_error():
    with pytest.raises(ValueError, match=r"expected factor to be one of .*'lu'.*got 'cholesky'"):
        px.FullCovariance("cholesky")


def test_numbers_of_params():
    assert [px.Diagonal().num_params(d) for d in (1, 2, 10)] == [2, 4, 20]
    assert [px.FullCovariance().num_params(d) for d in (1, 2, 10)] == [2, 5, 65]
    assert [px.FullCovariance("dense").num_params(d) for d in (1, 2, 10)] == [2, 6, 110]
    assert [px.FullCovariance("lu").num_params(d) for d in (1, 2, 10)] == [2, 6, 110]
    assert [Householder(num_reflections=3).num_params(d) for d in (1, 2, 10)] == [5, 10, 50]
    assert [px.LowRank(rank=3).num_params(d) for d in (1, 2, 10)] == [5, 10, 50]


def test_low_rank_covariance_is_diagonal_plus_low_rank():
    family = px.LowRank(rank=2)
    params = torch.randn(family.num_params(4))
    loc, raw, entries = params.split([4, 4, 8])
    sd, factor = positive(raw), entries.reshape(4, 2)
    covariance = sd[:, None] * (factor @ factor.mT + torch.eye(4)) * sd
    exact = MultivariateNormal(loc, covariance)
    q = family.distribution(params, 4)
    torch.testing.assert_close(q.covariance_matrix, covariance)
    value = torch.randn(7, 4)
    torch.testing.assert_close(q.log_prob(value), exact.log_prob(value))


@pytest.mark.slow
def test_low_rank_climbs_out_of_its_start():
    """A factor of exactly zero has no expected gradient: the start must not be one."""
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    target = AffineNormal(torch.zeros(3), Triangle(torch.linalg.cholesky(covariance)))

    def model():
        pyro.sample("z", target)

    guide = px.AutoJoint(model, family=px.LowRank(rank=1))
    px.fit(model, guide, px.ELBO(16, estimator="stl"), num_steps=1500, seed=0, progress=False)
    fitted = guide.family.distribution(guide.params, 3).covariance_matrix
    torch.testing.assert_close(fitted, covariance, rtol=0, atol=0.05)  # measured: 0.01


def test_low_rank_of_no_rank_is_an_error():
    with pytest.raises(ValueError, match=r"expected rank >= 1; got 0. Write: px.LowRank"):
        px.LowRank(rank=0)


@EVERY_FAMILY
def test_every_param_moves_the_density(family):
    params = torch.randn(family.num_params(3)) + torch.linspace(0, 1, family.num_params(3))
    params.requires_grad_()
    family.distribution(params, 3).log_prob(torch.randn(3)).backward()
    assert (params.grad != 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_householder_starts_diagonal_and_turns(count):
    """Pairs that cancel, or an axis, are no place where the gradient vanishes."""
    family, scale = Householder(num_reflections=count), torch.tensor([0.1, 0.2, 0.4])
    params = family.initial_params(torch.zeros(3), scale).requires_grad_()
    q = family.distribution(params, 3)
    torch.testing.assert_close(q.covariance_matrix, scale.square().diag(), rtol=1e-12, atol=1e-15)
    (q.covariance_matrix * torch.randn(3, 3)).sum().backward()
    turning = params.grad[6:].reshape(count, 3)
    assert (turning.norm(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("count", [2, 3])
def test_householder_climbs_out_of_its_start(count):
    """The guides start with all scales equal, where the reflections have no gradient."""
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    family, precision = Householder(num_reflections=count), covariance.inverse()
    params = family.initial_params(torch.zeros(3), torch.full((3,), 0.1)).requires_grad_()
    optimizer = torch.optim.LBFGS([params], max_iter=300, line_search_fn="strong_wolfe")

    def kl():
        optimizer.zero_grad()
        q = family.distribution(params, 3)
        value = 0.5 * (precision @ q.covariance_matrix).trace() - q.entropy()
        value.backward()
        return value

    optimizer.step(kl)
    fitted = family.distribution(params, 3).covariance_matrix
    torch.testing.assert_close(fitted, covariance, rtol=0, atol=1e-4)


def test_householder_without_reflections_is_an_error():
    with pytest.raises(ValueError, match=r"num_reflections >= 1; got 0. Write: px.Householder"):
        Householder(num_reflections=0)


GAUSSIANS = {name: family for name, family in FAMILIES.items() if name != "low-rank"}


@pytest.mark.parametrize("family", GAUSSIANS.values(), ids=GAUSSIANS)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_the_transform_of_noise_makes_the_distribution(family, batch):
    params = torch.randn(*batch, family.num_params(3)) * 0.5 + 0.1
    q, transform = family.distribution(params, 3), family.transform(params, 3)
    torch.manual_seed(0)
    value = q.rsample((4,))
    torch.manual_seed(0)
    noise = torch.randn(4, *batch, 3)
    torch.testing.assert_close(transform(noise), value)
    log_normal = -0.5 * (noise.square() + torch.tensor(2 * torch.pi).log()).sum(-1)
    log_det = transform.log_abs_det_jacobian(noise, value)
    torch.testing.assert_close(log_normal - log_det, q.log_prob(value))


def test_low_rank_has_no_transform_of_noise_of_its_size():
    assert px.LowRank().transform(torch.zeros(6), 2) is None


@EVERY_FAMILY
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_quantiles_are_those_of_the_marginals(family, batch):
    q = family.distribution(torch.randn(*batch, family.num_params(2)), 2)
    marginal = torch.distributions.Normal(q.mean, q.variance.sqrt())
    for prob in (0.01, 0.5, 0.9):
        expected = marginal.icdf(torch.tensor(prob))
        torch.testing.assert_close(family.quantile(q, prob), expected)
    torch.testing.assert_close(family.quantile(q, 0.5), q.mean)


def test_positive_and_its_inverse():
    value = torch.logspace(-12, 3, 50)
    torch.testing.assert_close(positive(inverse_positive(value)), value, rtol=1e-3, atol=0)
    value = torch.logspace(-3, 3, 50)
    torch.testing.assert_close(positive(inverse_positive(value)), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("family", FLOORED.values(), ids=FLOORED)
def test_a_scale_below_the_least_one_raises(family):
    loc = torch.zeros(2, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"above 1.2e-07, .*torch.float32; got .*e-0[89]"):
        family.initial_params(loc, torch.full_like(loc, 1e-8))
    assert family.initial_params(loc, torch.full_like(loc, 1e-6)).isfinite().all()


@EVERY_FAMILY
def test_extreme_params_stay_finite(family):
    for raw in (-1e3, 1e3):
        params = torch.full((family.num_params(1),), raw)
        q = family.distribution(params, 1)
        assert q.variance.min() > 0
        assert q.log_prob(q.mean).isfinite()


def test_families_are_values():
    assert px.Diagonal() == px.Diagonal()
    assert px.FullCovariance() != px.FullCovariance("dense")
    assert {px.Diagonal(), px.Diagonal()} == {px.Diagonal()}


SIZES = {
    "rank": lambda n: px.LowRank(rank=n),
    "num_reflections": lambda n: Householder(num_reflections=n),
    "num_components": lambda n: px.Mixture(px.Diagonal(), num_components=n),
    "num_bins": lambda n: px.Flow("nsf", num_bins=n),
    "num_transforms": lambda n: px.Flow("nsf", num_transforms=n),
    "context": lambda n: px.Flow("nsf", context=n),
    "noise_dim": lambda n: px.Implicit(noise_dim=n),
}


@pytest.mark.parametrize("option", SIZES)
def test_sizes_are_whole_numbers(option):
    with pytest.raises(TypeError, match=rf"{option} to be a whole number; got 2.5. Write"):
        SIZES[option](2.5)
    assert repr(SIZES[option](2.0)) == repr(SIZES[option](2))
