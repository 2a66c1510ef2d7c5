"""The bounds as functions of log weights alone."""

import math

import pytest
import reference
import torch
from torch import Tensor

from pyro_ext import bounds

SHAPES = [(1,), (7,), (1, 3), (7, 3), (5, 2, 3)]


def draws(*shape: int) -> Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_bound_is_brute_force(name: str, shape: tuple[int, ...]) -> None:
    log_w = draws(*shape)
    got = getattr(bounds, name)(log_w)
    assert got.shape == shape[1:]
    torch.testing.assert_close(got, getattr(reference, name)(log_w), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_constant_weights_give_that_constant(name: str) -> None:
    log_w = torch.full((7, 3), -1234.5)
    torch.testing.assert_close(getattr(bounds, name)(log_w), log_w[0], rtol=0, atol=1e-10)


def test_one_particle_makes_all_bounds_equal() -> None:
    log_w = draws(1, 4)
    assert torch.equal(bounds.iwae(log_w), bounds.elbo(log_w))


@pytest.mark.parametrize("offset", [1e4, -1e4], ids=["large", "small"])
def test_iwae_neither_overflows_nor_underflows(offset: float) -> None:
    log_w = draws(5, 3)
    expected = reference.iwae(log_w) + offset
    torch.testing.assert_close(bounds.iwae(log_w + offset), expected, rtol=0, atol=1e-10)


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
