"""Fits without settings: start, scale, steps, family and verdict are found."""

from pyro_ext.training.auto.run import AutoRun as AutoRun
from pyro_ext.training.auto.run import LocalRun as LocalRun
from pyro_ext.training.auto.search import fit_auto as fit_auto
from pyro_ext.training.auto.verdict import Verdict as Verdict

__all__ = ["AutoRun", "LocalRun", "Verdict", "fit_auto"]
