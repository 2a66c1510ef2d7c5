"""Ground truth for tests, of this package and of third parties."""

from pyro_ext.testing.conjugate import (
    ConjugateModel,
    GammaPoisson,
    LinearRegression,
    NormalGlobal,
    NormalHierarchy,
    NormalLocal,
    Posterior,
)
from pyro_ext.testing.guide_check import check_guide as check_guide
from pyro_ext.testing.loss_check import check_loss as check_loss

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
