"""A convolution that sees the past of each pixel alone."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MaskedConv2d", "causal_mask"]

MASKS = ("A", "B", "above", "rows")


def causal_mask(mask: str, kernel_size: int | tuple[int, int]) -> Bool[Tensor, "rows columns"]:
    """Return which entries of a kernel may be other than zero.

    ===========  =======================================================================
    mask         what the output at a pixel sees, in raster order (rows, then columns)
    ===========  =======================================================================
    ``"A"``      pixels before it
    ``"B"``      pixels before it, and itself
    ``"above"``  the rows above it, on both sides
    ``"rows"``   the rows above it and its own row, on both sides
    ===========  =======================================================================

    Args:
        mask: Which.
        kernel_size: Height and width, odd numbers.

    Raises:
        ValueError: If the mask is unknown or a size is even.

    Example:
        >>> causal_mask("A", 3).int()
        tensor([[1, 1, 1],
                [1, 0, 0],
                [0, 0, 0]], dtype=torch.int32)
    """
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if mask not in MASKS:
        raise ValueError(
            f"MaskedConv2d: expected mask to be one of {list(MASKS)}; got {mask!r}. "
            "Write: mask='A' in the first layer and mask='B' after it."
        )
    if min(height, width) < 1 or height % 2 == 0 or width % 2 == 0:
        raise ValueError(
            f"MaskedConv2d: expected odd sizes, so that there is a centre; got kernel_size="
            f"{kernel_size}. Write: kernel_size=3."
        )
    row = (torch.arange(height) - height // 2).unsqueeze(-1)
    column = torch.arange(width) - width // 2
    if mask in ("above", "rows"):
        return ((row < 0) | ((row == 0) & (mask == "rows"))).expand(height, width)
    return (row < 0) | ((row == 0) & ((column < 0) | ((column == 0) & (mask == "B"))))


class MaskedConv2d(nn.Conv2d):
    r"""A convolution whose kernel is zero where a pixel's future lies.

    .. math:: y_{c, p} = b_c + \sum_{c', o} (W \odot M)_{c c' o}\, x_{c', p + o}

    The image keeps its size. A stack is autoregressive if its first layer has mask ``"A"`` and
    the others mask ``"B"``; it leaves a blind spot, which two stacks together do not
    (:class:`~pyro_ext.nn.PixelCNN`).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width, odd numbers.
        mask: What a pixel sees, see :func:`~pyro_ext.nn.causal_mask`.

    Raises:
        ValueError: If the mask is unknown or a size is even.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner and Kavukcuoglu, 2016) |
        https://arxiv.org/abs/1601.06759

    Example:
        >>> layer = MaskedConv2d(1, 8, 3, mask="A")
        >>> layer(torch.zeros(2, 1, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    kernel_mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        mask: str,
    ) -> None:
        allowed = causal_mask(mask, kernel_size)
        height, width = allowed.shape
        super().__init__(
            in_channels, out_channels, (height, width), padding=(height // 2, width // 2)
        )
        self.mask = mask
        self.register_buffer("kernel_mask", allowed, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch in_channels rows columns"]
    ) -> Float[Tensor, "batch out_channels rows columns"]:
        """Map images to images of the same size."""
        weight = self.weight * self.kernel_mask
        return functional.conv2d(x, weight, self.bias, padding=self.padding)

    def extra_repr(self) -> str:
        """Name the mask, too."""
        return f"{super().extra_repr()}, mask={self.mask!r}"
