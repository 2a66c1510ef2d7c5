r"""Variational auto-encoder: a latent vector per image, and a network that draws the image.

.. math:: z_i \sim N(0, I_D), \quad x_i \mid z_i \sim \mathrm{Bernoulli}(\mathrm{logits}(z_i))
          \ \text{ or } \ N(\mathrm{mean}(z_i), s^2 I)

References:
    Auto-Encoding Variational Bayes (Kingma and Welling, 2013) | https://arxiv.org/abs/1312.6114

Example:
    >>> train, held_out = data()
    >>> train.shape, held_out.shape
    (torch.Size([1500, 64]), torch.Size([297, 64]))
    >>> model = VAE(num_features=64, latent_dim=8)
    >>> model(train).shape
    torch.Size([1500, 8])
"""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from models._images import DynamicBinarization, Split, data
from models._names import unique_name
from pyro_ext.nn import MLP

__all__ = ["VAE", "DynamicBinarization", "Likelihood", "Split", "data"]

Likelihood = Literal["bernoulli", "gaussian"]


class VAE(PyroModule):
    """The generative half of a variational auto-encoder, as a Pyro model.

    Args:
        num_features: Pixels of an image.
        latent_dim: Size of the latent vector.
        hidden: Widths of the decoder's hidden layers.
        likelihood: ``"bernoulli"`` for binary pixels, where the decoder gives logits, or
            ``"gaussian"`` for real ones, where it gives means and one noise scale is learned.
        decoder: Maps ``(*batch, latent_dim)`` to ``(*batch, num_features)`` for any leading
            dimensions; an :class:`~pyro_ext.nn.MLP` if None.

    Raises:
        ValueError: If the likelihood is unknown, if a decoder's output or the data have the wrong
            shape, or if the data of a Bernoulli likelihood are not binary.
    """

    noise: Tensor

    def __init__(
        self,
        num_features: int = 64,
        latent_dim: int = 8,
        *,
        hidden: Sequence[int] = (128,),
        likelihood: Likelihood = "bernoulli",
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(unique_name("vae"))
        if likelihood not in get_args(Likelihood):
            raise ValueError(
                f"VAE: expected likelihood in {get_args(Likelihood)}, got {likelihood!r}."
            )
        self.num_features, self.latent_dim, self.likelihood = num_features, latent_dim, likelihood
        self.decoder = decoder or MLP(latent_dim, hidden, num_features)
        if likelihood == "gaussian":
            noise = PyroParam(torch.tensor(0.3), constraint=constraints.positive)
            self.noise = cast(Tensor, noise)

    def forward(self, x: Tensor) -> Tensor:
        """Sites ``z`` (vector latent) and ``x`` in the plate ``"data"``.

        Args:
            x: Images, shape ``(batch, num_features)``.

        Returns:
            The latents, shape ``(*particles, batch, latent_dim)``.
        """
        self._check(x)
        prior = dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", self._pixels(z), obs=x)
        return z

    def _pixels(self, z: Tensor) -> TorchDistributionMixin:
        output: Tensor = self.decoder(z)
        expected = (*z.shape[:-1], self.num_features)
        if output.shape != expected:
            raise ValueError(
                f"VAE, site 'x': expected the decoder to map z of shape {tuple(z.shape)} to "
                f"{expected}, got {tuple(output.shape)}; a decoder must keep every leading "
                f"dimension, e.g. with y = net(z.flatten(0, -2)).unflatten(0, z.shape[:-1])."
            )
        pixels: TorchDistributionMixin = (
            dist.Bernoulli(logits=output)
            if self.likelihood == "bernoulli"
            else dist.Normal(output, self.noise)
        )
        independent: TorchDistributionMixin = pixels.to_event(1)
        return independent

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"VAE, site 'x': expected data of shape (batch, {self.num_features}), "
                f"got {tuple(x.shape)}; flatten images with x.flatten(1)."
            )
        if self.likelihood == "bernoulli" and is_validation_enabled():
            wrong = (x != 0) & (x != 1)
            if wrong.any():
                raise ValueError(
                    f"VAE, site 'x': expected binary pixels for the Bernoulli likelihood, got "
                    f"{x[wrong][0].item():.4g}; load them with data(binarize=True), or build "
                    f"VAE(likelihood='gaussian')."
                )
