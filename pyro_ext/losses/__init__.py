"""Losses for Pyro's SVI: a bound and a gradient estimator each."""

from pyro_ext.losses.elbo import ELBO as ELBO
from pyro_ext.losses.iwae import IWAE as IWAE

__all__ = ["ELBO", "IWAE"]
