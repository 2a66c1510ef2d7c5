"""Low rank and flows in automatic fits, and what judges them."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.training.auto import ascend, start
from pyro_ext.training.auto.affine import Affine, elbo, fixed_draws, log_ratios
from pyro_ext.training.auto.bent import Bent, unbent
from pyro_ext.training.auto.climb import climb
from pyro_ext.training.auto.correct import Pool, weighted
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.judge import Judgement
from pyro_ext.training.auto.search import ladder
from pyro_ext.training.auto.settle import settled
from pyro_ext.training.auto.start import paths, starting_points
from pyro_ext.training.auto.verdict import Finding
from pyro_ext.training.auto.widen import widen

FLOW = px.Flow("realnvp", base=px.FullCovariance(), num_transforms=2, hidden=(8,))


def normal(covariance):
    def model():
        zero = torch.zeros(len(covariance))
        pyro.sample("z", dist.MultivariateNormal(zero, covariance))

    return model


def banana():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(a**2, 0.5))


def low_rank(dim=6, rank=2):
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn((dim, rank), generator=generator)
    scale = torch.logspace(-2, 2, dim)
    return Affine(torch.linspace(-1, 1, dim), scale, columns)


def wavy(dim=3):
    """Return a bent normal whose layers are away from the identity."""
    generator = torch.Generator().manual_seed(1)
    network = FLOW.network(dim).double()
    for param in network.parameters():
        param.data = 0.3 * torch.randn(param.shape, generator=generator)
    factor = torch.eye(dim) + 0.3 * torch.ones(dim, dim).tril()
    network.requires_grad_(requires_grad=False)
    return Bent(Affine(torch.arange(float(dim)), factor), network)


# ---------------------------------------------------------------------- low rank


def test_low_rank_normals_have_their_density_and_moments():
    q = low_rank()
    root = q.factor[:, None] * q.columns
    covariance = torch.diag(q.factor**2) + root @ root.mT
    exact = dist.MultivariateNormal(q.loc, covariance)
    noise = torch.randn((5, 6), generator=torch.Generator().manual_seed(1))
    z, log_det = q.forward(noise)
    torch.testing.assert_close(q.inverse(z)[0], noise)
    log_q = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - log_det
    torch.testing.assert_close(log_q, exact.log_prob(z))
    torch.testing.assert_close(q.sd, exact.stddev)
    eye = torch.eye(6)
    matrix = q.push(eye) - q.loc  # rows are those of Sᵀ
    torch.testing.assert_close(matrix.mT @ matrix, covariance)
    torch.testing.assert_close(q.back(eye), matrix.mT)
    full = q.full()
    torch.testing.assert_close(full.factor @ full.factor.mT, covariance)
    conditional = torch.linalg.inv(covariance).diagonal().rsqrt()
    torch.testing.assert_close(q.independent().factor, conditional)


@pytest.mark.parametrize(("dim", "rank"), [(6, 2), pytest.param(400, 10, marks=pytest.mark.slow)])
def test_low_rank_climbs_to_a_normal_of_its_kind(dim, rank):
    target = low_rank(dim, rank)
    covariance = target.full().factor @ target.full().factor.mT
    density = Density(normal(covariance), ())
    size = covariance.diagonal().sqrt()
    start_ = Affine(torch.full((dim,), 0.1) * size, 1.3 * target.independent().factor)
    q = widen(density, start_, rank, seed=0)
    found = q.full().factor @ q.full().factor.mT
    assert ((found - covariance) / size / size[:, None]).abs().max() < 0.01
    assert (q.loc / size).abs().max() < 0.01
    # The density is normalized: log p(x) is 0.
    assert elbo(density, q, fixed_draws(512, dim, 1)) > -0.01


def test_long_paths_end_at_the_mode(monkeypatch):
    monkeypatch.setattr(start, "MAX_DENSE", 3)
    covariance = torch.diag(torch.logspace(-4, 4, 5)) + 0.0
    density = Density(normal(covariance), ())
    found = paths(density, starting_points(density, 2, 0), 0)
    assert len(found) == 2
    for candidate in found:
        assert candidate.converged
        assert (candidate.end / covariance.diagonal().sqrt()).abs().max() < 0.05
        torch.testing.assert_close(candidate.q.factor, covariance.diagonal().sqrt())


def test_the_ladder_depends_on_the_dimension():
    assert ladder(1) == (px.Diagonal(),)
    assert [type(f).__name__ for f in ladder(300)] == ["Diagonal", "FullCovariance", "Flow"]
    assert [type(f).__name__ for f in ladder(301)] == ["Diagonal", "LowRank"]


# ---------------------------------------------------------------------- flows


def test_a_bent_normal_knows_its_density_and_slope():
    q = wavy()
    noise = torch.randn((4, 3), generator=torch.Generator().manual_seed(0))
    z, log_det = q.forward(noise)
    back, log_det_back = q.inverse(z)
    torch.testing.assert_close(back, noise)
    torch.testing.assert_close(log_det, log_det_back)
    for row, total in zip(noise, log_det, strict=True):
        jacobian = torch.func.jacrev(lambda e: q.forward(e.unsqueeze(0))[0].squeeze(0))(row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], total)
    density = Density(normal(torch.eye(3) * 4), ())
    value, slope = q.slope(density, noise)
    leaf = noise.clone().requires_grad_()
    moved, moved_det = q.forward(leaf)
    target = dist.MultivariateNormal(torch.zeros(3), 4 * torch.eye(3)).log_prob(moved) + moved_det
    torch.testing.assert_close(value, target.detach())
    torch.testing.assert_close(slope, torch.autograd.grad(target.sum(), leaf)[0])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flow_bends_where_a_normal_cannot(monkeypatch, seed):
    monkeypatch.setattr(ascend, "_STEPS", (400,))
    density = Density(banana, ())
    noise = fixed_draws(512, 2, 0)
    base = climb(density, Affine(torch.zeros(2), torch.eye(2)), noise)
    family = px.Flow(
        "realnvp", base=px.FullCovariance(), num_transforms=4, hidden=(32,), averaged=False
    )
    q = unbent(base, family, seed)
    assert len(list(ascend.ascend(density, q, rate=3e-3, seed=seed))) == 1
    before = elbo(density, base, noise)
    assert elbo(density, q, noise) > before / 2  # the density is normalized: log p(x) is 0
    assert not any(param.requires_grad for param in q.layers.parameters())


def test_a_flow_that_gains_nothing_is_taken_back(monkeypatch):
    monkeypatch.setattr(ascend, "_STEPS", (20,))
    density = Density(normal(torch.eye(2)), ())
    base = Affine(torch.zeros(2), torch.eye(2))
    q = unbent(base, FLOW, 0)
    assert not list(ascend.ascend(density, q, rate=3e-3, seed=0))
    noise = torch.randn(5, 2)
    torch.testing.assert_close(q.forward(noise)[0], noise)


@pytest.mark.parametrize(
    ("family", "q"),
    [
        (px.Diagonal(), Affine(torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))),
        (px.FullCovariance(), wavy().base),
        (px.LowRank(rank=2), low_rank(3)),
        (FLOW, wavy()),
    ],
    ids=["diagonal", "full", "low rank", "flow"],
)
def test_the_guide_is_what_was_found(family, q):
    density = Density(normal(torch.eye(3)), ())
    guide = settled(density, (), family, q)
    (group,) = guide.groups
    with torch.no_grad():
        posterior = group.posterior(guide.params, getattr(guide, "global_network", None))
        noise = torch.randn((4, 3), generator=torch.Generator().manual_seed(0))
        z, _ = q.forward(noise)
        expected = density.value(z) - log_ratios(density, q, noise)
        # The entropy of the noise stands for the noise's own density.
        expected = expected + 1.5 - 0.5 * noise.square().sum(-1)
        torch.testing.assert_close(posterior.log_prob(z), expected)


# ---------------------------------------------------------------------- judging


def pool_with(k_hat, num=20_000):
    z = torch.randn((num, 1), generator=torch.Generator().manual_seed(0))
    return Pool(z, torch.full((num,), 1 / num), k_hat, 0.7, 0.0)


def test_heavy_tails_make_errors_larger():
    grown = [pool_with(k).inflation for k in (-0.5, 0.2, 0.45, 0.5, 0.6, 0.69)]
    assert grown == sorted(grown)
    assert grown[0] == 1
    assert grown[1] < 1.1
    assert grown[-1] > 3
    assert pool_with(1.0).inflation == math.inf
    light, heavy = pool_with(-0.5), pool_with(0.6)
    ratio = heavy.moments(heavy.z)[2] / light.moments(light.z)[2]
    torch.testing.assert_close(ratio, torch.tensor([heavy.inflation]))


def test_draws_without_weight_may_overflow():
    pool = pool_with(0.2)
    far = torch.tensor([[math.inf], [1e300]])
    more = Pool(torch.cat([pool.z, far]), torch.cat([pool.weights, torch.zeros(2)]), 0.2, 0.7, 0.0)
    for found, expected in zip(more.moments(more.z), pool.moments(pool.z), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)  # S and the tail differ


def test_answers_are_ordered_by_checks_then_errors_then_k_hat():
    def judged(k_hat, error, *, passed):
        check = Finding(passed, "a check")
        return Judgement(pool_with(k_hat), (check,), check, error / 2, error, "").order

    orders = [
        judged(0.6, 0.01, passed=True),
        judged(0.5, 0.02, passed=False),
        judged(0.4, 0.03, passed=False),
        judged(0.8, 0.01, passed=False),
        judged(0.9, 0.01, passed=False),
    ]
    assert orders == sorted(orders)
    assert len(set(orders)) == 5


def test_errors_grow_by_what_the_tail_has_of_them():
    pool = pool_with(0.6)
    weights = torch.ones(20_000)
    weights[: pool.num_tail] = 1.5
    weights /= weights.sum()
    heavy, light = replace(pool, weights=weights), replace(pool, weights=weights, k_hat=-0.5)
    own = (weights * (pool.z[:, 0] - weights @ pool.z[:, 0])).square()
    share = own[: pool.num_tail].sum() / own.sum()
    ratio = heavy.moments(pool.z)[2] / light.moments(pool.z)[2]
    torch.testing.assert_close(ratio**2, (1 + share * (pool.inflation**2 - 1)).reshape(1))


def test_errors_cover_what_a_normal_leaves_of_a_wider_part():
    # k-hat 0.52, from a part of two per cent: most of a mean's error is not in the tail.
    wide, misses, claims = 1.5, 0, 0
    for seed in range(40):
        z = torch.randn((20_000, 1), generator=torch.Generator().manual_seed(seed)).double()
        log_ratio = 0.5 * z[:, 0] ** 2 * (1 - wide**-2)
        pool = weighted(z, (0.98 + 0.02 / wide * log_ratio.exp()).log())
        mean, sd, by_mean, by_sd = pool.moments(z)
        true = (0.98 + 0.02 * wide**2) ** 0.5
        misses += bool((mean / true).abs() > 2 * by_mean) or bool(
            (sd / true - 1).abs() > 2 * by_sd
        )
        claims += bool(torch.maximum(by_mean, by_sd) < 0.05 / 3)
    assert misses <= 10  # errors of finite variance would miss with a chance of 0.09 each
    assert claims >= 20  # 28 of 40; were the whole error inflated, 8
