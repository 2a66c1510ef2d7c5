"""Training: many steps, one call."""

from pyro_ext.training.auto import AutoRun as AutoRun
from pyro_ext.training.auto import LocalRun as LocalRun
from pyro_ext.training.callbacks import Progress as Progress
from pyro_ext.training.callbacks import TensorBoard as TensorBoard
from pyro_ext.training.checkpoints import Checkpoints as Checkpoints
from pyro_ext.training.compiled import CompiledSVI as CompiledSVI
from pyro_ext.training.fit import fit as fit
from pyro_ext.training.holdout import Holdout as Holdout
from pyro_ext.training.holdout import Plateau as Plateau
from pyro_ext.training.refine import refine as refine
from pyro_ext.training.run import Run as Run
from pyro_ext.training.serving import load_pair as load_pair
from pyro_ext.training.serving import save_pair as save_pair

__all__ = [
    "AutoRun",
    "Checkpoints",
    "CompiledSVI",
    "Holdout",
    "LocalRun",
    "Plateau",
    "Progress",
    "Run",
    "TensorBoard",
    "fit",
    "load_pair",
    "refine",
    "save_pair",
]
