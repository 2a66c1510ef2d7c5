"""Training: many steps, one call."""

from pyro_ext.training.compiled import CompiledSVI as CompiledSVI
from pyro_ext.training.fit import Run as Run
from pyro_ext.training.fit import fit as fit
from pyro_ext.training.refine import refine as refine

__all__ = ["CompiledSVI", "Run", "fit", "refine"]
