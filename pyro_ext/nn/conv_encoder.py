"""A convolutional encoder of images."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from pyro_ext.nn.mlp import check_widths

__all__ = ["ConvEncoder"]


class ConvEncoder(nn.Module):
    r"""Convolutions of stride 2, then a linear layer: from a flat image to features.

    .. math:: h_l = a(W_l * h_{l-1} + b_l) \ \text{ at half the size}, \qquad y = a(V h_L + c)

    Args:
        size: Rows and columns of the image.
        channels: Channels of each convolution.
        out_features: Size of the feature vector.
        in_channels: Channels of the image.
        activation: Makes the activation after each layer.

    Raises:
        TypeError: If ``channels`` is one number.
        ValueError: If a number is not positive, or the image has another size.

    Example:
        >>> encoder = px.nn.ConvEncoder((8, 8), channels=(16, 32), out_features=64)
        >>> encoder(torch.zeros(7, 64)).shape
        torch.Size([7, 64])
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        channels: Sequence[int] = (16, 32),
        out_features: int = 64,
        in_channels: int = 1,
        activation: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        check_widths("ConvEncoder", "channels", channels)
        widths = [in_channels, *channels]
        if min(*size, *widths, out_features) < 1:
            raise ValueError(
                f"ConvEncoder: expected positive sizes; got size={size}, channels="
                f"{tuple(channels)}, out_features={out_features}. "
                "Write: px.nn.ConvEncoder((28, 28), channels=(16, 32))."
            )
        self.shape = (in_channels, *size)
        layers: list[nn.Module] = []
        rows, columns = size
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), activation()]
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        linear = nn.Linear(widths[-1] * rows * columns, out_features)
        self.layers = nn.Sequential(*layers, nn.Flatten(), linear, activation())

    def forward(self, x: Float[Tensor, "*batch pixels"]) -> Float[Tensor, "*batch features"]:
        """Map flat images ``(*batch, in_channels * rows * columns)`` to features.

        Args:
            x: The images.
        """
        channels, rows, columns = self.shape
        if x.shape[-1] != channels * rows * columns:
            raise ValueError(
                f"ConvEncoder: expected flat images of {channels * rows * columns} pixels, "
                f"{self.shape}; got shape {tuple(x.shape)}. Write: x.flatten(1)."
            )
        features: Tensor = self.layers(x.reshape(-1, *self.shape))
        return features.reshape(*x.shape[:-1], features.shape[-1])
