r"""A variational auto-encoder whose decoder is autoregressive.

.. math:: z \sim N(0, I_D), \quad
          x_i \mid x_{<i}, z \sim \mathrm{Bernoulli}(\mathrm{logits}_i(x_{<i}, c(z)))

Neighbouring pixels tell most of a pixel, and what the decoder can see of them the latent need not
carry: the further it sees, the lower the rate.

References:
    PixelVAE: A Latent Variable Model for Natural Images (Gulrajani et al., 2016) |
    https://arxiv.org/abs/1611.05013

Example:
    >>> from models.vae import data
    >>> train, held_out = data()
    >>> model = PixelVAE(latent_dim=4, num_layers=2)
    >>> model(train).shape
    torch.Size([1500, 4])
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.nn import PyroModule
from torch import Size, Tensor

from models._names import unique_name
from pyro_ext.nn import MLP, PixelCNN

__all__ = ["PixelBernoulli", "PixelVAE"]


class PixelBernoulli(TorchDistribution):
    """Binary images, one pixel after the other.

    Args:
        network: Gives the logits, given the image and the context.
        context: Shape ``(*batch, context_channels, rows, columns)``.
        size: Rows and columns.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, network: PixelCNN, context: Tensor, size: tuple[int, int]) -> None:
        self.network, self.context, self.size = network, context, size
        super().__init__(context.shape[:-3], Size([size[0] * size[1]]), validate_args=False)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "PixelBernoulli":
        """Return the distribution with another batch shape."""
        context = self.context.expand(*batch_shape, *self.context.shape[-3:])
        return PixelBernoulli(self.network, context, self.size)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of flat images, in one pass."""
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = value.expand(*batch, -1)
        context = self.context.expand(*batch, *self.context.shape[-3:])
        logits = self.network(value.unflatten(-1, (1, *self.size)), context)
        log_prob: Tensor = dist.Bernoulli(logits=logits.flatten(-3)).log_prob(value).sum(-1)
        return log_prob

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draw flat images, one pass a pixel."""
        shape = (*sample_shape, *self.batch_shape)
        context = self.context.expand(*shape, *self.context.shape[-3:]).flatten(0, -4)
        x = self.network.sample(len(context), size=self.size, context=context, progress=True)
        return x.reshape(*shape, -1)


class PixelVAE(PyroModule):
    """The generative half, as a Pyro model.

    Args:
        size: Rows and columns of an image.
        latent_dim: Size of the latent vector.
        channels: Channels of the autoregressive network.
        num_layers: Its masked layers: how far a pixel sees.
        context_channels: Channels of what z tells each pixel.
        hidden: Width of the network from z to the context.
        two_stacks: Whether the network has no blind spot.
    """

    def __init__(
        self,
        size: tuple[int, int] = (8, 8),
        latent_dim: int = 8,
        *,
        channels: int = 16,
        num_layers: int = 4,
        context_channels: int = 8,
        hidden: int = 64,
        two_stacks: bool = True,
    ) -> None:
        super().__init__(unique_name("pixel_vae"))
        self.size, self.latent_dim = size, latent_dim
        self.num_features = size[0] * size[1]
        self.shape = (context_channels, *size)
        self.context = MLP(latent_dim, (hidden,), context_channels * self.num_features)
        self.pixels = PixelCNN(
            channels,
            num_layers=num_layers,
            context_channels=context_channels,
            two_stacks=two_stacks,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sites ``z`` (vector latent) and ``x`` in the plate ``"data"``.

        Args:
            x: Binary images, shape ``(batch, rows * columns)``.

        Returns:
            The latents, shape ``(*particles, batch, latent_dim)``.
        """
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"PixelVAE, site 'x': expected data of shape (batch, {self.num_features}); "
                f"got {tuple(x.shape)}. Write: x.flatten(1)."
            )
        prior = dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", self.decode(z), obs=x)
        return z

    def decode(self, z: Tensor) -> PixelBernoulli:
        """Return p(x | z).

        Args:
            z: Latents, shape ``(*batch, latent_dim)``.
        """
        context: Tensor = self.context(z)
        return PixelBernoulli(self.pixels, context.unflatten(-1, self.shape), self.size)
