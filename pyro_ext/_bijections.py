"""The bijection from real numbers to a support, a mixture's too."""

from typing import Any

from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from pyro_ext._supports import bounds

__all__ = ["bijection_to", "support_of_components"]

# In an older torch a mixture has the support of its components.
_MIXTURE: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())


def bijection_to(support: Constraint) -> Transform:
    """Return the bijection to a support, as ``biject_to``, and to that of a mixture.

    Args:
        support: Support of a distribution.

    Raises:
        NotImplementedError: If there is none.
    """
    found: Transform = biject_to(support_of_components(support))
    return found


def support_of_components(support: Constraint) -> Constraint:
    """Return the support that all components of a mixture have, and any other support as it is.

    So is that of a mixture whose components may have bounds of their own.

    Args:
        support: Support of a distribution.
    """
    if isinstance(support, constraints.independent):
        inner = support_of_components(support.base_constraint)
        return constraints.independent(inner, support.reinterpreted_batch_ndims)
    if not isinstance(support, _MIXTURE):
        return support
    base: Constraint = support.base_constraint
    own = any(isinstance(bound, Tensor) and bound.dim() > 0 for bound in bounds(base))
    return support if own else support_of_components(base)
