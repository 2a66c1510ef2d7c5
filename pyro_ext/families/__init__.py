"""Families q(z; π): each turns an unconstrained vector π into a distribution over R^D."""

from pyro_ext.families.diagonal import Diagonal as Diagonal
from pyro_ext.families.family import Family as Family
from pyro_ext.families.flow import Flow as Flow
from pyro_ext.families.full_covariance import FullCovariance as FullCovariance
from pyro_ext.families.householder import Householder as Householder
from pyro_ext.families.implicit import Implicit as Implicit
from pyro_ext.families.low_rank import LowRank as LowRank
from pyro_ext.families.mixture import Mixture as Mixture

__all__ = [
    "Diagonal",
    "Family",
    "Flow",
    "FullCovariance",
    "Householder",
    "Implicit",
    "LowRank",
    "Mixture",
]
