r"""Guides for probabilistic PCA.

The exact posterior has a mean that is linear in the datum and one full covariance for all data.
So the amortized guide with a full covariance and a linear encoder contains it, and the amortized
mean field is as good as a mean field per datapoint: no amortization gap, only an approximation
gap. :class:`LinearGuide` writes the same thing by hand.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

import pyro_ext as px
from models._names import unique_name
from models.linear_gaussian import LinearGaussian

__all__ = [
    "GUIDES",
    "LinearGuide",
    "amortized_full_covariance",
    "amortized_mean_field",
    "per_datapoint_mean_field",
]


def per_datapoint_mean_field(model: LinearGaussian, **options: Any) -> px.AutoPerDatapoint:
    """Build independent normals with parameters of their own for each datum.

    Args:
        model: The model.
        **options: Further arguments of :class:`pyro_ext.AutoPerDatapoint`.
    """
    return px.AutoPerDatapoint(model, family=px.Diagonal(), plate="data", **options)


def amortized_mean_field(model: LinearGaussian, **options: Any) -> px.AutoAmortized:
    """Build independent normals whose parameters are linear in the datum.

    Args:
        model: The model.
        **options: Further arguments of :class:`pyro_ext.AutoAmortized`.
    """
    return px.AutoAmortized(
        model, linear_encoder(model), family=px.Diagonal(), plate="data", **options
    )


def amortized_full_covariance(model: LinearGaussian, **options: Any) -> px.AutoAmortized:
    """Build a full covariance whose parameters are linear in the datum: contains the posterior.

    Args:
        model: The model.
        **options: Further arguments of :class:`pyro_ext.AutoAmortized`.
    """
    return px.AutoAmortized(
        model, linear_encoder(model), family=px.FullCovariance(), plate="data", **options
    )


GUIDES: Mapping[str, Callable[..., px.AutoPerDatapoint | px.AutoAmortized]] = {
    "per-datapoint-mean-field": per_datapoint_mean_field,
    "amortized-mean-field": amortized_mean_field,
    "amortized-full-covariance": amortized_full_covariance,
}


def linear_encoder(model: LinearGaussian) -> nn.Linear:
    """Build the encoder: as many linear features as the datum has, in the model's dtype."""
    encoder = nn.Linear(model.num_features, model.num_features)
    return encoder.to(model.weight)


class LinearGuide(PyroModule):
    r"""A guide written by hand: one normal per datum, with a linear mean and a shared covariance.

    .. math:: q(z_i \mid x_i) = N(A x_i + c,\ L L^\top)

    This is all that a Pyro guide needs: parameters, and a ``forward`` that takes the model's
    arguments and samples the model's latents in the model's plates.

    Args:
        slope: A, shape ``(latent_dim, num_features)``.
        intercept: c, shape ``(latent_dim,)``.
        scale_tril: L, lower triangle with positive diagonal, ``(latent_dim, latent_dim)``.

    Example:
        >>> from models.linear_gaussian import LinearGaussian, data
        >>> model = LinearGaussian.random()
        >>> guide, x = LinearGuide.exact(model), data(3, model=model)
        >>> log_w = px.log_weights(model, guide, x, num_particles=5).terms[0].log_w
        >>> torch.allclose(log_w, model.log_evidence_per_datum(x).expand(5, 3), atol=1e-4)
        True
    """

    scale_tril: Tensor

    def __init__(self, slope: Tensor, intercept: Tensor, scale_tril: Tensor) -> None:
        super().__init__(unique_name("linear_guide"))
        self.slope = nn.Parameter(slope)
        self.intercept = nn.Parameter(intercept)
        triangle = PyroParam(scale_tril, constraint=constraints.lower_cholesky)
        self.scale_tril = cast(Tensor, triangle)

    @classmethod
    def exact(cls, model: LinearGaussian) -> "LinearGuide":
        """Build the exact posterior of the model as it is now."""
        with torch.no_grad():
            intercept, covariance = model.posterior(torch.zeros_like(model.bias)[None])
            slope = covariance @ model.weight.T / model.sigma**2
            return cls(slope, intercept[0], torch.linalg.cholesky(covariance))

    def forward(self, x: Tensor) -> Tensor:
        """Sample ``z`` in the plate ``"data"``.

        Args:
            x: Data, shape ``(batch, num_features)``.
        """
        mean = x @ self.slope.T + self.intercept
        posterior = dist.MultivariateNormal(mean, scale_tril=self.scale_tril)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", posterior)
