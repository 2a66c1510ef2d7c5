"""Networks whose output at a pixel depends on the pixels before it alone."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn
from tqdm.auto import tqdm

from pyro_ext._progress import hidden
from pyro_ext.nn.masked_conv import MaskedConv2d

__all__ = ["PixelCNN"]


class PixelCNN(nn.Module):
    r"""Logits of each pixel given the pixels before it, in raster order.

    .. math:: \log p(x \mid c) = \sum_i \log p(x_i \mid x_{<i}, c), \qquad
        \text{all terms in one pass}

    One stack of masked convolutions (type A, then type B) has a blind spot: pixels of the past,
    above and to the right, that no depth brings into sight. With ``two_stacks`` a vertical stack
    sees all rows above, a horizontal stack sees its own row to the left and reads the vertical
    one, and together they see the whole past.

    Args:
        channels: Channels of the hidden layers.
        num_layers: Masked layers; the first is of type A.
        kernel_size: Size of the kernels after the first.
        first_kernel_size: Size of the first one.
        in_channels: Channels of the image, and of the logits.
        context_channels: Channels of c, what every layer sees beside x, mask or not; 0 for none.
        gated: Whether a layer is :math:`\tanh(a) \odot \sigma(b)`, instead of a ReLU.
        two_stacks: Whether there is a vertical stack, so that there is no blind spot.
        skip: Whether the output reads all layers, instead of the last one.

    Raises:
        ValueError: If a number is too small, or context and image do not fit.

    References:
        Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner and Kavukcuoglu, 2016) |
        https://arxiv.org/abs/1601.06759
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016) |
        https://arxiv.org/abs/1606.05328

    Example:
        >>> network = PixelCNN(8, num_layers=3)
        >>> x = network.sample(2, size=(4, 4))
        >>> network(x).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        channels: int = 32,
        *,
        num_layers: int = 5,
        kernel_size: int = 3,
        first_kernel_size: int = 3,
        in_channels: int = 1,
        context_channels: int = 0,
        gated: bool = True,
        two_stacks: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__()
        if min(channels, num_layers, in_channels) < 1 or context_channels < 0:
            raise ValueError(
                f"PixelCNN: expected positive sizes; got channels={channels}, num_layers="
                f"{num_layers}, in_channels={in_channels}, context_channels={context_channels}. "
                "Write: px.nn.PixelCNN(32, num_layers=5)."
            )
        self.in_channels, self.context_channels = in_channels, context_channels
        self.skip = skip
        layer = partial(
            _Layer,
            channels=channels,
            context_channels=context_channels,
            gated=gated,
            two_stacks=two_stacks,
        )
        self.layers = nn.ModuleList(
            layer(in_channels, kernel_size=first_kernel_size, first=True)
            if index == 0
            else layer(channels, kernel_size=kernel_size, first=False)
            for index in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels * (num_layers if skip else 1), channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, in_channels, 1),
        )

    def forward(
        self,
        x: Float[Tensor, "*batch in_channels rows columns"],
        context: Float[Tensor, "*batch context_channels c_rows c_columns"] | None = None,
    ) -> Float[Tensor, "*batch in_channels rows columns"]:
        """Return the logits of all pixels.

        Args:
            x: Images, shape ``(*batch, in_channels, rows, columns)``.
            context: c, shape ``(*batch, context_channels, rows, columns)``, or with one row and
                one column where it is the same for all pixels. Its batch broadcasts with x's.

        Raises:
            ValueError: If image and context do not fit.
        """
        batch = self._check(x, context)
        x = x.expand(*batch, *x.shape[-3:])
        x = x.flatten(0, -4) if batch else x.unsqueeze(0)
        if context is not None:
            context = context.expand(*batch, *context.shape[-3:])
            context = context.flatten(0, -4) if batch else context.unsqueeze(0)
        horizontal, vertical, seen = x, x, []
        for layer in self.layers:
            horizontal, vertical = layer(horizontal, vertical, context)
            seen.append(horizontal)
        logits: Tensor = self.head(torch.cat(seen, 1) if self.skip else horizontal)
        return logits.reshape(*batch, *logits.shape[1:])

    @torch.no_grad()
    def sample(
        self,
        num: int = 1,
        *,
        size: tuple[int, int],
        context: Float[Tensor, "num context_channels c_rows c_columns"] | None = None,
        draw: Callable[[Tensor], Tensor] = lambda logits: torch.bernoulli(logits.sigmoid()),
        progress: bool = False,
    ) -> Float[Tensor, "num in_channels rows columns"]:
        """Draw images pixel by pixel: one pass of the network a pixel.

        Args:
            num: Number of images.
            size: Rows and columns.
            context: c, one for each image.
            draw: From the logits of a pixel, ``(num, in_channels)``, to its values.
            progress: Whether to show a progress bar (never if the output is no terminal).
        """
        like = next(self.parameters())
        self._check(like.new_zeros(()).expand(num, self.in_channels, *size), context)
        x = like.new_zeros(num, self.in_channels, *size)
        pixels = [(row, column) for row in range(size[0]) for column in range(size[1])]
        for row, column in tqdm(
            pixels, desc="pixels", leave=False, disable=hidden(wanted=progress)
        ):
            # What is below the row is not seen, and need not be computed.
            above = None if context is None else context[..., : row + 1, :]
            logits = self(x[..., : row + 1, :], above)[..., row, column]
            x[..., row, column] = draw(logits)
        return x

    def _check(self, x: Tensor, context: Tensor | None) -> Size:
        """Return the batch that image and context have together."""
        if x.dim() < 3 or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"PixelCNN: expected images of shape (*batch, {self.in_channels}, rows, columns); "
                f"got shape {tuple(x.shape)}. Write: x.unflatten(-1, ({self.in_channels}, rows, "
                "columns)) for flat images."
            )
        wanted, batch = self.context_channels, x.shape[:-3]
        if context is None and not wanted:
            return batch
        given = () if context is None else tuple(context.shape)
        fits = given[-3:-2] == (wanted,) and all(
            size in (1, full) for size, full in zip(given[-2:], x.shape[-2:], strict=True)
        )
        try:
            batch = torch.broadcast_shapes(batch, given[:-3])
        except RuntimeError:
            fits = False
        if not fits:
            expected = f"of shape {(*x.shape[:-3], wanted, *x.shape[-2:])}" if wanted else "None"
            channels = given[-3] if len(given) >= 3 else wanted
            instead = (
                "network(x, context)"
                if channels == wanted
                else f"px.nn.PixelCNN(context_channels={channels})"
            )
            raise ValueError(
                f"PixelCNN: expected context {expected}; got {given or None}. Write: {instead}."
            )
        return batch


