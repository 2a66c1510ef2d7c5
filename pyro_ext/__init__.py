"""Guides, bounds and diagnostics for variational inference with Pyro."""

from pyro_ext import bounds as bounds
from pyro_ext.autoguide import AutoAmortized as AutoAmortized
from pyro_ext.autoguide import AutoJoint as AutoJoint
from pyro_ext.autoguide import AutoPerDatapoint as AutoPerDatapoint
from pyro_ext.diagnostics import Annealing as Annealing
from pyro_ext.diagnostics import Comparison as Comparison
from pyro_ext.diagnostics import Estimate as Estimate
from pyro_ext.diagnostics import Evidence as Evidence
from pyro_ext.diagnostics import KHat as KHat
from pyro_ext.diagnostics import ais as ais
from pyro_ext.diagnostics import bdmc as bdmc
from pyro_ext.diagnostics import compare as compare
from pyro_ext.diagnostics import evidence as evidence
from pyro_ext.diagnostics import from_draws as from_draws
from pyro_ext.diagnostics import from_mcmc as from_mcmc
from pyro_ext.diagnostics import k_hat as k_hat
from pyro_ext.diagnostics import k_hat_joint as k_hat_joint
from pyro_ext.diagnostics import k_hat_per_datapoint as k_hat_per_datapoint
from pyro_ext.diagnostics import to_datatree as to_datatree
from pyro_ext.families import Diagonal as Diagonal
from pyro_ext.families import Family as Family
from pyro_ext.families import FullCovariance as FullCovariance
from pyro_ext.families import LowRank as LowRank
from pyro_ext.losses import CIWAE as CIWAE
from pyro_ext.losses import CUBO as CUBO
from pyro_ext.losses import ELBO as ELBO
from pyro_ext.losses import IWAE as IWAE
from pyro_ext.losses import MIWAE as MIWAE
from pyro_ext.losses import PIWAE as PIWAE
from pyro_ext.losses import Annealed as Annealed
from pyro_ext.losses import CosineSchedule as CosineSchedule
from pyro_ext.losses import JackknifeIWAE as JackknifeIWAE
from pyro_ext.losses import LinearSchedule as LinearSchedule
from pyro_ext.losses import Renyi as Renyi
from pyro_ext.losses import Sleep as Sleep
from pyro_ext.losses import WakeSleep as WakeSleep
from pyro_ext.minibatch import MiniBatch as MiniBatch
from pyro_ext.training import Run as Run
from pyro_ext.training import fit as fit
from pyro_ext.weights import LogWeights as LogWeights
from pyro_ext.weights import Term as Term
from pyro_ext.weights import log_weights as log_weights

__version__ = "0.1.0"
