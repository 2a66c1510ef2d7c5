from types import SimpleNamespace

import pytest
import torch
from torch.distributions import MultivariateNormal, TransformedDistribution

import pyro_ext as px
from pyro_ext.families.affine import Affine
from pyro_ext.families.affine_normal import AffineNormal
from pyro_ext.families.householder import Reflected
from pyro_ext.families.linear_map import Dense, LowerUpper, Scale, Triangle

BATCHES = [(), (4,), (2, 3)]


def positive(*shape):
    return torch.rand(*shape) + 0.2


def scale(*shape):
    diagonal = positive(*shape)
    return SimpleNamespace(parts=(diagonal,), build=Scale, matrix=torch.diag_embed)


def triangle(*shape):
    dense = torch.randn(*shape, shape[-1])
    factor = dense.tril(-1) + torch.diag_embed(positive(*shape))
    return SimpleNamespace(parts=(factor,), build=lambda s: Triangle(s.tril()), matrix=torch.tril)


def dense(*shape):
    """Determinants of both signs."""
    sign = torch.ones(shape[-1])
    sign[0] = -1.0
    factor = (torch.randn(*shape, shape[-1]) + 2 * torch.eye(shape[-1])) * sign
    return SimpleNamespace(parts=(factor,), build=Dense, matrix=lambda s: s)


def lu(*shape):
    eye = torch.eye(shape[-1])
    lower = torch.randn(*shape, shape[-1]).tril(-1) + eye
    upper = torch.randn(*shape, shape[-1]).triu(1) + eye

    def unit(lower, upper):
        return lower.tril(-1) + eye, upper.triu(1) + eye

    def matrix(s, lower, upper):
        lower, upper = unit(lower, upper)
        return torch.diag_embed(s) @ lower @ upper

    return SimpleNamespace(
        parts=(positive(*shape), lower, upper),
        build=lambda s, *triangles: LowerUpper(s, *unit(*triangles)),
        matrix=matrix,
    )


def householder(*shape):
    vectors = torch.randn(*shape[:-1], 3, shape[-1])

    def matrix(s, vectors):
        total = torch.diag_embed(s)
        for v in vectors.unbind(-2):
            outer = v.unsqueeze(-1) * v.unsqueeze(-2)
            norm = v.square().sum(-1)[..., None, None]
            total = (torch.eye(shape[-1]) - 2 * outer / norm) @ total
        return total

    return SimpleNamespace(parts=(positive(*shape), vectors), build=Reflected, matrix=matrix)


FORMS = {f.__name__: f for f in (scale, triangle, dense, lu, householder)}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def normal(loc, case):
    return AffineNormal(loc, case.build(*case.parts))


def reference(loc, case):
    factor = case.matrix(*case.parts)
    return MultivariateNormal(loc, factor @ factor.mT)


@EVERY_FORM
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("sample", [(), (7,), (2, 5)], ids=str)
def test_density_is_that_of_the_multivariate_normal(form, dim, batch, sample):
    loc, case = torch.randn(*batch, dim), form(*batch, dim)
    q, exact = normal(loc, case), reference(loc, case)
    value = torch.randn(*sample, *batch, dim)
    assert q.batch_shape == batch
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
    assert dense(50, 2).parts[0].det().sign().unique().tolist() == [-1, 1]


