"""Training: many steps, one call."""

from pyro_ext.training.auto import AutoRun as AutoRun
from pyro_ext.training.auto import LocalRun as LocalRun
from pyro_ext.training.compiled import CompiledSVI as CompiledSVI
from pyro_ext.training.fit import fit as fit
from pyro_ext.training.refine import refine as refine
from pyro_ext.training.run import Run as Run

__all__ = ["AutoRun", "CompiledSVI", "LocalRun", "Run", "fit", "refine"]
