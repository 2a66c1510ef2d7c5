import itertools
import math

import pytest
import torch

from helpers import assert_mean
from pyro_ext.nn import PixelCNN

KINDS = [
    {"gated": gated, "two_stacks": two, "skip": skip}
    for gated, two, skip in itertools.product([False, True], repeat=3)
]


def log_prob(network: PixelCNN, x: torch.Tensor, context=None) -> torch.Tensor:
    logits = network(x, context)
    return torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((-3, -2, -1))


def all_images(rows: int, columns: int) -> torch.Tensor:
    pixels = list(itertools.product([0.0, 1.0], repeat=rows * columns))
    return torch.tensor(pixels).reshape(-1, 1, rows, columns)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_all_images_sum_to_one(kind) -> None:
    network = PixelCNN(4, num_layers=3, **kind)
    for param in network.parameters():
        torch.nn.init.normal_(param, std=0.7)
    total = log_prob(network, all_images(3, 3)).logsumexp(0)
    assert float(total.detach()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_jacobian_is_strictly_lower_triangular(kind) -> None:
    network = PixelCNN(4, num_layers=3, **kind)
    jacobian = torch.autograd.functional.jacobian(network, torch.randn(1, 1, 4, 5))
    assert (jacobian.reshape(20, 20).triu() == 0).all()


def test_draws_have_the_probabilities_of_the_network() -> None:
    network = PixelCNN(4, num_layers=2)
    for param in network.parameters():
        torch.nn.init.normal_(param, std=0.7)
    images = all_images(2, 2)
    draws = network.sample(20_000, size=(2, 2))
    counts = (draws.unsqueeze(1) == images).all(-1).all(-1).all(-1).double()
    assert_mean(counts, log_prob(network, images).exp().detach())


def test_leading_dimensions_are_a_batch() -> None:
    network = PixelCNN(4, num_layers=2, context_channels=3)
    x, context = torch.rand(2, 5, 1, 4, 4), torch.randn(2, 5, 3, 4, 4)
    found = network(x, context)
    assert found.shape == x.shape
    torch.testing.assert_close(found[1, 3], network(x[1, 3], context[1, 3]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_sees_its_own_context(kind) -> None:
    network = PixelCNN(32, num_layers=3, context_channels=1, **kind)
    context = torch.randn(1, 1, 3, 3).requires_grad_()
    logits = network(torch.rand(1, 1, 3, 3), context)
    for pixel in itertools.product(range(3), repeat=2):
        (gradient,) = torch.autograd.grad(logits[0, 0][pixel], context, retain_graph=True)
        assert gradient[0, 0][pixel] != 0


def test_sampling_is_the_same_with_rows_cut_off() -> None:
    """A row is drawn from the rows up to it: the whole image gives the same logits there."""
    network = PixelCNN(4, num_layers=4)
    x = network.sample(3, size=(5, 5))
    for row in range(5):
        torch.testing.assert_close(
            network(x[..., : row + 1, :])[..., row, :], network(x)[..., row, :]
        )


def test_another_distribution_of_a_pixel() -> None:
    network = PixelCNN(4, num_layers=2, in_channels=2)
    x = network.sample(3, size=(2, 2), draw=lambda logits: logits.exp(), progress=True)
    torch.testing.assert_close(x, network(x).exp().detach())


def test_more_channels_are_of_one_pixel() -> None:
    network = PixelCNN(4, num_layers=2, in_channels=2)
    jacobian = torch.autograd.functional.jacobian(network, torch.randn(1, 2, 3, 3))
    blocks = jacobian.reshape(2, 9, 2, 9).transpose(1, 2).reshape(4, 9, 9)
    assert all((block.triu() == 0).all() for block in blocks)


def test_one_context_for_all_pixels() -> None:
    network = PixelCNN(4, num_layers=2, context_channels=3)
    x, context = torch.rand(2, 1, 4, 4), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(network(x, context), network(x, context.expand(2, 3, 4, 4)))
    assert network.sample(2, size=(3, 3), context=context).shape == (2, 1, 3, 3)


def test_gradient_reaches_every_parameter() -> None:
    network = PixelCNN(4, num_layers=3, context_channels=2)
    log_prob(network, torch.ones(2, 1, 5, 5), torch.randn(2, 2, 5, 5)).sum().backward()
    assert all(param.grad is not None for param in network.parameters())


def test_a_pixel_costs_log_two_at_zero_weights() -> None:
    network = PixelCNN(4, num_layers=2)
    for param in network.parameters():
        torch.nn.init.zeros_(param)
    found = log_prob(network, torch.ones(1, 4, 4)).detach()
    assert float(found) == pytest.approx(-16 * math.log(2))


@pytest.mark.parametrize(
    ("options", "context", "message"),
    [
        ({"context_channels": 2}, None, r"of shape \(1, 2, 4, 4\); got None"),
        ({}, torch.zeros(1, 2, 4, 4), r"expected context None; .*context_channels=2\)"),
        (
            {"context_channels": 2},
            torch.zeros(1, 2, 2, 2),
            r"of shape \(1, 2, 4, 4\); got \(1, 2, 2, 2\)\. Write: network\(x, context\)",
        ),
        ({"context_channels": 2}, torch.zeros(2), r"of shape \(1, 2, 4, 4\); got \(2,\)"),
    ],
)
def test_context_that_does_not_fit(options, context, message) -> None:
    network = PixelCNN(4, num_layers=2, **options)
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(1, 1, 4, 4), context)


def test_one_context_for_many_images_and_many_contexts_for_one() -> None:
    network = PixelCNN(4, num_layers=2, context_channels=2)
    x, context = torch.rand(3, 1, 4, 4), torch.randn(5, 1, 2, 4, 4)
    found = network(x, context)
    assert found.shape == (5, 3, 1, 4, 4)
    torch.testing.assert_close(found[2, 1], network(x[1], context[2, 0]))


def test_contexts_of_another_number_of_images() -> None:
    network = PixelCNN(4, num_layers=2, context_channels=2)
    message = r"of shape \(3, 2, 4, 4\); got \(2, 2, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(3, 1, 4, 4), torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match=message):
        network.sample(3, size=(4, 4), context=torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match=r"got None\. Write: network\(x, context\)"):
        network.sample(3, size=(4, 4))


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 4)], ids=str)
def test_images_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images of shape \(\*batch, 1, rows, columns\); got"):
        PixelCNN(4, num_layers=2)(torch.zeros(shape))


def test_no_layers() -> None:
    with pytest.raises(ValueError, match=r"expected positive sizes; .*num_layers=0"):
        PixelCNN(4, num_layers=0)
