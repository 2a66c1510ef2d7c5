"""Losses for Pyro's SVI: a bound and a gradient estimator each."""

from pyro_ext.losses.annealed import Annealed as Annealed
from pyro_ext.losses.ciwae import CIWAE as CIWAE
from pyro_ext.losses.cubo import CUBO as CUBO
from pyro_ext.losses.elbo import ELBO as ELBO
from pyro_ext.losses.iwae import IWAE as IWAE
from pyro_ext.losses.jackknife import JackknifeIWAE as JackknifeIWAE
from pyro_ext.losses.loss import BoundLoss as BoundLoss
from pyro_ext.losses.miwae import MIWAE as MIWAE
from pyro_ext.losses.piwae import PIWAE as PIWAE
from pyro_ext.losses.renyi import Renyi as Renyi
from pyro_ext.losses.schedule import CosineSchedule as CosineSchedule
from pyro_ext.losses.schedule import LinearSchedule as LinearSchedule
from pyro_ext.losses.sleep import Sleep as Sleep
from pyro_ext.losses.wake_sleep import WakeSleep as WakeSleep

__all__ = [
    "CIWAE",
    "CUBO",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "Annealed",
    "BoundLoss",
    "CosineSchedule",
    "JackknifeIWAE",
    "LinearSchedule",
    "Renyi",
    "Sleep",
    "WakeSleep",
]
