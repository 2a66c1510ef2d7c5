"""Density ratios: critics, bounds on divergences, adversarial losses, GAN objectives, games."""

from pyro_ext.ratio.adversarial import Adversarial as Adversarial
from pyro_ext.ratio.conjugate import DIVERGENCES as DIVERGENCES
from pyro_ext.ratio.conjugate import FDivergence as FDivergence
from pyro_ext.ratio.critics import MLPCritic as MLPCritic
from pyro_ext.ratio.critics import QuadraticCritic as QuadraticCritic
from pyro_ext.ratio.density_ratio import DensityRatio as DensityRatio
from pyro_ext.ratio.divergences import dv as dv
from pyro_ext.ratio.divergences import infonce as infonce
from pyro_ext.ratio.divergences import jsd as jsd
from pyro_ext.ratio.divergences import nwj as nwj
from pyro_ext.ratio.estimate import RatioEstimate as RatioEstimate
from pyro_ext.ratio.estimate import RatioWarning as RatioWarning
from pyro_ext.ratio.game import Game as Game
from pyro_ext.ratio.game import Stability as Stability
from pyro_ext.ratio.gan import maximum_likelihood as maximum_likelihood
from pyro_ext.ratio.gan import minimax as minimax
from pyro_ext.ratio.gan import non_saturating as non_saturating
from pyro_ext.ratio.objective import Bound as Bound
from pyro_ext.ratio.objective import Objective as Objective
from pyro_ext.ratio.phase_portrait import phase_portrait as phase_portrait
from pyro_ext.ratio.report import CriticReport as CriticReport
from pyro_ext.ratio.telescope import TelescopingRatio as TelescopingRatio
from pyro_ext.ratio.trainer import CriticTrainer as CriticTrainer
from pyro_ext.ratio.trainer import Regularizer as Regularizer
from pyro_ext.ratio.trainer import r1_penalty as r1_penalty

__all__ = [
    "DIVERGENCES",
    "Adversarial",
    "Bound",
    "CriticReport",
    "CriticTrainer",
    "DensityRatio",
    "FDivergence",
    "Game",
    "MLPCritic",
    "Objective",
    "QuadraticCritic",
    "RatioEstimate",
    "RatioWarning",
    "Regularizer",
    "Stability",
    "TelescopingRatio",
    "dv",
    "infonce",
    "jsd",
    "maximum_likelihood",
    "minimax",
    "non_saturating",
    "nwj",
    "phase_portrait",
    "r1_penalty",
]
