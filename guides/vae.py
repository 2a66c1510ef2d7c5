"""Guides for the variational auto-encoder: an encoder, or parameters of its own for each image.

The three differ in one thing at a time: the source of the parameters between the first two, the
family between the last two.

Example:
    >>> from models.vae import VAE, data
    >>> guide = GUIDES["amortized-full-covariance"](VAE(latent_dim=4), hidden=(32,))
    >>> train, held_out = data()
    >>> guide.setup(train)
    >>> guide.sample_posterior(10, held_out)["z"].shape
    torch.Size([10, 297, 4])
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

import pyro_ext as px
from models.vae import VAE
from pyro_ext.nn import MLP

__all__ = [
    "GUIDES",
    "amortized_full_covariance",
    "amortized_mean_field",
    "mlp_encoder",
    "per_datapoint_mean_field",
]


def per_datapoint_mean_field(model: VAE, **options: Any) -> px.AutoPerDatapoint:
    """Build independent normals with parameters of their own for each image.

    Args:
        model: The model.
        **options: Further arguments of :class:`pyro_ext.AutoPerDatapoint`.
    """
    return px.AutoPerDatapoint(model, family=px.Diagonal(), plate="data", **options)


def amortized_mean_field(
    model: VAE, *, hidden: Sequence[int] = (128,), **options: Any
) -> px.AutoAmortized:
    """Build independent normals whose parameters come from an encoder.

    Args:
        model: The model.
        hidden: Widths of the encoder's layers; the last one is the number of features.
        **options: Further arguments of :class:`pyro_ext.AutoAmortized`.
    """
    encoder = mlp_encoder(model, hidden)
    return px.AutoAmortized(model, encoder, family=px.Diagonal(), plate="data", **options)


def amortized_full_covariance(
    model: VAE, *, hidden: Sequence[int] = (128,), **options: Any
) -> px.AutoAmortized:
    """Build a full covariance whose parameters come from an encoder.

    Args:
        model: The model.
        hidden: Widths of the encoder's layers; the last one is the number of features.
        **options: Further arguments of :class:`pyro_ext.AutoAmortized`.
    """
    encoder = mlp_encoder(model, hidden)
    return px.AutoAmortized(model, encoder, family=px.FullCovariance(), plate="data", **options)


GUIDES: Mapping[str, Callable[..., px.AutoPerDatapoint | px.AutoAmortized]] = {
    "per-datapoint-mean-field": per_datapoint_mean_field,
    "amortized-mean-field": amortized_mean_field,
    "amortized-full-covariance": amortized_full_covariance,
}


def mlp_encoder(model: VAE, hidden: Sequence[int] = (128,)) -> nn.Module:
    """Build an encoder of the images whose last hidden layer is the feature vector.

    Args:
        model: The model, for the number of pixels.
        hidden: Widths of the layers.
    """
    if not hidden:
        raise ValueError("mlp_encoder: expected at least one width, got hidden=(); write (128,).")
    *before, features = hidden
    return nn.Sequential(MLP(model.num_features, before, features), nn.SiLU())
