"""Density ratios: critics, bounds on divergences, adversarial losses, GAN objectives, games."""

from pyro_ext.ratio.conjugate import DIVERGENCES as DIVERGENCES
from pyro_ext.ratio.conjugate import FDivergence as FDivergence
from pyro_ext.ratio.divergences import dv as dv
from pyro_ext.ratio.divergences import infonce as infonce
from pyro_ext.ratio.divergences import jsd as jsd
from pyro_ext.ratio.divergences import nwj as nwj
from pyro_ext.ratio.objective import Objective as Objective

__all__ = [
    "DIVERGENCES",
    "FDivergence",
    "Objective",
    "dv",
    "infonce",
    "jsd",
    "nwj",
]
