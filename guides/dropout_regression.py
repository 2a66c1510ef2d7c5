"""Guides for the Bayesian reading of dropout: all weights in one normal vector.

Example:
    >>> from models.dropout_regression import data, model
    >>> guide = GUIDES["full-covariance"](model)
    >>> guide.setup(*data())
    >>> guide.num_params  # 10 means, 10 scales and 45 entries below the diagonal
    65
"""

from collections.abc import Callable, Mapping

import pyro_ext as px
from guides.eight_schools import full_covariance, mean_field

__all__ = ["GUIDES"]

GUIDES: Mapping[str, Callable[..., px.AutoJoint]] = {
    "mean-field": mean_field,
    "full-covariance": full_covariance,
}
