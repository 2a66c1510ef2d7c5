"""Guides for radon: all latents in one vector, or a county's latent from an encoder of its houses.

Example:
    >>> from models.radon import data, model
    >>> houses = data(num_counties=10)
    >>> guide = GUIDES["set-encoder"](model)
    >>> guide.sample_posterior(4, *houses)["eta"].shape
    torch.Size([4, 10])
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import pyro_ext as px
from guides.eight_schools import full_covariance, mean_field
from pyro_ext.nn import SetEncoder

__all__ = ["GUIDES", "HouseEncoder", "set_encoder"]


class HouseEncoder(nn.Module):
    """Features of a county, from the set of its houses and its uranium.

    Args:
        out_features: Size of the features.
    """

    def __init__(self, *, out_features: int = 16) -> None:
        super().__init__()
        self.houses = SetEncoder(2, out_features=out_features)

    def forward(self, y: Tensor, x: Tensor, mask: Tensor, u: Tensor) -> Tensor:
        """Return the features, shape ``(counties, out_features + 1)``; the model's arguments."""
        houses = self.houses(torch.stack([y, x], -1), mask)
        return torch.cat([houses, u.unsqueeze(-1)], -1)


def set_encoder(
    model: Callable[..., Any], *, global_family: px.Family | None = None, **options: Any
) -> px.AutoAmortized:
    """Build a structured guide: q(globals) and q(county | globals, its houses).

    Args:
        model: The model, centred or not.
        global_family: Family of the globals; a full covariance if None.
        **options: Further arguments of :class:`pyro_ext.AutoAmortized`.
    """
    return px.AutoAmortized(
        model,
        HouseEncoder(),
        plate="counties",
        family=px.Diagonal(),
        global_family=px.FullCovariance() if global_family is None else global_family,
        condition_on_globals=True,
        **options,
    )


GUIDES: Mapping[str, Callable[..., px.AutoJoint | px.AutoAmortized]] = {
    "mean-field": mean_field,
    "full-covariance": full_covariance,
    "set-encoder": set_encoder,
}
