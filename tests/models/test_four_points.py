import math

import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from guides.four_points import GUIDES, Gaussian
from helpers import assert_mean
from models.four_points import OPTIMUM, FourPoints, data


def test_evidence_by_importance_sampling() -> None:
    model, guide = FourPoints(hidden=8), Gaussian(hidden=8)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.5)
    torch.nn.init.zeros_(guide.net.layers[-1].weight)  # the prior
    torch.nn.init.zeros_(guide.net.layers[-1].bias)
    (term,) = px.log_weights(model, guide, data(), num_particles=20_000).terms
    assert_mean(term.log_w.detach().exp(), model.log_evidence().exp())


def test_no_decoder_is_above_the_optimum() -> None:
    """A decoder that gives each half-plane pair its point has log p(x) = -log 4, in the limit."""
    model = FourPoints(hidden=4)

    def quarters(z: torch.Tensor) -> torch.Tensor:
        index = 2 * (z[..., 0] > 0).long() + (z[..., 1] > 0).long()
        return 40.0 * (2 * torch.eye(4)[index] - 1)

    model.net.forward = quarters
    found = model.log_evidence()
    # The axes are points of the grid: half a cell of the prior's mass goes to one side.
    edge = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)).exp() * 12 / 400
    assert float(found.logsumexp(0)) == pytest.approx(0.0, abs=1e-6)
    assert (found.exp() - 0.25).abs().max() < edge
    assert math.exp(OPTIMUM) == pytest.approx(0.25)


@pytest.mark.parametrize("name", GUIDES)
def test_guides_draw_a_latent_for_each_point(name: str) -> None:
    guide = GUIDES[name](hidden=8)
    draws = torch.stack([guide(data()) for _ in range(3)])
    assert draws.shape == (3, 4, 2)
    assert (draws[0] != draws[1]).all()
