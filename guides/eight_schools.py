"""Guides for eight schools: all ten latents in one normal vector.

Example:
    >>> from models.eight_schools import data, model
    >>> guide = GUIDES["full-covariance"](model)
    >>> guide.setup(*data())
    >>> guide.num_params  # 10 means, 10 scales and 45 entries below the diagonal
    65
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro_ext as px

__all__ = ["GUIDES", "full_covariance", "mean_field"]


def mean_field(model: Callable[..., Any], **options: Any) -> px.AutoJoint:
    """Build ten independent normals.

    Args:
        model: The model, centred or not.
        **options: Further arguments of :class:`pyro_ext.AutoJoint`.
    """
    return px.AutoJoint(model, family=px.Diagonal(), **options)


def full_covariance(model: Callable[..., Any], **options: Any) -> px.AutoJoint:
    """Build one normal with a full covariance.

    Args:
        model: The model, centred or not.
        **options: Further arguments of :class:`pyro_ext.AutoJoint`.
    """
    return px.AutoJoint(model, family=px.FullCovariance(), **options)


GUIDES: Mapping[str, Callable[..., px.AutoJoint]] = {
    "mean-field": mean_field,
    "full-covariance": full_covariance,
}
