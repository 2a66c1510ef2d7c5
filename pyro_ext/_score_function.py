"""What of a draw's dependence on the guide's parameters its path leaves out."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from pyro_ext._precision import full_precision, widened
from pyro_ext.structure import is_random, unwrapped

__all__ = ["is_reparameterized", "score_function"]


def is_reparameterized(site: Any) -> bool:
    """Tell whether the path of a guide site's draws has all of their gradient.

    Where proposals are rejected it has not, although there is one. A ``pyro.factor`` says whether
    those have that it is the density of.

    Args:
        site: A site of a guide's trace.
    """
    fn = site["fn"]
    if isinstance(fn, dist.Unit):
        return bool(fn.has_rsample)
    return not is_random(site) or (fn.has_rsample and not _rejects(fn))


def _rejects(fn: Any) -> bool:
    """Tell whether a distribution, or one inside it, has a score function beside its path."""
    fn = unwrapped(fn)
    if isinstance(fn, TransformedDistribution):
        return _rejects(fn.base_dist)
    own = getattr(type(fn), "score_parts", None)
    return fn.has_rsample and own not in (None, dist.Distribution.score_parts)


def score_function(site: Any) -> Tensor:
    r"""Return log of the density that the noise of a site without reparameterization has.

    .. math:: \nabla E_q[f(z)] = E[\nabla f(z(\epsilon)) + f \nabla \log \pi(\epsilon)],
        \qquad \epsilon \sim \pi

    A mask hides a draw's density and not what it does to other sites: it has no part in this.

    Args:
        site: A site of a guide's trace.
    """
    with full_precision():
        found: Tensor = widened(_score(site["fn"], site["value"]))
    return found


def _score(fn: Any, value: Tensor) -> Tensor:
    if isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        return _score(fn.base_dist, value)
    if isinstance(fn, Independent):
        return sum_rightmost(_score(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    if not fn.has_rsample:
        log_prob: Tensor = fn.log_prob(value)
        return log_prob
    if isinstance(fn, TransformedDistribution):
        for transform in reversed(fn.transforms):
            value = transform.inv(value)
        return _score(fn.base_dist, value)
    partly: Tensor = fn.score_parts(value).score_function
    return partly
