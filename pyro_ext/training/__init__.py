"""Training: many steps, one call."""

from pyro_ext.training.auto import AutoRun as AutoRun
from pyro_ext.training.fit import fit as fit
from pyro_ext.training.run import Run as Run

__all__ = ["AutoRun", "Run", "fit"]
