"""The bounds as functions of log weights alone."""

import math
from collections.abc import Callable

import pytest
import reference
import torch
from cases import BOUNDS
from torch import Tensor
from torch.distributions import Normal

from helpers import assert_at_most
from pyro_ext import bounds

SHAPES = [(1,), (7,), (1, 3), (7, 3), (5, 2, 3)]


def draws(*shape: int) -> Tensor:
    return torch.randn(shape)


def test_every_public_bound_is_in_the_battery() -> None:
    assert {name.partition("(")[0] for name in BOUNDS} == set(bounds.__all__)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, id=f"{name}-{shape}")
        for name in BOUNDS
        for shape in SHAPES
        if name != "jackknife" or shape[0] > 1  # which needs two particles
    ],
)
def test_bound_is_brute_force(name: str, shape: tuple[int, ...]) -> None:
    log_w = draws(*shape)
    bound, expected = BOUNDS[name]
    got = bound(log_w)
    assert got.shape == shape[1:]
    torch.testing.assert_close(got, expected(log_w), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", BOUNDS)
def test_constant_weights_give_that_constant(name: str) -> None:
    log_w = torch.full((7, 3), -1234.5)
    torch.testing.assert_close(BOUNDS[name][0](log_w), log_w[0], rtol=0, atol=1e-9)


def test_one_particle_makes_all_bounds_equal() -> None:
    log_w = draws(1, 4)
    for name, (bound, _) in BOUNDS.items():
        if name != "jackknife":
            torch.testing.assert_close(bound(log_w), log_w[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("offset", [1e4, -1e4], ids=["large", "small"])
@pytest.mark.parametrize("name", BOUNDS)
def test_bound_neither_overflows_nor_underflows(name: str, offset: float) -> None:
    log_w = draws(5, 3)
    bound, expected = BOUNDS[name]
    torch.testing.assert_close(bound(log_w + offset), expected(log_w) + offset, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", BOUNDS)
def test_gradient_of_a_bound_is_its_brute_force(name: str) -> None:
    """It sums to one: adding a constant to all log weights adds it to the bound."""
    log_w = draws(6, 2).requires_grad_()
    got, expected = (torch.autograd.grad(bound(log_w).sum(), log_w)[0] for bound in BOUNDS[name])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.sum(0), torch.ones(2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("particles", [2, 3, 10])
def test_iwae_grows_with_particles_on_every_draw(particles: int) -> None:
    """L_{K-1}, averaged over which draw is left out, is at most L_K: it holds without chance."""
    log_w = 3 * draws(particles, 100)
    without = torch.stack(
        [bounds.iwae(torch.cat([log_w[:left], log_w[left + 1 :]])) for left in range(particles)]
    ).mean(0)
    assert (without <= bounds.iwae(log_w) + 1e-12).all()
    assert (bounds.elbo(log_w) <= without + 1e-12).all()


def test_a_particle_without_weight_costs_only_its_place() -> None:
    log_w = torch.tensor([0.0, -torch.inf])
    assert bounds.iwae(log_w).item() == pytest.approx(-math.log(2))


def test_gradient_of_iwae_is_the_normalized_weights() -> None:
    log_w = draws(6, 2).requires_grad_()
    bounds.iwae(log_w).sum().backward()
    assert log_w.grad is not None
    torch.testing.assert_close(log_w.grad, torch.softmax(log_w.detach(), 0))


# ---------------------------------------------------------------------- Rényi about the ELBO


@pytest.mark.parametrize("side", [-1, 1], ids=["below one", "above one"])
def test_renyi_is_continuous_where_its_formula_changes(side: int) -> None:
    """Both sides of |1 - alpha| = 1e-3, value and gradient: they differ by what alpha does."""
    log_w = (3 * draws(6, 50)).requires_grad_()
    values, grads = [], []
    for distance in (1e-3 - 1e-9, 1e-3 + 1e-9):
        value = bounds.renyi(log_w, 1 + side * distance)
        values.append(value.detach())
        grads.append(torch.autograd.grad(value.sum(), log_w)[0])
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("alpha", [1 - 1e-6, 1 + 1e-6, 1 - 1e-12, 1 + 1e-12, 1.0])
def test_renyi_joins_the_elbo(alpha: float) -> None:
    """To first order it is the ELBO plus (1 - alpha) / 2 times the variance of log w."""
    log_w = (3 * draws(6, 50)).requires_grad_()
    value = bounds.renyi(log_w, alpha)
    variance = log_w.var(0, correction=0)
    expected = bounds.elbo(log_w) + (1 - alpha) / 2 * variance
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
    grad = torch.autograd.grad(value.sum(), log_w)[0]
    wanted = torch.autograd.grad(expected.sum(), log_w)[0]
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-9)


def test_renyi_falls_with_alpha() -> None:
    log_w = 3 * draws(6, 50)
    orders = [-3.0, -1.0, 0.0, 0.5, 0.9989, 0.9991, 1.0, 1.0009, 1.0011, 2.0]
    values = torch.stack([bounds.renyi(log_w, alpha) for alpha in orders])
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize("alpha", [0.99, 0.9999])
def test_renyi_near_the_elbo_with_a_particle_without_weight(alpha: float) -> None:
    log_w = torch.tensor([0.0, -torch.inf])
    expected = -math.log(2) / (1 - alpha)
    assert bounds.renyi(log_w, alpha).item() == pytest.approx(expected)
    assert bounds.renyi(log_w, 2 - alpha).item() == -torch.inf
    assert bounds.renyi(log_w, 1.0).item() == -torch.inf


# ---------------------------------------------------------------------- around the evidence


def gaussian_log_weights(*shape: int) -> Tensor:
    """Weights of p = N(0, 1) under q = N(0.3, 1.3²): log p(x) = 0, and E w² is finite."""
    z = 0.3 + 1.3 * draws(*shape)
    return reference.log_normal(z, 0.0, 1.0) - reference.log_normal(z, 0.3, 1.3)


@pytest.mark.parametrize("particles", [1, 2, 5])
def test_bounds_enclose_the_evidence(particles: int) -> None:
    """L_K <= L_{K+1} <= log p(x), and the upper bound above, all of the same draws.

    The differences are paired, and each is also the other way round: significant, not zero.
    """
    log_w = gaussian_log_weights(particles + 1, 20_000)
    fewer, more = bounds.iwae(log_w[:-1]), bounds.iwae(log_w)
    upper = bounds.cubo(gaussian_log_weights(500, 2_000))
    assert_at_most(fewer - more, 0.0)
    assert_at_most(more, 0.0)
    assert_at_most(-upper, 0.0)
    for wrong in (more - fewer, -more, upper):
        with pytest.raises(AssertionError, match="expected mean <="):
            assert_at_most(wrong, 0.0)


def test_cubo_falls_on_the_chi_bound() -> None:
    """(1/2) log E w² in closed form; a single particle is the ELBO, far below."""
    eps, weights = reference.gauss_hermite(120)
    z = 0.3 + 1.3 * eps
    log_w = reference.log_normal(z, 0.0, 1.0) - reference.log_normal(z, 0.3, 1.3)
    exact = (weights * (2 * log_w).exp()).sum().log() / 2
    many = bounds.cubo(gaussian_log_weights(20_000, 50))
    assert many.mean().item() == pytest.approx(exact.item(), abs=2e-3)
    assert_at_most(bounds.cubo(gaussian_log_weights(1, 20_000)), 0.0)


def coin(particles: int) -> tuple[Tensor, Tensor]:
    """All outcomes of K draws with w = 2 or 1/2, each with chance 1/2: (probability, log w)."""
    heads = torch.arange(particles + 1)
    total = torch.tensor(float(particles))
    log_prob = (
        torch.lgamma(total + 1) - torch.lgamma(heads + 1.0) - torch.lgamma(total - heads + 1)
    ) - particles * math.log(2)
    rows = torch.arange(particles)[:, None] < heads
    return log_prob.exp(), torch.where(rows, math.log(2), -math.log(2))


def test_bias_of_the_jackknife_is_of_second_order() -> None:
    """Exactly, over all outcomes: the evidence is log 5/4, K times the draws leave 1/K² of it."""

    def bias(bound: Callable[[Tensor], Tensor], particles: int) -> float:
        prob, log_w = coin(particles)
        return abs(float((prob * bound(log_w)).sum()) - math.log(1.25))

    for bound, order in ((bounds.iwae, 1), (bounds.jackknife, 2)):
        rate = math.log(bias(bound, 50) / bias(bound, 200)) / math.log(4)
        assert rate == pytest.approx(order, abs=0.05)
    assert bias(bounds.jackknife, 50) < bias(bounds.iwae, 50) / 50


# ---------------------------------------------------------------------- bad input


def test_arguments_of_bounds() -> None:
    log_w = draws(3)
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"ciwae: expected beta in \[0, 1\]; got .*Write"):
            bounds.ciwae(log_w, beta)
    for order in (0.9, math.nan):
        with pytest.raises(ValueError, match=r"cubo: expected order >= 1; got .*Write: order=2"):
            bounds.cubo(log_w, order)
    with pytest.raises(ValueError, match=r"jackknife: expected at least two.*got 1.*Write"):
        bounds.jackknife(log_w[:1])


@pytest.mark.parametrize("sd", [1.0, 1.5, 2.0, 3.0])
def test_the_jackknife_is_no_objective_for_a_guide(sd: float) -> None:
    """Exactly, by quadrature: it exceeds the evidence where q is wide, the more the wider.

    z ~ N(0, 1), x ~ N(z, 1) at x = 1, two particles. A guide that climbs it runs away, which is
    why no test trains a guide with it; the bound that it corrects stays below the evidence.
    """
    x = torch.tensor(1.0)
    evidence = Normal(0.0, 2**0.5).log_prob(x)

    def expected(bound: Callable[[Tensor], Tensor], sd: float) -> Tensor:
        nodes, mass = reference.gauss_hermite(160)
        z = x / 2 + sd * nodes
        log_w = Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(x)
        log_w = log_w - Normal(x / 2, sd).log_prob(z)
        pairs = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w[None, :]))
        both = mass[:, None] * mass[None, :]
        return (both / both.sum() * bound(pairs)).sum()

    assert expected(bounds.jackknife, sd) > evidence + 0.04
    assert expected(bounds.jackknife, 2 * sd) > expected(bounds.jackknife, sd)
    assert expected(bounds.iwae, sd) < evidence


# ---------------------------------------------------------------------- strata

COUNTS = torch.tensor([[2, 1, 1, 0], [3, 0, 1, 0], [1, 1, 1, 1]]).T


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1 + 1e-5, 1 - 1e-5, -1.0])
def test_strata_count_particles_in_renyi(alpha: float) -> None:
    log_w, log_strata = 3 * draws(4, 3), COUNTS.double().log()
    got = bounds.renyi(log_w, alpha, log_strata=log_strata)
    torch.testing.assert_close(got, repeated(lambda w: bounds.renyi(w, alpha), log_w))


