"""The last layer of a flow's networks averages: a step is as long at any width, and finite."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.optim import Adam

import pyro_ext as px

KINDS = ["realnvp", "nsf", "maf"]
SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def moved(kind, width, *, averaged):
    """Mean distance that draws move by the first step of Adam."""
    torch.manual_seed(0)
    family = px.Flow(kind, hidden=(width, width), averaged=averaged)
    network = family.network(4)
    params = family.initial_params(torch.zeros(4), torch.ones(4))
    noise = torch.randn(200, 4)
    optim = Adam(network.parameters(), lr=1e-3)
    before = family.transform(params, 4, network)(noise)
    (before + before.square()).sum().backward()
    optim.step()
    return (family.transform(params, 4, network)(noise) - before).abs().mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_as_long_at_any_width(kind):
    narrow, wide = (moved(kind, width, averaged=True) for width in (16, 256))
    assert 0.7 < wide / narrow < 1.4
    narrow, wide = (moved(kind, width, averaged=False) for width in (16, 256))
    assert wide / narrow > 2.5  # 16 where the bias had no part in it


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_starts_at_the_identity(kind, averaged):
    family = px.Flow(kind, averaged=averaged)
    params = family.initial_params(torch.ones(3), torch.full((3,), 2.0))
    noise = torch.randn(5, 3)
    torch.testing.assert_close(
        family.transform(params, 3, family.network(3))(noise), 1 + 2 * noise, rtol=1e-5, atol=1e-5
    )


def eight_schools(y):
    mu, tau = pyro.sample("mu", dist.Normal(0, 5)), pyro.sample("tau", dist.HalfCauchy(5))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0, 1))
        pyro.sample("y", dist.Normal(mu + tau * z, ERRORS), obs=y)


def num_skipped(seed):
    torch.manual_seed(seed)
    pyro.clear_param_store()
    family = px.Flow("realnvp", base=px.FullCovariance())
    guide = px.AutoJoint(eight_schools, family=family)
    svi = px.CompiledSVI(
        eight_schools,
        guide,
        lambda params: Adam(params, lr=0.01),
        px.IWAE(10),
        compile=False,
        nonfinite="skip",
    )
    for _ in range(60):
        svi.step(SCHOOLS)
    return svi.num_skipped


def test_does_not_run_away_under_a_bound_of_ten_draws():
    assert [num_skipped(seed) for seed in range(3)] == [0, 0, 0]
