"""Guides for the VAE with an autoregressive decoder: a convolutional encoder of the images.

Example:
    >>> from models.pixel_vae import PixelVAE
    >>> guide = GUIDES["amortized-mean-field"](PixelVAE(latent_dim=4))
    >>> guide.setup(torch.zeros(10, 64))
    >>> guide.sample_posterior(3, torch.zeros(10, 64))["z"].shape
    torch.Size([3, 10, 4])
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro_ext as px
from models.pixel_vae import PixelVAE
from pyro_ext.nn import ConvEncoder

__all__ = ["GUIDES", "amortized_full_covariance", "amortized_mean_field"]


def amortized_mean_field(model: PixelVAE, **options: Any) -> px.AutoAmortized:
    """Build independent normals whose parameters come from a convolutional encoder.

    Args:
        model: The model.
        **options: Further arguments of :class:`pyro_ext.AutoAmortized`.
    """
    encoder = ConvEncoder(model.size)
    return px.AutoAmortized(model, encoder, family=px.Diagonal(), plate="data", **options)


def amortized_full_covariance(model: PixelVAE, **options: Any) -> px.AutoAmortized:
    """Build a full covariance whose parameters come from a convolutional encoder.

    Args:
        model: The model.
        **options: Further arguments of :class:`pyro_ext.AutoAmortized`.
    """
    encoder = ConvEncoder(model.size)
    return px.AutoAmortized(model, encoder, family=px.FullCovariance(), plate="data", **options)


GUIDES: Mapping[str, Callable[..., px.AutoAmortized]] = {
    "amortized-mean-field": amortized_mean_field,
    "amortized-full-covariance": amortized_full_covariance,
}