class _Layer(nn.Module):
    """One masked layer of both stacks; a residual one, but for the first."""

    def __init__(
        self,
        in_channels: int,
        *,
        channels: int,
        kernel_size: int,
        context_channels: int,
        gated: bool,
        two_stacks: bool,
        first: bool,
    ) -> None:
        super().__init__()
        width = 2 * channels if gated else channels
        own = "A" if first else "B"
        self.first, self.gated = first, gated
        row = (1, kernel_size) if two_stacks else (kernel_size, kernel_size)
        self.horizontal = MaskedConv2d(in_channels, width, row, mask=own)
        self.context = nn.Conv2d(context_channels, width, 1) if context_channels else None
        self.out = nn.Conv2d(channels, channels, 1)
        if two_stacks:
            above = "above" if first else "rows"
            self.vertical = MaskedConv2d(in_channels, width, kernel_size, mask=above)
            self.read = nn.Conv2d(width, width, 1)
        self.two_stacks = two_stacks

    def forward(
        self, horizontal: Tensor, vertical: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return both stacks after this layer."""
        a = self.horizontal(horizontal)
        beside: Tensor | float = 0.0 if self.context is None else self.context(context)
        if self.two_stacks:
            b = self.vertical(vertical)
            a, vertical = a + self.read(b), self._activate(b + beside)
        h: Tensor = self.out(self._activate(a + beside))
        return (h if self.first else horizontal + h), vertical

    def _activate(self, a: Tensor) -> Tensor:
        if not self.gated:
            return a.relu()
        value, gate = a.chunk(2, 1)
        return value.tanh() * gate.sigmoid()
