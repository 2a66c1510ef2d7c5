"""Conjugate models: exact evidence and exact posterior, to test guides, losses and bounds against.

Every model has its data as a field, ``model(*args)`` and ``guide(*args)`` as Pyro callables on the
same arguments, where ``guide`` is the exact posterior, and answers in closed form in the dtype of
the data. All observations are in the plate ``"data"``. It mini-batches in the three usual ways:
call with some rows of the data, build with ``subsample_size=B``, or call with
``subsample=indices``.

A mask of the observations marks missing data: a masked row adds nothing to the evidence, and its
local latent keeps its prior.
"""

from pyro_ext.testing.conjugate._base import ConjugateModel, Posterior
from pyro_ext.testing.conjugate.gamma_poisson import GammaPoisson
from pyro_ext.testing.conjugate.linear_regression import LinearRegression
from pyro_ext.testing.conjugate.normal import NormalGlobal, NormalHierarchy, NormalLocal

__all__ = [
    "ConjugateModel",
    "GammaPoisson",
    "LinearRegression",
    "NormalGlobal",
    "NormalHierarchy",
    "NormalLocal",
    "Posterior",
]
