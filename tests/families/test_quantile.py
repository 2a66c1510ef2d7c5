import pytest
import torch
from torch.distributions import Normal

import pyro_ext as px
from pyro_ext.families import Flow, Implicit

PROBS = (0.01, 0.05, 0.5, 0.9, 0.99)
FAMILIES = {"flow": Flow("nsf"), "one way": Flow("planar"), "implicit": Implicit()}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def start(family, *batch, dim=2):
    loc, scale = torch.randn(*batch, dim), torch.rand(*batch, dim) + 0.5
    return (
        loc,
        scale,
        family.distribution(family.initial_params(loc, scale), dim, family.network(dim)),
    )


@EVERY_FAMILY
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_quantiles_by_draws_are_near_the_exact_ones(family, batch):
    """The families start as normals. A share of 4096 draws errs by 5 standard errors at most."""
    loc, scale, q = start(family, *batch)
    for prob in PROBS:
        quantile = family.quantile(q, prob)
        assert quantile.shape == (*batch, 2)
        share = Normal(loc, scale).cdf(quantile)
        assert (share - prob).abs().max() < 5 * (prob * (1 - prob) / 4096) ** 0.5


@EVERY_FAMILY
def test_quantiles_never_cross_and_always_are_the_same(family):
    _, _, q = start(family, 3)
    probs = [1e-4, 0.3, 0.3 + 1e-9, 0.3001, 0.8, 0.9999]
    quantiles = torch.stack([family.quantile(q, prob) for prob in probs])
    assert (quantiles.diff(dim=0) >= 0).all()
    assert (quantiles[0] < quantiles[-1]).all()
    assert not quantiles.requires_grad
    torch.manual_seed(5)
    torch.testing.assert_close(family.quantile(q, 0.3), family.quantile(q, 0.3), rtol=0, atol=0)


@EVERY_FAMILY
def test_random_numbers_of_the_caller_are_left_alone(family):
    _, _, q = start(family)
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    family.quantile(q, 0.5)
    assert torch.equal(torch.randn(3), expected)


def test_many_elements_are_drawn_in_parts():
    """So that the networks of a flow never see 4096 draws of each of many elements at once."""
    family, seen = FAMILIES["implicit"], []
    loc, scale = torch.zeros(300, 2), torch.ones(300, 2)
    network = family.network(2)
    network.register_forward_hook(lambda module, rows, out: seen.append(out[..., 0].numel()))
    q = family.distribution(family.initial_params(loc, scale), 2, network)
    share = Normal(loc, scale).cdf(family.quantile(q, 0.5))
    assert (share - 0.5).abs().max() < 5 * 0.5 / 4096**0.5
    assert sum(seen) == 4096 * 300
    assert max(seen) <= 2**17


def test_quantiles_interpolate_between_draws():
    """Of 4096 draws that are those of torch at seed 0, with torch's own rule."""

    class ByDraws(px.families.Diagonal):
        def quantile(self, posterior, prob):
            return px.families.Family.quantile(self, posterior, prob)

    family = ByDraws()
    q = family.distribution(family.initial_params(torch.zeros(2), torch.ones(2)), 2)
    torch.manual_seed(0)
    draws = q.sample((4096,))
    for prob in PROBS:
        torch.testing.assert_close(family.quantile(q, prob), draws.quantile(prob, dim=0))
