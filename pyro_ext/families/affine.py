"""The affine map ε ↦ μ + S ε as a torch transform."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.distributions import Transform, constraints

from pyro_ext.families.linear_map import LinearMap

__all__ = ["Affine"]


class Affine(Transform):
    r"""The map :math:`\varepsilon \mapsto z = \mu + S \varepsilon`.

    It makes a normal distribution of standard noise, and is the last step of every flow.

    Args:
        loc: μ, shape ``(*batch, dim)``.
        linear: S.

    Example:
        >>> from pyro_ext.families.linear_map import Scale
        >>> transform = Affine(torch.ones(2), Scale(torch.tensor([2.0, 4.0])))
        >>> transform(torch.ones(2)), transform.inv(torch.tensor([3.0, 5.0]))
        (tensor([3., 5.]), tensor([1., 1.]))
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Float[Tensor, " *batch dim"], linear: LinearMap) -> None:
        super().__init__()
        self.loc, self.linear = loc, linear

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.linear.apply(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.linear.solve(y - self.loc)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det S|, shape ``(*sample, *batch)``."""
        shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        return self.linear.log_abs_det().expand(shape)

    def forward_shape(self, shape: Any) -> Size:
        """Return the shape of z for a shape of ε."""
        return Size(torch.broadcast_shapes(tuple(shape), self.loc.shape))
