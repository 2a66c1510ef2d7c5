import math

import pytest
import torch

import pyro_ext as px
from guides.energies import GUIDES
from helpers import assert_mean
from models.energies import (
    BANANA_SD,
    ENERGIES,
    FUNNEL_SD,
    log_normalizer,
    sample_banana,
    sample_funnel,
)

EVERY_ENERGY = pytest.mark.parametrize("name", ENERGIES)


@EVERY_ENERGY
def test_the_normalizer_does_not_depend_on_the_grid(name: str) -> None:
    found = log_normalizer(ENERGIES[name], 700)
    assert found == pytest.approx(log_normalizer(ENERGIES[name], 1000), abs=3e-3)


@EVERY_ENERGY
def test_nothing_lies_outside_the_box(name: str) -> None:
    energy = ENERGIES[name]
    points, area = energy.grid(700)
    mass = (energy.log_density(points) - log_normalizer(energy, 700)).exp() * area
    edge = mass[0].sum() + mass[-1].sum() + mass[:, 0].sum() + mass[:, -1].sum()
    assert float(edge) < 1e-4


@EVERY_ENERGY
def test_importance_sampling_finds_the_normalizer(name: str) -> None:
    """From a wide normal: the site is flat, and the energy alone is the log density."""
    energy = ENERGIES[name]
    proposal = torch.distributions.MultivariateNormal(
        torch.tensor([0.0, 3.0 if name == "banana" else 0.0]), torch.tensor([16.0, 49.0]).diag()
    )
    z = proposal.sample((50_000,))
    log_w = energy.log_density(z) - proposal.log_prob(z)
    if name != "funnel":  # whose wide end no normal covers
        assert_mean(log_w.exp(), math.exp(log_normalizer(energy)))
    trace = px.log_weights(energy, px.AutoJoint(energy), num_particles=3, joint=True)
    assert trace.terms[0].log_w.isfinite().all()


@pytest.mark.parametrize("name", ["funnel", "banana"])
def test_densities_are_normalized(name: str) -> None:
    assert log_normalizer(ENERGIES[name], 1000) == pytest.approx(0.0, abs=3e-3)


def test_samples_have_the_moments_of_their_density() -> None:
    funnel, banana = sample_funnel(20_000), sample_banana(20_000)
    assert_mean(funnel[:, 0] ** 2, FUNNEL_SD**2)
    assert_mean((funnel[:, 1] / (funnel[:, 0] / 2).exp()) ** 2, 1.0)
    assert_mean(banana, torch.zeros(2))
    assert_mean(banana[:, 0] ** 2, BANANA_SD**2)
    entropy = sum(0.5 * math.log(2 * math.pi * math.e) + math.log(s) for s in (BANANA_SD, 1.0))
    assert_mean(-ENERGIES["banana"].log_density(banana), entropy)


@pytest.mark.parametrize("kind", GUIDES)
def test_guides_start_at_a_normal(kind: str) -> None:
    energy = ENERGIES["banana"]
    guide = GUIDES[kind](energy)
    draws = guide.sample_posterior(5000)["z"]
    assert_mean((draws - draws.mean(0)).square(), torch.ones(2))
