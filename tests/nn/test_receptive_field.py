"""Receptive fields: by set arithmetic, by gradients, and by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from pyro_ext.nn import (
    MaskedConv2d,
    PixelCNN,
    blind_spot,
    receptive_field,
    receptive_field_by_gradients,
)

MIDDLE = {"size": (28, 28), "pixel": (14, 14)}
PAST = 14 * 28 + 14
BY_HAND = {  # two 3 x 3 layers, what the centre of 5 x 5 pixels sees
    ("A", "A"): ["11111", "11100", "10000", "00000", "00000"],
    ("A", "B"): ["11111", "11110", "11000", "00000", "00000"],
    ("B", "A"): ["11111", "11110", "11000", "00000", "00000"],
    ("B", "B"): ["11111", "11110", "11100", "00000", "00000"],
}
COUNTS = {  # first kernel, number of B layers of 3 x 3: pixels seen
    (3, 5): 69,
    (7, 7): 192,
    (7, 15): 351,
    (7, 30): 351,
    (3, 40): 328,
}


def stack(*layers) -> nn.Sequential:
    return nn.Sequential(*(MaskedConv2d(1, 1, size, mask=mask) for mask, size in layers))


@pytest.mark.parametrize("masks", BY_HAND)
def test_two_layers_on_five_by_five(masks) -> None:
    expected = [[int(c) for c in row] for row in BY_HAND[masks]]
    layers = [(mask, 3) for mask in masks]
    place = {"size": (5, 5), "pixel": (2, 2)}
    assert receptive_field(layers, **place).int().tolist() == expected
    assert receptive_field_by_gradients(stack(*layers), **place).int().tolist() == expected


@pytest.mark.parametrize(("first", "further"), COUNTS)
def test_published_counts_and_blind_spots(first, further) -> None:
    field = receptive_field([("A", first)] + further * [("B", 3)], **MIDDLE)
    assert int(field.sum()) == COUNTS[first, further]
    assert int(blind_spot(field, (14, 14)).sum()) == PAST - COUNTS[first, further]


@pytest.mark.parametrize(("first", "further"), [(3, 5), (7, 7), (7, 15)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_one_stack_by_gradients_is_one_stack_by_sets(first, further, gated, skip) -> None:
    options = {"gated": gated, "two_stacks": False, "skip": skip}
    network = PixelCNN(2, num_layers=1 + further, first_kernel_size=first, **options)
    found = receptive_field_by_gradients(network, **MIDDLE)
    assert (found == receptive_field([("A", first)] + further * [("B", 3)], **MIDDLE)).all()


def test_blind_spot_begins_at_the_diagonal() -> None:
    """In the row r above, the rightmost visible offset is r, whatever the depth."""
    field = receptive_field([("A", 3)] + 40 * [("B", 3)], **MIDDLE)
    for above in range(1, 14):
        assert int(field[14 - above].nonzero().max()) == 14 + above


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("pixel", [(0, 0), (3, 8), (6, 0), (8, 8), (4, 5)])
def test_two_stacks_see_the_whole_past_and_nothing_else(gated, skip, pixel) -> None:
    network = PixelCNN(2, num_layers=9, gated=gated, two_stacks=True, skip=skip)
    field = receptive_field_by_gradients(network, size=(9, 9), pixel=pixel)
    assert not blind_spot(field, pixel).any()
    assert int(field.sum()) == 9 * pixel[0] + pixel[1]


def test_batch_statistics_and_dropout_see_nothing() -> None:
    layers = [("A", 3), ("B", 3)]
    network = nn.Sequential(
        MaskedConv2d(1, 4, 3, mask="A"),
        nn.BatchNorm2d(4),
        nn.Dropout(0.9),
        MaskedConv2d(4, 1, 3, mask="B"),
    )
    where: dict[str, Any] = {"size": (5, 5), "pixel": (2, 2)}
    found = receptive_field_by_gradients(network, **where)
    assert torch.equal(found, receptive_field(layers, **where))
    assert network.training


def test_the_network_stays_as_it_is() -> None:
    network = PixelCNN(2, num_layers=2).float()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    receptive_field_by_gradients(network, size=(5, 5), pixel=(2, 2))
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert (value == before[name]).all()


def test_pixel_outside() -> None:
    with pytest.raises(ValueError, match=r"size \(5, 5\); got \(5, 0\). Write: pixel=\(2, 2\)"):
        receptive_field([("A", 3)], size=(5, 5), pixel=(5, 0))
