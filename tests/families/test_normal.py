"""The mean-field normal scores its own draws by their noise, and anything else as torch does."""

import pyro.distributions as dist
import pytest
import torch

import pyro_ext as px
from pyro_ext.families.normal import Normal


@pytest.fixture
def params():
    torch.manual_seed(0)
    loc = torch.randn(4, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(4, dtype=torch.float64, requires_grad=True)
    return loc, raw


def both(params, draw):
    """Log density of a draw, and its gradients, by this class and by torch's."""
    found = []
    for kind in (Normal, dist.Normal):
        torch.manual_seed(1)
        q = kind(params[0], params[1].exp()).expand([3, 4])
        z = draw(q)
        log_q = q.log_prob(z)
        value = (log_q + z.sin()).sum()
        found.append([z, log_q, *torch.autograd.grad(value, params)])
    return found


@pytest.mark.parametrize(
    "keep", [lambda z: z, torch.clone, torch.detach], ids=lambda f: f.__name__
)
def test_value_and_total_gradient_are_those_of_torch(params, keep):
    own, torchs = both(params, lambda q: keep(q.rsample()))
    assert torch.equal(own[0], torchs[0])
    for mine, theirs in zip(own, torchs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_draw_without_gradient_keeps_the_score(params):
    def draw(q):
        with torch.no_grad():
            return q.rsample()

    own, torchs = both(params, draw)
    torch.testing.assert_close(own, torchs, rtol=1e-12, atol=1e-12)
    assert own[2].abs().min() > 0


FAMILIES = [px.Diagonal(), px.FullCovariance(), px.LowRank(rank=1), px.Flow("realnvp")]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad], ids=lambda m: m.__name__)
def test_draw_that_was_changed_in_place_is_scored_anew(family, mode):
    params = family.initial_params(torch.zeros(3), torch.ones(3))
    q = family.distribution(params, 3, family.network(3))
    with mode():
        z = q.rsample()
        drawn = q.log_prob(z)
        z.mul_(2.0).add_(1.0)
        changed = q.log_prob(z)
        assert not torch.allclose(changed, drawn)
        torch.testing.assert_close(changed, q.log_prob(z.clone()))


def test_draw_in_inference_mode():
    params = px.Diagonal().initial_params(torch.zeros(3), torch.ones(3))
    with torch.inference_mode():
        q = px.Diagonal().distribution(params, 3)
        z = q.rsample()
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))
