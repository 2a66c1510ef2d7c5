"""Which pixels an output pixel depends on: by set arithmetic, and by gradients."""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pyro_ext.nn.masked_conv import causal_mask

__all__ = ["blind_spot", "receptive_field", "receptive_field_by_gradients"]

_STEEP = 1e-150
"""Gradients of positive weights are far above it, and exactly zero where nothing is seen."""


def receptive_field(
    layers: Sequence[tuple[str, int | tuple[int, int]]],
    *,
    size: tuple[int, int],
    pixel: tuple[int, int],
) -> Bool[Tensor, "rows columns"]:
    r"""Return the pixels that a stack of masked convolutions sees, by set arithmetic.

    .. math:: S_L = \{p\}, \qquad S_{l-1} = \{s + o : s \in S_l,\ o \in O_l\} \cap \text{image}

    with O_l the offsets that the mask of layer l lets through: a Minkowski sum of all masks, less
    the paths that leave the image.

    Args:
        layers: Mask and kernel size of each layer, first layer first.
        size: Rows and columns of the image.
        pixel: Row and column of the output pixel p.

    Raises:
        ValueError: If the pixel is outside the image.

    Example:
        >>> receptive_field([("A", 3), ("B", 3)], size=(5, 5), pixel=(2, 2)).int()
        tensor([[1, 1, 1, 1, 1],
                [1, 1, 1, 1, 0],
                [1, 1, 0, 0, 0],
                [0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0]], dtype=torch.int32)
    """
    _check(size, pixel)
    seen = {pixel}
    for mask, kernel_size in reversed(layers):
        kernel = causal_mask(mask, kernel_size)
        centre = torch.tensor(kernel.shape) // 2
        offsets = [(int(r), int(c)) for r, c in kernel.nonzero() - centre]
        sums = {(row + r, column + c) for row, column in seen for r, c in offsets}
        seen = {(r, c) for r, c in sums if 0 <= r < size[0] and 0 <= c < size[1]}
    field = torch.zeros(size, dtype=torch.bool)
    for row, column in seen:
        field[row, column] = True
    return field


def receptive_field_by_gradients(
    network: nn.Module,
    *,
    size: tuple[int, int],
    pixel: tuple[int, int],
    in_channels: int = 1,
    call: Callable[[nn.Module, Tensor], Tensor] = lambda network, x: network(x),
) -> Bool[Tensor, "rows columns"]:
    """Return the pixels that a network sees: where the gradient of an output pixel is not zero.

    The gradient is that of a copy with positive weights on a positive image, in double precision,
    so that no path cancels another and no ReLU is off, and in evaluation mode, as statistics of a
    batch are those of all pixels. The network itself stays as it is.

    Args:
        network: From images ``(1, in_channels, rows, columns)`` to ``(1, channels, rows,
            columns)``, of monotone activations.
        size: Rows and columns of the image.
        pixel: Row and column of the output pixel.
        in_channels: Channels of the image.
        call: How to call it, where it takes more than the image.

    Raises:
        ValueError: If the pixel is outside the image.

    Example:
        >>> network = px.nn.PixelCNN(4, num_layers=2, two_stacks=False)
        >>> field = receptive_field_by_gradients(network, size=(5, 5), pixel=(2, 2))
        >>> int(field.sum())
        11
    """
    _check(size, pixel)
    network = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for param in network.parameters():
            fan_in = max(param[0].numel(), 1)
            param.uniform_(0.5 / fan_in, 1.5 / fan_in)
    x = torch.rand(1, in_channels, *size, dtype=torch.float64).requires_grad_()
    output = call(network, x)[0, :, pixel[0], pixel[1]].sum()
    (gradient,) = torch.autograd.grad(output, x)
    return (gradient.abs() > _STEEP).any(1)[0]


def blind_spot(
    field: Bool[Tensor, "rows columns"], pixel: tuple[int, int]
) -> Bool[Tensor, "rows columns"]:
    """Return the pixels before one, in raster order, that its receptive field leaves out.

    Args:
        field: The receptive field.
        pixel: Row and column of the output pixel.

    Example:
        >>> layers = [("A", 3)] + 40 * [("B", 3)]
        >>> field = receptive_field(layers, size=(28, 28), pixel=(14, 14))
        >>> int(blind_spot(field, (14, 14)).sum())
        78
    """
    raster = torch.arange(field.numel()).reshape(field.shape)
    return (raster < raster[pixel]) & ~field


def _check(size: tuple[int, int], pixel: tuple[int, int]) -> None:
    if not (0 <= pixel[0] < size[0] and 0 <= pixel[1] < size[1]):
        raise ValueError(
            f"receptive_field: expected a pixel inside the image of size {size}; got {pixel}. "
            f"Write: pixel={(size[0] // 2, size[1] // 2)}."
        )
