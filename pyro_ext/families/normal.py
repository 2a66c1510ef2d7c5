"""Independent normals that score their latest draw by its own noise."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ext.families.own_draw import OwnDraw

__all__ = ["Normal"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Normal(dist.Normal):
    r"""Normal distributions, one for each entry of their parameters.

    .. math::
        z = \mu + \sigma \varepsilon, \qquad
        \log q(z) = -\tfrac12 \varepsilon^2 - \log \sigma - \tfrac12 \log 2\pi

    Any other value than the latest draw, also a detached copy of it, is scored by (z - μ) / σ.

    Example:
        >>> q = Normal(torch.zeros(2), torch.ones(2))
        >>> z = q.rsample()
        >>> torch.allclose(q.log_prob(z), q.log_prob(z.clone()))
        True
    """

    _own: OwnDraw | None = None

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z = μ + σ ε."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        value: Tensor = self.loc + noise * self.scale
        log_prob = -0.5 * noise.square() - _HALF_LOG_2PI
        self._own = OwnDraw(value, log_prob, torch.is_grad_enabled())
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q of each entry."""
        if self._own is not None and self._own.scores(value):
            return self._own.log_prob - self.scale.log()
        scored: Tensor = super().log_prob(value)
        return scored
