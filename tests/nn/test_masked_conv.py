import pytest
import torch

from pyro_ext.nn import MaskedConv2d, causal_mask

EXPECTED = {
    "A": [[1, 1, 1], [1, 0, 0], [0, 0, 0]],
    "B": [[1, 1, 1], [1, 1, 0], [0, 0, 0]],
    "above": [[1, 1, 1], [0, 0, 0], [0, 0, 0]],
    "rows": [[1, 1, 1], [1, 1, 1], [0, 0, 0]],
}


@pytest.mark.parametrize("mask", EXPECTED)
def test_masks(mask) -> None:
    assert causal_mask(mask, 3).int().tolist() == EXPECTED[mask]


def test_mask_of_a_row() -> None:
    assert causal_mask("A", (1, 5)).int().tolist() == [[1, 1, 0, 0, 0]]
    assert causal_mask("B", (1, 5)).int().tolist() == [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize("mask", EXPECTED)
@pytest.mark.parametrize("size", [3, 5, (1, 3)])
def test_equals_the_sum_over_allowed_offsets(mask, size) -> None:
    layer = MaskedConv2d(2, 3, size, mask=mask)
    x = torch.randn(1, 2, 6, 7)
    allowed = causal_mask(mask, size)
    row, column = (n // 2 for n in allowed.shape)
    at = (3, 4)
    expected = layer.bias.clone()
    for i, j in allowed.nonzero().tolist():
        pixel = (at[0] + i - row, at[1] + j - column)
        if pixel[0] in range(6) and pixel[1] in range(7):
            expected = expected + layer.weight[:, :, i, j] @ x[0, :, pixel[0], pixel[1]]
    torch.testing.assert_close(layer(x)[0, :, at[0], at[1]], expected)


@pytest.mark.parametrize("mask", ["A", "B"])
def test_the_future_is_not_seen(mask) -> None:
    layer = MaskedConv2d(1, 1, 3, mask=mask)
    jacobian = torch.autograd.functional.jacobian(layer, torch.randn(1, 1, 4, 5))
    triangle = jacobian.reshape(20, 20).triu(1 if mask == "B" else 0)
    assert (triangle == 0).all()


def test_masked_weights_get_no_gradient() -> None:
    layer = MaskedConv2d(1, 1, 3, mask="A")
    layer(torch.randn(2, 1, 5, 5)).square().sum().backward()
    assert ((layer.weight.grad[0, 0] != 0) == causal_mask("A", 3)).all()


def test_the_mask_moves_with_the_module_and_is_not_saved() -> None:
    layer = MaskedConv2d(1, 1, 3, mask="A")
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert "mask='A'" in repr(layer)


@pytest.mark.parametrize(
    ("size", "mask", "message"),
    [
        (4, "A", "expected odd sizes, so that there is a centre; got kernel_size=4"),
        ((3, 2), "A", r"got kernel_size=\(3, 2\)"),
        (3, "C", "expected mask to be one of .*; got 'C'. Write: mask='A' in the first"),
    ],
)
def test_errors(size, mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedConv2d(1, 1, size, mask=mask)
