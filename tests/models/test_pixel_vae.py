import itertools
import math

import pyro
import pytest
import torch

import pyro_ext as px
from helpers import assert_mean
from models.pixel_vae import PixelVAE


@pytest.fixture
def model() -> PixelVAE:
    found = PixelVAE((2, 3), 2, channels=4, num_layers=2, context_channels=2, hidden=5)
    for param in found.parameters():
        torch.nn.init.normal_(param, std=0.7)
    return found


def all_images() -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))


def test_probabilities_of_all_images_sum_to_one(model: PixelVAE) -> None:
    decoder = model.decode(torch.randn(7, 2))
    total = decoder.log_prob(all_images().unsqueeze(1)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(7), rtol=0, atol=1e-12)


def test_draws_have_these_probabilities(model: PixelVAE) -> None:
    decoder = model.decode(torch.randn(2, 2))
    with torch.no_grad():
        counts = (decoder.sample((5000,)).unsqueeze(-2) == all_images()).all(-1).double()
        expected = decoder.log_prob(all_images().unsqueeze(1)).exp().T
    assert_mean(counts, expected)


def test_evidence_by_quadrature(model: PixelVAE) -> None:
    """A prior guide gives log w = log p(x | z): its mean of weights is the evidence."""
    x = all_images()[:5]
    at = torch.linspace(-6, 6, 121)
    z = torch.cartesian_prod(at, at)
    with torch.no_grad():
        log_x = model.decode(z.unsqueeze(1)).log_prob(x)
    log_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
    evidence = (log_x + log_z).logsumexp(0) + 2 * math.log(12 / 120)

    def prior(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))

    (term,) = px.log_weights(model, prior, x, num_particles=20_000).terms
    assert_mean(term.log_w.detach().exp(), evidence.exp())


def test_draws_of_the_model_without_data(model: PixelVAE) -> None:
    draws = pyro.poutine.uncondition(model)
    trace = pyro.poutine.trace(draws).get_trace(torch.zeros(4, 6))
    x = trace.nodes["x"]["value"]
    assert x.shape == (4, 6)
    assert ((x == 0) | (x == 1)).all()


def test_wrong_shape(model: PixelVAE) -> None:
    with pytest.raises(ValueError, match=r"of shape \(batch, 6\); got \(4, 2, 3\). Write: x.fl"):
        model(torch.zeros(4, 2, 3))
