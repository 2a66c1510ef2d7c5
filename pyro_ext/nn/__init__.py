"""Networks that models and guides share."""

from pyro_ext.nn.mlp import MLP

__all__ = ["MLP"]