@pytest.mark.parametrize("name", ["elbo", "iwae", "ciwae", "cubo"])
def test_strata_count_particles(name: str) -> None:
    """A particle that counts twice is two equal particles."""
    log_w, log_strata = 3 * draws(4, 3), COUNTS.double().log()
    options = {"ciwae": {"beta": 0.3}, "cubo": {"order": 3.0}}.get(name, {})
    bound = getattr(bounds, name)
    got = bound(log_w, **options, log_strata=log_strata)
    torch.testing.assert_close(got, repeated(lambda w: bound(w, **options), log_w))


def repeated(bound: Callable[[Tensor], Tensor], log_w: Tensor) -> Tensor:
    """The bound of each column with its particles repeated."""
    columns = zip(log_w.T, COUNTS.T, strict=True)
    return torch.stack([bound(column.repeat_interleave(count)) for column, count in columns])


@pytest.mark.parametrize("alpha", [1 - 1e-3 - 1e-9, 1 - 1e-3 + 1e-9])
def test_renyi_with_strata_that_do_not_add_up(alpha: float) -> None:
    """Where strata of two sites cross, the counts of K particles add up to K on average only."""
    log_w, log_strata = 3 * draws(4, 50), draws(4, 50)
    expected = reference.iwae((1 - alpha) * log_w + log_strata) / (1 - alpha)
    torch.testing.assert_close(bounds.renyi(log_w, alpha, log_strata=log_strata), expected)
