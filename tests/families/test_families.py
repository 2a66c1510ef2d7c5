import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_ext as px
from pyro_ext.families.affine_normal import AffineNormal
from pyro_ext.families.family import inverse_positive, positive

FAMILIES = {
    "diagonal": px.Diagonal(),
    "triangle": px.FullCovariance(),
    "dense": px.FullCovariance(dense=True),
    "low-rank": px.LowRank(rank=2),
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
BATCHES = [(), (4,), (2, 3)]


def matrix(kind, *shape):
    """Return S: a triangle of positive diagonal, or dense with determinants of both signs."""
    dense = torch.randn(*shape) + 2 * torch.eye(shape[-1])
    if kind == "dense":
        sign = torch.ones(shape[-1])
        sign[0] = -1.0
        return dense * sign
    return dense.tril(-1) + torch.diag_embed(dense.diagonal(dim1=-2, dim2=-1).abs() + 0.1)


def reference(loc, factor):
    return MultivariateNormal(loc, factor @ factor.mT)


@pytest.mark.parametrize("kind", ["triangle", "dense"])
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("sample", [(), (7,), (2, 5)], ids=str)
def test_density_is_that_of_the_multivariate_normal(kind, dim, batch, sample):
    loc, factor = torch.randn(*batch, dim), matrix(kind, *batch, dim, dim)
    q = AffineNormal(loc, factor, triangular=kind == "triangle")
    value = torch.randn(*sample, *batch, dim)
    exact = reference(loc, factor)
    assert q.log_prob(value).shape == (*sample, *batch)
    torch.testing.assert_close(q.log_prob(value), exact.log_prob(value))
    torch.testing.assert_close(q.mean, exact.mean)
    torch.testing.assert_close(q.variance, exact.variance)
    torch.testing.assert_close(q.covariance_matrix, exact.covariance_matrix)
    torch.testing.assert_close(q.entropy(), exact.entropy())
    drawn = q.rsample(sample)
    assert drawn.shape == (*sample, *batch, dim)
    torch.testing.assert_close(q.log_prob(drawn), exact.log_prob(drawn))


def test_dense_determinants_of_both_signs_are_tested():
    assert matrix("dense", 50, 2, 2).det().sign().unique().tolist() == [-1, 1]


@pytest.mark.parametrize("kind", ["triangle", "dense"])
@pytest.mark.parametrize("loc_batch", BATCHES, ids=str)
@pytest.mark.parametrize("factor_batch", BATCHES, ids=str)
def test_loc_and_factor_broadcast(kind, loc_batch, factor_batch):
    if len({b for b in (loc_batch, factor_batch) if b}) == 2:
        loc_batch = (3,) if loc_batch == (4,) else loc_batch
        factor_batch = (3,) if factor_batch == (4,) else factor_batch
    loc, factor = torch.randn(*loc_batch, 2), matrix(kind, *factor_batch, 2, 2)
    q = AffineNormal(loc, factor, triangular=kind == "triangle")
    exact = reference(loc, factor)
    assert q.batch_shape == exact.batch_shape
    drawn = q.rsample((5,))
    assert drawn.shape == (5, *q.batch_shape, 2)
    torch.testing.assert_close(q.log_prob(drawn.detach()), exact.log_prob(drawn))
    value = torch.randn(2)
    torch.testing.assert_close(q.log_prob(value), exact.log_prob(value))


@pytest.mark.parametrize("kind", ["triangle", "dense"])
def test_expanded_particles_share_one_factor(kind):
    loc, factor = torch.randn(4, 3), matrix(kind, 4, 3, 3)
    q = AffineNormal(loc, factor, triangular=kind == "triangle").expand((6, 4))
    assert q.batch_shape == (6, 4)
    assert q.factor is factor
    assert q.loc is loc
    value = q.rsample((2,))
    assert value.shape == (2, 6, 4, 3)
    assert (value[0, 0] != value[0, 1]).all()
    exact = reference(loc, factor).log_prob(value)
    torch.testing.assert_close(q.log_prob(value), exact)
    torch.testing.assert_close(q.log_prob(value.detach()), exact)
    assert q.mean.shape == q.variance.shape == (6, 4, 3)
    assert q.entropy().shape == (6, 4)
    assert q.expand((5, 6, 4)).rsample().shape == (5, 6, 4, 3)


def grads(log_prob_of, loc, factor, noise):
    """Return gradients of a function of draw and density."""
    loc, factor = loc.clone().requires_grad_(), factor.clone().requires_grad_()
    value, log_prob = log_prob_of(loc, factor, noise)
    return torch.autograd.grad((value.sin().sum(-1) - log_prob * 0.7).sum(), (loc, factor))


@pytest.mark.parametrize("kind", ["triangle", "dense"])
@pytest.mark.parametrize("detached", [False, True])
def test_gradients_are_torchs(kind, detached):
    loc, factor = torch.randn(4, 3), matrix(kind, 4, 3, 3)

    def ours(loc, factor, seed):
        torch.manual_seed(seed)
        q = AffineNormal(loc, factor, triangular=kind == "triangle")
        value = q.rsample((5,))
        return value, q.log_prob(value.detach() if detached else value)

    def torchs(loc, factor, seed):
        torch.manual_seed(seed)
        value = loc + (factor @ torch.randn(5, 4, 3, 1)).squeeze(-1)
        at = value.detach() if detached else value
        return value, reference(loc, factor).log_prob(at)

    for mine, exact in zip(
        grads(ours, loc, factor, 3), grads(torchs, loc, factor, 3), strict=True
    ):
        if kind == "triangle":
            mine, exact = mine.tril(), exact.tril()
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("kind", ["triangle", "dense"])
def test_the_density_of_a_draw_without_gradient_has_the_gradient_of_the_score(kind):
    loc = torch.randn(3, requires_grad=True)
    factor = matrix(kind, 3, 3).requires_grad_()
    q = AffineNormal(loc, factor, triangular=kind == "triangle")
    value = q.sample((4,))
    mine = torch.autograd.grad(q.log_prob(value).sum(), (loc, factor))
    exact = torch.autograd.grad(reference(loc, factor).log_prob(value).sum(), (loc, factor))
    torch.testing.assert_close(mine[0], exact[0])
    lower = (lambda x: x.tril()) if kind == "triangle" else (lambda x: x)
    torch.testing.assert_close(lower(mine[1]), lower(exact[1]))


def test_an_older_draw_is_scored_at_its_own_place():
    q = AffineNormal(torch.zeros(2), torch.eye(2), triangular=True)
    first, second = q.rsample(), q.rsample()
    exact = reference(torch.zeros(2), torch.eye(2))
    torch.testing.assert_close(q.log_prob(first), exact.log_prob(first))
    torch.testing.assert_close(q.log_prob(second), exact.log_prob(second))


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_a_singular_matrix_is_an_error(batch):
    factor = torch.eye(2).expand(*batch, 2, 2).clone()
    factor[(1,) * len(batch)] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    q = AffineNormal(torch.zeros(2), factor, triangular=False)
    with pytest.raises(ValueError, match=r"expected a non-singular S .*dense=False"):
        q.log_prob(torch.ones(2))
    with pytest.raises(ValueError, match="non-singular"):
        q.entropy()


def test_a_singular_start_is_an_error_of_the_family():
    family = px.FullCovariance(dense=True)
    params = family.initial_params(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="non-singular"):
        family.distribution(params, 2).rsample().sum() + family.distribution(params, 2).entropy()


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


@pytest.mark.parametrize("dense", [False, True])
def test_initial_params_give_a_whole_matrix(dense):
    kind = "dense" if dense else "triangle"
    loc, factor = torch.randn(4, 3), matrix(kind, 4, 3, 3)
    family = px.FullCovariance(dense=dense)
    q = family.distribution(family.initial_params(loc, factor), 3)
    torch.testing.assert_close(q.factor, factor, rtol=1e-12, atol=1e-12)


def test_numbers_of_params():
    assert [px.Diagonal().num_params(d) for d in (1, 2, 10)] == [2, 4, 20]
    assert [px.FullCovariance().num_params(d) for d in (1, 2, 10)] == [2, 5, 65]
    assert [px.FullCovariance(dense=True).num_params(d) for d in (1, 2, 10)] == [2, 6, 110]
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


def test_low_rank_climbs_out_of_its_start():
    """A factor of exactly zero has no expected gradient: the start must not be one."""
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    target = px.families.affine_normal.AffineNormal(
        torch.zeros(3), torch.linalg.cholesky(covariance), triangular=True
    )

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


@EVERY_FAMILY
def test_extreme_params_stay_finite(family):
    for raw in (-1e3, 1e3):
        params = torch.full((family.num_params(1),), raw)
        q = family.distribution(params, 1)
        assert q.variance.min() > 0
        assert q.log_prob(q.mean).isfinite()


def test_families_are_values():
    assert px.Diagonal() == px.Diagonal()
    assert px.FullCovariance() != px.FullCovariance(dense=True)
    assert {px.Diagonal(), px.Diagonal()} == {px.Diagonal()}
