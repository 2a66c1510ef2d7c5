"""Training: many steps, one call."""

from pyro_ext.training.fit import Run as Run
from pyro_ext.training.fit import fit as fit

__all__ = ["Run", "fit"]
