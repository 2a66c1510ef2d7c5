"""The distribution of a flow, and its map from noise."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Transform, constraints

from pyro_ext.families._steps import Step
from pyro_ext.families.affine import Affine
from pyro_ext.families.affine_normal import standard_normal_log_prob
from pyro_ext.families.own_draw import OwnDraw

__all__ = ["FlowDistribution", "FlowTransform"]


class FlowTransform(Transform):
    r"""The map :math:`\varepsilon \mapsto \mu + S\, T_n(\cdots T_1(\varepsilon))`.

    Args:
        steps: T_1 to T_n.
        affine: The map by μ and S.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, steps: Sequence[Step], affine: Affine) -> None:
        super().__init__()
        self.steps, self.affine = tuple(steps), affine

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log |det ∂y/∂x|, in one pass."""
        total = []
        for step in self.steps:
            x, log_det = step.forward(x)
            total.append(log_det)
        y = self.affine(x)
        return y, sum(total, start=self.affine.log_abs_det_jacobian(x, y))

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |det ∂y/∂x|, in one pass."""
        x = self.affine.inv(y)
        total = []
        for step in reversed(self.steps):
            x, log_det = step.inverse(x)
            total.append(log_det)
        return x, sum(total, start=self.affine.log_abs_det_jacobian(x, y))

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det ∂y/∂x|, shape ``(*sample, *batch)``."""
        return self.forward_and_log_det(x)[1]

    def forward_shape(self, shape: Any) -> Size:
        """Return the shape of y for a shape of x."""
        return self.affine.forward_shape(shape)


class FlowDistribution(TorchDistribution):
    r"""Distribution of z = f(ε) for standard normal noise and a bijection f.

    .. math:: \log q(z) = \log \mathcal{N}(\varepsilon \mid 0, I)
        - \log \lvert\det \partial f / \partial \varepsilon\rvert

    The latest draw is scored by its own noise; any other value, also a detached copy of that draw,
    by the exact inverse, with gradients through value and parameters.

    Args:
        transform: f, whose μ has shape ``(*batch, dim)``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transform: FlowTransform, *, validate_args: bool | None = None) -> None:
        self.transform = transform
        self._own: OwnDraw | None = None
        loc = transform.affine.loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        """Return the same distribution with a larger batch shape, without copying parameters."""
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.transform, new._own = self.transform, None
        super(FlowDistribution, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z, and remember its density."""
        loc = self.transform.affine.loc
        shape = self._extended_shape(Size(sample_shape))
        noise = torch.randn(shape, dtype=loc.dtype, device=loc.device)
        value, log_det = self.transform.forward_and_log_det(noise)
        log_prob = standard_normal_log_prob(noise) - log_det
        self._own = OwnDraw(value, log_prob, torch.is_grad_enabled())
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value), shape ``(*sample, *batch)``."""
        if self._validate_args:
            self._validate_sample(value)
        if self._own is not None and self._own.scores(value):
            return self._own.log_prob
        noise, log_det = self.transform.inverse_and_log_det(value)
        return standard_normal_log_prob(noise) - log_det
