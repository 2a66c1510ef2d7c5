"""What each family converges to on a normal target, where the optimum has a closed form."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_ext as px

LOC = torch.tensor([1.0, -2.0, 0.5])
COVARIANCE = torch.tensor([[1.0, 0.7, -0.3], [0.7, 2.0, 0.4], [-0.3, 0.4, 0.5]])


def model():
    pyro.sample("z", dist.MultivariateNormal(LOC, COVARIANCE))


CONTAINS_THE_TARGET = {
    "triangular": px.FullCovariance(),
    "dense": px.FullCovariance(factor="dense"),
    "lu": px.FullCovariance(factor="lu"),
    "low-rank": px.LowRank(rank=2),
    "householder": px.Householder(num_reflections=2),
}


def fitted(family, num_particles=8):
    guide = px.AutoJoint(model, family=family)
    px.fit(
        model,
        guide,
        px.ELBO(num_particles, estimator="stl"),
        optim=partial(torch.optim.Adam, lr=0.05),
        schedule=partial(CosineAnnealingLR, T_max=1500),
        num_steps=1500,
        seed=0,
        progress=False,
    )
    return guide


@pytest.mark.parametrize("family", CONTAINS_THE_TARGET.values(), ids=CONTAINS_THE_TARGET)
def test_a_family_that_contains_the_target_finds_it(family):
    """The landing estimator has no noise there, so that only the optimizer's error is left."""
    guide = fitted(family)
    posterior = guide.get_posterior()
    torch.testing.assert_close(posterior.mean, LOC, rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior.covariance_matrix, COVARIANCE, rtol=0, atol=1e-3)


def test_mean_field_has_the_inverse_of_the_precisions_diagonal():
    # Its gradient keeps the noise of the draws: more of them.
    posterior = fitted(px.Diagonal(), 100).get_posterior()
    precision = COVARIANCE.inverse()
    torch.testing.assert_close(posterior.mean, LOC, rtol=0, atol=0.02)
    torch.testing.assert_close(posterior.variance, 1 / precision.diagonal(), rtol=0.02, atol=0)
