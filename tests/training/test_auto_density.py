"""The log density at many points, and the optimizers on it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.training.auto.adapt import matched, split
from pyro_ext.training.auto.affine import Affine, elbo, fixed_draws
from pyro_ext.training.auto.climb import climb
from pyro_ext.training.auto.correct import Part, Pool, defensive, draw_pool
from pyro_ext.training.auto.density import Density, Unfit
from pyro_ext.training.auto.drift import drift
from pyro_ext.training.auto.lbfgs import maximize
from pyro_ext.training.auto.start import _inverse_root, _lower
from tests.helpers import assert_mean

X = torch.linspace(-1.0, 2.0, 6).reshape(3, 2)
Y = torch.tensor([0.5, 1.0, -0.3])


def broadcasting(x, y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        offset = pyro.sample("offset", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal((w * x).sum(-1) + offset, 1.0), obs=y)


def mapped(x, y):
    """``x @ w`` fails with points as a plate: it takes one vector."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        offset = pyro.sample("offset", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(torch.mv(x, w) + offset, 1.0), obs=y)


def by_point(x, y):
    """Control flow on a value: neither a plate nor vmap can do it."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mean = torch.mv(x, w) if scale.item() > 0 else x[:, 0]
    with pyro.plate("data", len(x)):
        offset = pyro.sample("offset", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(mean + offset, 1.0), obs=y)


def expected(z):
    log_scale, w, offset = z[0], z[1:3], z[3:]
    scale = log_scale.exp()
    total = dist.LogNormal(0.0, 1.0).log_prob(scale) + log_scale
    total = total + dist.Normal(0.0, 1.0).log_prob(w).sum()
    total = total + dist.Normal(0.0, scale).log_prob(offset).sum()
    return total + dist.Normal(X @ w + offset, 1.0).log_prob(Y).sum()


@pytest.mark.parametrize("model", [broadcasting, mapped, by_point])
def test_density_gradient_and_hessian(model):
    density = Density(model, (X, Y))
    z = torch.randn((4, 6), generator=torch.Generator().manual_seed(0))
    value, grad = density.value_and_grad(z)
    torch.testing.assert_close(value, torch.stack([expected(row) for row in z]))
    torch.testing.assert_close(density.value(z), value)
    hessian = density.hessian(z)
    for row, g, h in zip(z, grad, hessian, strict=True):
        torch.testing.assert_close(g, torch.func.grad(expected)(row))
        torch.testing.assert_close(h, torch.autograd.functional.hessian(expected, row))
    assert (density.num_gradients, density.num_values) == (4 + 3 * 4 * 6, 4)
    latents = density.latents(z)
    assert latents["scale"].shape == (4,)
    torch.testing.assert_close(latents["offset"], z[:, 3:])


def test_ways_are_those_that_the_models_ask_for():
    ways = [Density(m, (X, Y))._evaluate for m in (broadcasting, mapped, by_point)]
    assert ways[0].__name__ == "_plates"
    assert ways[1].__name__ == "_single"
    assert ways[2].__name__ == "<lambda>"


def test_a_batch_dim_in_no_plate_is_named():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"site 'y': .*got shape \(3,\).*Write: \.to_event\(1\)"):
        Density(model, (Y,))


def test_a_density_that_is_drawn_is_none():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean + torch.randn(len(y)), 1.0), obs=y)

    with pytest.raises(Unfit, match=r"one density at each point.*Write: model\.eval\(\)") as error:
        Density(model, (Y,))
    assert error.value.why.startswith("its density is another at each call")


def test_a_point_that_cannot_be_factorized_takes_no_other_with_it():
    def model():
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))[..., None, None]
        off = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        covariance = torch.eye(2) + rho * off
        zero = torch.zeros(2)
        pyro.sample("y", dist.MultivariateNormal(zero, covariance), obs=zero)

    density = Density(model, ())
    value, grad = density.value_and_grad(torch.tensor([[0.1], [1.5], [0.2]]))
    assert value[1] == -math.inf
    assert grad[1] == 0
    assert value[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("num", "dim"), [(64, 3), (256, 40)])
def test_fixed_draws_have_exact_moments(num, dim):
    noise = fixed_draws(num, dim, 0)
    torch.testing.assert_close(noise.mean(0), torch.zeros(dim), rtol=0, atol=1e-12)
    torch.testing.assert_close(noise.mT @ noise / num, torch.eye(dim), rtol=0, atol=1e-12)


def test_affine_maps_are_inverses():
    factor = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    for q in (Affine(torch.ones(2), factor), Affine(torch.ones(2), factor.diagonal())):
        noise = torch.randn(5, 2)
        torch.testing.assert_close(q.pull(q.push(noise)), noise)
        full = q.full()
        normal = dist.MultivariateNormal(full.loc, scale_tril=full.factor)
        torch.testing.assert_close(Part(q, math.inf, 2).log_prob(noise), normal.log_prob(noise))
        torch.testing.assert_close(q.sd, normal.variance.sqrt())
        student = dist.MultivariateStudentT(torch.tensor(5.0), full.loc, full.factor)
        torch.testing.assert_close(Part(q, 5.0, 2).log_prob(noise), student.log_prob(noise))


def test_climbing_reaches_the_top_of_the_sample_average():
    density = Density(broadcasting, (X, Y))
    noise = fixed_draws(256, 6, 1)
    q = climb(density, Affine(torch.zeros(6), 0.1 * torch.eye(6)), noise)
    best = elbo(density, q, noise)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        turn = torch.eye(6) + 1e-3 * torch.randn((6, 6), generator=generator).tril()
        loc = q.loc + 1e-3 * q.factor @ torch.randn(6, generator=generator)
        assert elbo(density, Affine(loc, q.factor @ turn), noise) < best


def test_lbfgs_finds_the_top_of_rosenbrocks_valley():
    def valley(x):
        a, b = x[:-1], x[1:]
        value = -(100 * (b - a**2) ** 2 + (1 - a) ** 2).sum()
        return value, torch.func.grad(
            lambda v: -(100 * (v[1:] - v[:-1] ** 2) ** 2 + (1 - v[:-1]) ** 2).sum()
        )(x)

    x, slope, _ = maximize(valley, torch.full((4,), -1.0), 500, 1e-8)
    torch.testing.assert_close(x, torch.ones(4), rtol=0, atol=1e-6)
    assert slope <= 1e-6


def test_lbfgs_stays_where_the_function_is_finite():
    def barrier(x):
        inside = x[0] > 0
        value = (x.log() - x).sum() if inside else torch.tensor(-math.inf)
        return value, 1 / x - 1 if inside else torch.zeros(1)

    x, _, _ = maximize(barrier, torch.tensor([20.0]), 100, 1e-10)
    torch.testing.assert_close(x, torch.ones(1))


def test_curvature_is_scaled_and_made_positive():
    hessian = torch.tensor([[-4e8, 1e4], [1e4, 1.0]])
    root = _inverse_root(hessian.unsqueeze(0))[0]
    values = torch.linalg.eigvals(root.mT @ hessian @ root).real
    torch.testing.assert_close(values.abs(), torch.ones(2))
    lower = _lower(root)
    torch.testing.assert_close(lower @ lower.mT, root @ root.mT)
    assert (lower.diagonal() > 0).all()
    assert torch.equal(lower, lower.tril())


# ---------------------------------------------------------------------- correction


def test_weights_recover_moments_and_evidence():
    """A target of log evidence 1 with mean 2 and sd 3, from a proposal that is off."""

    def model():
        z = pyro.sample("z", dist.Normal(2.0, 3.0))
        pyro.factor("one", 1.0 + 0 * z)

    density = Density(model, ())
    q = Affine(torch.tensor([0.0]), torch.tensor([[2.5]]))
    pools = [
        draw_pool(density, defensive(q, 1), 4000, torch.Generator().manual_seed(seed))
        for seed in range(30)
    ]
    means, sds, by_mean, by_sd = (
        torch.stack(parts) for parts in zip(*(p.moments(p.z) for p in pools), strict=True)
    )
    assert_mean(means, 2.0)
    assert_mean(sds, 3.0)
    assert_mean(torch.tensor([pool.log_evidence for pool in pools]), 1.0)
    # Standard errors tell the spread over pools, which 30 of them know to about 13 %.
    assert by_mean.mean() * 3 == pytest.approx(means.std(), rel=0.5)
    assert by_sd.mean() * 3 == pytest.approx(sds.std(), rel=0.5)


def test_resampling_gives_each_draw_its_weight():
    weights = torch.tensor([0.5, 0.25, 0.2, 0.05])
    pool = Pool(torch.arange(4.0).unsqueeze(-1), weights, 0.0, 0.7, 0.0)
    drawn = pool.resample(1000, torch.Generator().manual_seed(0)).flatten()
    counts = torch.bincount(drawn.long(), minlength=4)
    assert (counts - 1000 * weights).abs().max() <= 1
    assert pool.effective == pytest.approx(1 / (0.25 + 0.0625 + 0.04 + 0.0025))


def test_a_matched_part_has_the_moments_of_the_pool():
    z = torch.randn((500, 2), generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 9.0]
    )
    pool = Pool(z, torch.full((500,), 1 / 500), 0.0, 0.7, 0.0)
    (part,) = matched(pool)
    covariance = part.q.factor @ part.q.factor.mT * 5 / 3  # that of a Student-t with 5 degrees
    torch.testing.assert_close(part.q.loc, z.mean(0))
    torch.testing.assert_close(covariance, torch.cov(z.mT, correction=0))


@pytest.mark.parametrize(
    ("shift", "stretch", "found"), [(0, 1, False), (1, 1, True), (0, 2, True)]
)
def test_draws_that_are_off_leave_their_place(shift, stretch, found):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([4]).to_event(1))

    density = Density(model, ())
    generator = torch.Generator().manual_seed(0)
    z = shift + stretch * torch.randn((1000, 4), generator=generator)
    pool = Pool(z, torch.full((1000,), 1 / 1000), 0.0, 0.7, 0.0)
    q = Affine(torch.zeros(4), torch.eye(4))
    assert drift(density, q, pool, 1000, 0.05, generator).found == found


def test_slices_follow_a_funnel():
    """Along its scale the other coordinate's spread differs from part to part."""
    generator = torch.Generator().manual_seed(0)
    v = -torch.rand((4000, 1), generator=generator).log()  # skewed
    x = v.exp() * torch.randn((4000, 1), generator=generator)
    pool = Pool(torch.cat([v, x], 1), torch.full((4000,), 1 / 4000), 0.0, 0.7, 0.0)
    parts = sorted(split(pool), key=lambda part: part.q.loc[0])
    spread = [float(part.q.sd[1]) for part in parts]
    assert spread == sorted(spread)
    assert spread[-1] > 5 * spread[0]
    few = Pool(pool.z[:30], torch.full((30,), 1 / 30), 0.0, 0.7, 0.0)
    assert split(few) == ()
