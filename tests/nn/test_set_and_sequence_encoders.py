import math
from typing import Any

import pytest
import torch

from pyro_ext.nn import SequenceEncoder, SetEncoder


def test_the_order_of_members_does_not_matter() -> None:
    encoder = SetEncoder(2, out_features=5)
    members, mask = torch.randn(3, 7, 2), torch.rand(3, 7) < 0.6
    order = torch.randperm(7)
    torch.testing.assert_close(encoder(members[:, order], mask[:, order]), encoder(members, mask))


def test_padding_is_not_looked_at() -> None:
    encoder = SetEncoder(2, out_features=5)
    members, mask = torch.randn(3, 7, 2), torch.rand(3, 7) < 0.6
    mask[:, 0] = True
    filled = torch.where(mask.unsqueeze(-1), members, math.nan).requires_grad_()
    found = encoder(filled, mask)
    torch.testing.assert_close(found, encoder(members, mask))
    (gradient,) = torch.autograd.grad(found.sum(), filled)
    assert (gradient[~mask] == 0).all()


def test_size_is_told() -> None:
    """Twice the same members have the same mean: only the size differs."""
    encoder = SetEncoder(1, out_features=5)
    one, two = torch.ones(1, 2, 1), torch.tensor([[True, False], [True, True]])
    found = encoder(one.expand(2, 2, 1), two)
    assert not torch.allclose(found[0], found[1])


def test_empty_groups_have_features() -> None:
    assert (
        SetEncoder(2)(torch.randn(1, 4, 2), torch.zeros(1, 4, dtype=torch.bool)).isfinite().all()
    )


def test_groups_by_hand() -> None:
    encoder = SetEncoder(2, out_features=3)
    members = torch.randn(4, 2)
    inputs = torch.cat([encoder.member(members).mean(0), torch.tensor([math.log(5)])])
    found = encoder(members, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(found, encoder.group(inputs))


def test_padded_sequences_are_sequences_by_themselves() -> None:
    encoder = SequenceEncoder(2, out_features=6)
    x, lengths = torch.randn(4, 5, 2), torch.tensor([5, 1, 3, 3])
    found = encoder(x, lengths)
    for row, length, features in zip(x, lengths, found, strict=True):
        torch.testing.assert_close(features, encoder(row[None, :length])[0])


def test_the_order_of_a_sequence_matters() -> None:
    encoder = SequenceEncoder(2, out_features=6)
    x = torch.randn(1, 5, 2)
    assert not torch.allclose(encoder(x), encoder(x.flip(1)))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"even out_features.*got 5. Write: out_features=6"):
        SequenceEncoder(2, out_features=5)
    with pytest.raises(ValueError, match=r"lengths from 1 to 3; got 0 to 4"):
        SequenceEncoder(2)(torch.zeros(2, 3, 2), torch.tensor([0, 4]))


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 3, dtype=torch.bool), torch.ones(4, dtype=torch.bool), torch.ones(2, 4)],
    ids=["too few", "one for all", "numbers"],
)
def test_a_mask_that_does_not_fit_raises(mask: torch.Tensor) -> None:
    message = (
        r"SetEncoder: .*mask of booleans of shape \(2, 4\).*; got torch\.\w+ of shape .*Write"
    )
    with pytest.raises(ValueError, match=message):
        SetEncoder(2)(torch.zeros(2, 4, 2), mask)


def test_a_mask_that_is_a_list_raises() -> None:
    mask: Any = [[True] * 4] * 2
    with pytest.raises(
        ValueError, match=r"mask of booleans of shape \(2, 4\).*; got list\. Write"
    ):
        SetEncoder(2)(torch.zeros(2, 4, 2), mask)


@pytest.mark.parametrize("shape", [(3, 2), (5, 2, 3, 2), (2, 3, 4)], ids=str)
def test_sequences_that_do_not_fit_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"sequences of shape \(batch, steps, 2\); got shape .*Write: x\."
    ):
        SequenceEncoder(2)(torch.zeros(shape))


def test_lengths_that_are_no_whole_numbers_raise() -> None:
    with pytest.raises(ValueError, match=r"whole numbers; got torch\.\w+\. Write: lengths\.long"):
        SequenceEncoder(2)(torch.zeros(2, 3, 2), torch.tensor([1.5, 2.0]))


@pytest.mark.parametrize(
    ("lengths", "got"),
    [([3, 1], "list"), (torch.tensor([3, 1, 1]), r"\(3,\)"), (torch.tensor(3), r"\(\)")],
)
def test_lengths_that_do_not_fit_raise(lengths: Any, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"tensor of 2 lengths, one for each.*; got {got}\. Write"
    ):
        SequenceEncoder(2)(torch.zeros(2, 3, 2), lengths)
