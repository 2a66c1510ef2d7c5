"""Guides, bounds and diagnostics for variational inference with Pyro."""

from pyro_ext import bounds as bounds
from pyro_ext.autoguide import AutoAmortized as AutoAmortized
from pyro_ext.autoguide import AutoJoint as AutoJoint
from pyro_ext.autoguide import AutoPerDatapoint as AutoPerDatapoint
from pyro_ext.families import Diagonal as Diagonal
from pyro_ext.families import Family as Family
from pyro_ext.families import FullCovariance as FullCovariance
from pyro_ext.losses import ELBO as ELBO
from pyro_ext.losses import IWAE as IWAE
from pyro_ext.minibatch import MiniBatch as MiniBatch
from pyro_ext.training import Run as Run
from pyro_ext.training import fit as fit
from pyro_ext.weights import LogWeights as LogWeights
from pyro_ext.weights import Term as Term
from pyro_ext.weights import log_weights as log_weights

__version__ = "0.1.0"
