"""Ground truth for tests, of this package and of third parties."""

from pyro_ext.testing.checks import check_guide, check_loss
from pyro_ext.testing.conjugate import (
    ConjugateModel,
    GammaPoisson,
    LinearRegression,
    NormalGlobal,
    NormalHierarchy,
    NormalLocal,
    Posterior,
)

__all__ = [
    "ConjugateModel",
    "GammaPoisson",
    "LinearRegression",
    "NormalGlobal",
    "NormalHierarchy",
    "NormalLocal",
    "Posterior",
    "check_guide",
    "check_loss",
]
