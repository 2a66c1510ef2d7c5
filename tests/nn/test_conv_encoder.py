import pytest
import torch

from pyro_ext.nn import ConvEncoder


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_every_leading_dimension_is_a_batch(batch, size) -> None:
    encoder = ConvEncoder(size, channels=(3, 4), out_features=6)
    x = torch.randn(*batch, size[0] * size[1])
    rows = torch.stack([encoder(row) for row in x.reshape(-1, x.shape[-1])])
    torch.testing.assert_close(encoder(x), rows.reshape(*batch, 6))


def test_pixels_lie_in_rows() -> None:
    """The first feature map is the convolution of the image as rows and columns."""
    encoder = ConvEncoder((4, 6), channels=(2,), out_features=3)
    image = torch.randn(1, 4, 6)
    convolution, activation, flatten, linear, last = encoder.layers
    expected = last(linear(flatten(activation(convolution(image.unsqueeze(0))))))
    torch.testing.assert_close(encoder(image.flatten()), expected[0])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"ConvEncoder: expected positive sizes; .*channels=\(0,"):
        ConvEncoder((8, 8), channels=(0,))
    with pytest.raises(ValueError, match=r"64 pixels, \(1, 8, 8\); got shape \(2, 32\)"):
        ConvEncoder((8, 8))(torch.zeros(2, 32))