@EVERY_FORM
def test_the_transform_is_the_affine_map(form):
    loc, case = torch.randn(4, 3), form(4, 3)
    matrix = case.matrix(*case.parts)
    transform = Affine(loc, case.build(*case.parts))
    torch.testing.assert_close(case.build(*case.parts).matrix(), matrix)
    noise = torch.randn(7, 4, 3)
    z = transform(noise)
    torch.testing.assert_close(z, loc + (matrix @ noise.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(transform.inv(z), noise)
    log_det = torch.linalg.slogdet(matrix)[1]
    torch.testing.assert_close(transform.log_abs_det_jacobian(noise, z), log_det.expand(7, 4))
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(z, noise), -log_det.expand(7, 4))


@EVERY_FORM
def test_the_transform_makes_torchs_transformed_distribution(form):
    loc, case = torch.randn(4, 3), form(4, 3)
    unit = torch.distributions.Normal(torch.zeros(3), 1.0)
    noise = torch.distributions.Independent(unit, 1)
    transformed = TransformedDistribution(noise, [Affine(loc, case.build(*case.parts))])
    assert transformed.batch_shape == (4,)
    value = transformed.sample()
    torch.testing.assert_close(transformed.log_prob(value), reference(loc, case).log_prob(value))


@EVERY_FORM
@pytest.mark.parametrize("loc_batch", BATCHES, ids=str)
@pytest.mark.parametrize("factor_batch", BATCHES, ids=str)
def test_loc_and_factor_broadcast(form, loc_batch, factor_batch):
    if len({b for b in (loc_batch, factor_batch) if b}) == 2:
        loc_batch = (3,) if loc_batch == (4,) else loc_batch
        factor_batch = (3,) if factor_batch == (4,) else factor_batch
    loc, case = torch.randn(*loc_batch, 2), form(*factor_batch, 2)
    q, exact = normal(loc, case), reference(loc, case)
    assert q.batch_shape == exact.batch_shape
    drawn = q.rsample((5,))
    assert drawn.shape == (5, *q.batch_shape, 2)
    torch.testing.assert_close(q.log_prob(drawn.detach()), exact.log_prob(drawn))
    value = torch.randn(2)
    torch.testing.assert_close(q.log_prob(value), exact.log_prob(value))


@EVERY_FORM
def test_expanded_particles_share_one_factor(form):
    loc, case = torch.randn(4, 3), form(4, 3)
    linear = case.build(*case.parts)
    q = AffineNormal(loc, linear).expand((6, 4))
    assert q.batch_shape == (6, 4)
    assert q.linear is linear
    assert q.loc is loc
    value = q.rsample((2,))
    assert value.shape == (2, 6, 4, 3)
    assert (value[0, 0] != value[0, 1]).all()
    exact = reference(loc, case).log_prob(value)
    torch.testing.assert_close(q.log_prob(value), exact)
    torch.testing.assert_close(q.log_prob(value.detach()), exact)
    assert q.mean.shape == q.variance.shape == (6, 4, 3)
    assert q.entropy().shape == (6, 4)
    assert q.expand((5, 6, 4)).rsample().shape == (5, 6, 4, 3)


@EVERY_FORM
@pytest.mark.parametrize("detached", [False, True])
def test_gradients_are_torchs(form, detached):
    loc, case = torch.randn(4, 3), form(4, 3)
    noise = torch.randn(5, 4, 3)

    def gradients(log_prob):
        leaves = [t.clone().requires_grad_() for t in (loc, *case.parts)]
        mine = SimpleNamespace(**{**vars(case), "parts": leaves[1:]})
        matrix = case.matrix(*mine.parts)
        value = leaves[0] + (matrix @ noise.unsqueeze(-1)).squeeze(-1)
        log_q = log_prob(leaves[0], mine).log_prob(value.detach() if detached else value)
        return torch.autograd.grad((value.sin().sum(-1) - log_q * 0.7).sum(), leaves)

    for mine, exact in zip(gradients(normal), gradients(reference), strict=True):
        torch.testing.assert_close(mine, exact)


@EVERY_FORM
def test_draws_are_reparameterized(form):
    case = form(3)
    leaves = [t.clone().requires_grad_() for t in case.parts]
    torch.manual_seed(0)
    value = AffineNormal(torch.zeros(3), case.build(*leaves)).rsample((5,))
    torch.manual_seed(0)
    noise = torch.randn(5, 3)
    exact = (case.matrix(*leaves) @ noise.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(value, exact)
    weight = torch.randn(5, 3)
    mine = torch.autograd.grad((value * weight).sum(), leaves)
    for one, other in zip(mine, torch.autograd.grad((exact * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_an_older_draw_is_scored_at_its_own_place():
    q = AffineNormal(torch.zeros(2), Triangle(torch.eye(2)))
    first, second = q.rsample(), q.rsample()
    exact = MultivariateNormal(torch.zeros(2), torch.eye(2))
    torch.testing.assert_close(q.log_prob(first), exact.log_prob(first))
    torch.testing.assert_close(q.log_prob(second), exact.log_prob(second))


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_a_singular_matrix_is_an_error(batch):
    factor = torch.eye(2).expand(*batch, 2, 2).clone()
    factor[(1,) * len(batch)] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    q = AffineNormal(torch.zeros(2), Dense(factor))
    with pytest.raises(ValueError, match=r"a non-singular S .*FullCovariance\('lu'\)"):
        q.log_prob(torch.ones(2))
    with pytest.raises(ValueError, match="non-singular"):
        q.entropy()


def test_a_singular_start_is_an_error_of_the_family():
    family = px.FullCovariance("dense")
    params = family.initial_params(torch.zeros(2), torch.zeros(2))
    q = family.distribution(params, 2)
    assert q.rsample().shape == (2,)
    with pytest.raises(ValueError, match="non-singular"):
        q.entropy()
