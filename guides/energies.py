"""Guides for two-dimensional energies: a Gaussian, and flows of three kinds on top of it.

Example:
    >>> from models.energies import ENERGIES
    >>> guide = GUIDES["iaf"](ENERGIES["banana"])
    >>> guide.sample_posterior(5)["z"].shape
    torch.Size([5, 2])
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro_ext as px
from models.energies import Energy

__all__ = ["GUIDES", "gaussian", "iaf", "nsf", "planar"]


def gaussian(model: Energy, **options: Any) -> px.AutoJoint:
    """Build a normal of full covariance.

    Args:
        model: The energy.
        **options: Further arguments of :class:`pyro_ext.AutoJoint`.
    """
    return px.AutoJoint(model, family=px.FullCovariance(), init_scale=1.0, **options)


def planar(model: Energy, *, num_transforms: int = 8, **options: Any) -> px.AutoJoint:
    """Build planar flows, which have no inverse.

    Args:
        model: The energy.
        num_transforms: Number of transforms.
        **options: Further arguments of :class:`pyro_ext.AutoJoint`.
    """
    family = px.Flow("planar", num_transforms=num_transforms)
    return px.AutoJoint(model, family=family, init_scale=1.0, **options)


def iaf(model: Energy, *, num_transforms: int = 4, **options: Any) -> px.AutoJoint:
    """Build inverse autoregressive flows: one pass to draw.

    Args:
        model: The energy.
        num_transforms: Number of transforms.
        **options: Further arguments of :class:`pyro_ext.AutoJoint`.
    """
    family = px.Flow("iaf", num_transforms=num_transforms, hidden=(32, 32))
    return px.AutoJoint(model, family=family, init_scale=1.0, **options)


def nsf(model: Energy, *, num_transforms: int = 3, **options: Any) -> px.AutoJoint:
    """Build neural spline flows.

    Args:
        model: The energy.
        num_transforms: Number of transforms.
        **options: Further arguments of :class:`pyro_ext.AutoJoint`.
    """
    family = px.Flow("nsf", num_transforms=num_transforms, hidden=(32, 32))
    return px.AutoJoint(model, family=family, init_scale=1.0, **options)


GUIDES: Mapping[str, Callable[..., px.AutoJoint]] = {
    "gaussian": gaussian,
    "planar": planar,
    "iaf": iaf,
    "nsf": nsf,
}
