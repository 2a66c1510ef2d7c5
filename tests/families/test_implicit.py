import copy

import pytest
import torch

from helpers import assert_mean
from pyro_ext.families import Implicit

FAMILIES = {
    "plain": Implicit(),
    "context": Implicit(context=3),
    "more noise": Implicit(5, hidden=(8,)),
    "less noise": Implicit(1),
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
EVERY_BATCH = pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)


@EVERY_FAMILY
@EVERY_BATCH
@pytest.mark.parametrize("dim", [1, 2])
def test_draws_start_at_mean_and_scale(family, batch, dim):
    loc, scale = torch.randn(*batch, dim), torch.rand(*batch, dim) + 0.1
    params = family.initial_params(loc, scale)
    assert params.shape == (*batch, family.num_params(dim))
    q = family.distribution(params, dim, family.network(dim))
    assert q.batch_shape == batch
    assert q.event_shape == (dim,)
    assert q.has_rsample
    standard = ((q.rsample((2000,)) - loc) / scale).detach()
    assert standard.shape == (2000, *batch, dim)
    assert_mean(standard, 0.0)
    assert_mean(standard.square(), 1.0)


@EVERY_FAMILY
def test_every_parameter_moves_within_two_steps(family):
    params = family.initial_params(torch.zeros(4, 2), torch.ones(4, 2)).requires_grad_()
    network = family.network(2)
    tensors = {"π": params, **dict(network.named_parameters())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    optimizer = torch.optim.Adam(tensors.values(), lr=0.01)
    for _ in range(2):
        value = family.distribution(params, 2, network).rsample((50,))
        optimizer.zero_grad()
        (value.prod(-1, keepdim=True) - value).square().mean().backward()
        optimizer.step()
    assert all((params != before["π"]).flatten())
    assert not [name for name, tensor in tensors.items() if torch.equal(tensor, before[name])]


@pytest.mark.parametrize("family", [Implicit(context=2), Implicit(3)], ids=str)
def test_expanded_particles_share_parameters(family):
    network = family.network(2)
    params = family.initial_params(torch.zeros(4, 1, 2), torch.ones(4, 1, 2))
    q = family.distribution(params, 2, network).expand((6, 4, 3))
    assert q.batch_shape == (6, 4, 3)
    value = q.rsample((2,))
    assert value.shape == (2, 6, 4, 3, 2)
    assert value.flatten(0, -2).unique(dim=0).shape == (144, 2)


def test_the_context_bends():
    family = Implicit(context=2)
    network = family.network(2)
    torch.nn.init.normal_(network.layers[-1].weight)
    params = family.initial_params(torch.zeros(2, 2), torch.ones(2, 2))
    params[1, 4:] += 1.0

    def skewness(q):
        return q.sample((4000,)).pow(3).mean(0)

    one, two = skewness(family.distribution(params, 2, network))
    assert (one - two).abs().max() > 0.1


def test_it_has_no_density():
    family = Implicit()
    assert family.density == "none"
    assert family.transform(torch.zeros(4), 2) is None
    q = family.distribution(torch.zeros(4), 2, family.network(2))
    with pytest.raises(ValueError, match=r"sampler without a density. Write: px.Flow\('nsf'\)"):
        q.log_prob(q.rsample())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_dim": 0}, r"expected noise_dim >= 1; got 0. Write: px.Implicit\(\)"),
        ({"context": -1}, r"Implicit: expected a context of size >= 0; got -1"),
    ],
    ids=str,
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Implicit(**options)


def test_a_sampler_without_its_network_is_an_error():
    with pytest.raises(ValueError, match=r"expected the network that all .* got None"):
        Implicit().distribution(torch.zeros(4), 2)


def test_networks_copy_and_cast():
    family = Implicit(context=2)
    network = family.network(3)
    copied = copy.deepcopy(network).float()
    params = family.initial_params(torch.zeros(3), torch.ones(3)).float()
    assert family.distribution(params, 3, copied).rsample().dtype == torch.float32
    loaded = family.network(3)
    loaded.load_state_dict(network.state_dict())
