"""Distances between two samples, as arrays of shape ``(draws, dim)``."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_ext.diagnostics._types import Array
from pyro_ext.ratio.critics import QuadraticCritic
from pyro_ext.ratio.divergences import jsd
from pyro_ext.ratio.report import report

__all__ = [
    "TwoSample",
    "classifier_test",
    "covariance_error",
    "ecdf_difference",
    "mmd_test",
    "sliced_wasserstein",
]

_PROJECTIONS = 200
_MAX_DRAWS = 1000
_QUANTILES = 1000


@dataclass(frozen=True)
class TwoSample:
    """A statistic that is larger the more two samples differ, and its p-value.

    Args:
        value: The statistic.
        p_value: Chance of a value as large if both samples had one distribution.
    """

    value: float
    p_value: float


def covariance_error(left: Tensor, right: Tensor) -> float:
    r"""Return the relative error of the covariance in the coordinates in which ``right`` is white.

    .. math:: \lVert L^{-1} C L^{-\top} - I \rVert_F / \sqrt D, \qquad C_r = L L^\top

    Args:
        left: Draws, shape ``(draws, dim)``.
        right: Reference draws.
    """
    dim = right.shape[1]
    covariance = _covariance(right)
    ridge = 1e-10 * covariance.diagonal().mean() * torch.eye(dim).to(right)
    factor = torch.linalg.cholesky(covariance + ridge)
    half = torch.linalg.solve_triangular(factor, _covariance(left), upper=False)
    white = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return (torch.linalg.norm(white - torch.eye(dim).to(white)) / dim**0.5).item()


def sliced_wasserstein(left: Tensor, right: Tensor, generator: torch.Generator) -> float:
    """Return the mean 1-Wasserstein distance of random one-dimensional projections.

    Args:
        left: Draws, shape ``(draws, dim)``.
        right: Others.
        generator: Draws the directions.
    """
    directions = torch.randn(left.shape[1], _PROJECTIONS, generator=generator, dtype=left.dtype)
    directions = directions / directions.norm(dim=0)
    levels = (torch.arange(_QUANTILES, dtype=left.dtype) + 0.5) / _QUANTILES
    quantiles = [torch.quantile(draws @ directions, levels, dim=0) for draws in (left, right)]
    return (quantiles[0] - quantiles[1]).abs().mean().item()


def mmd_test(
    left: Tensor, right: Tensor, generator: torch.Generator, num_permutations: int = 200
) -> TwoSample:
    """Return the unbiased squared maximum mean discrepancy and its permutation p-value.

    The kernel is Gaussian, its width the median distance. It looks at a thousand draws of each.

    Args:
        left: Draws, shape ``(draws, dim)``.
        right: Others.
        generator: Draws the permutations.
        num_permutations: How many.
    """
    left, right = _thin(left), _thin(right)
    both = torch.cat([left, right])
    squares = torch.cdist(both, both).square()
    # The diagonal is left out: a draw is no distance from itself.
    off = ~torch.eye(len(both), dtype=torch.bool)
    kernel = (-squares / squares[off].median().clamp(min=1e-300)).exp() * off
    m, n = len(left), len(right)
    sides = torch.zeros(len(both), num_permutations + 1, dtype=both.dtype)
    sides[:m, 0] = 1
    for column in range(1, num_permutations + 1):
        sides[torch.randperm(len(both), generator=generator)[:m], column] = 1
    other = 1 - sides
    own = (sides * (kernel @ sides)).sum(0) / (m * (m - 1))
    theirs = (other * (kernel @ other)).sum(0) / (n * (n - 1))
    cross = (sides * (kernel @ other)).sum(0) / (m * n)
    values = own + theirs - 2 * cross
    beyond = (values[1:] >= values[0]).sum().item()
    return TwoSample(values[0].item(), (1 + beyond) / (1 + num_permutations))


def classifier_test(left: Tensor, right: Tensor, generator: torch.Generator) -> TwoSample:
    """Return how well a critic tells the samples apart on draws it has not seen.

    It is a quadratic critic, which sees wrong means, scales and correlations. Its accuracy is 0.5
    where there is nothing to see.

    Args:
        left: Draws, shape ``(draws, dim)``.
        right: Others.
        generator: Splits the draws.

    Returns:
        Held-out accuracy, and its p-value.
    """
    count = min(len(left), len(right))
    sides = [_shuffled(draws, generator)[:count] for draws in (left, right)]
    train = [side[: count // 2] for side in sides]
    both = torch.cat(train)
    centre, scale = both.mean(0), both.std(0).clamp(min=1e-300)
    train = [_standard(side, centre, scale) for side in train]
    test = [_standard(side[count // 2 :], centre, scale) for side in sides]
    critic = _fitted_critic(*train)
    with torch.no_grad():
        found = report(*(critic(side) for side in test))
    return TwoSample(found.accuracy, found.p_value)


def ecdf_difference(left: Tensor, right: Tensor) -> Array:
    """Return the largest difference of the empirical distribution functions of each coordinate.

    Args:
        left: Draws, shape ``(draws, dim)``.
        right: Others.
    """
    places = torch.cat([left, right]).T.contiguous().sort(1).values
    levels = [
        torch.searchsorted(draws.T.contiguous().sort(1).values, places, right=True) / len(draws)
        for draws in (left, right)
    ]
    return np.asarray((levels[0] - levels[1]).abs().amax(1))


def _covariance(draws: Tensor) -> Tensor:
    centred = draws - draws.mean(0)
    return centred.T @ centred / (len(draws) - 1)


def _thin(draws: Tensor) -> Tensor:
    """Return evenly spaced draws, few enough for all pairs."""
    if len(draws) <= _MAX_DRAWS:
        return draws
    return draws[torch.linspace(0, len(draws) - 1, _MAX_DRAWS).long()]


def _shuffled(draws: Tensor, generator: torch.Generator) -> Tensor:
    return draws[torch.randperm(len(draws), generator=generator)]


def _standard(draws: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    return ((draws - centre) / scale).clamp(-6, 6)


def _fitted_critic(left: Tensor, right: Tensor) -> QuadraticCritic:
    """Return a critic at the top of its bound, which is concave in its weights, less a ridge."""
    critic = QuadraticCritic(left.shape[1]).to(left)
    params = list(critic.parameters())
    optim = torch.optim.LBFGS(params, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optim.zero_grad()
        ridge = torch.stack([param.square().sum() for param in params]).sum() / 2
        value = ridge * left.shape[1] - 2 * len(left) * jsd(critic(left), critic(right))
        value.backward()
        return value

    with torch.enable_grad():
        optim.step(loss)
    return critic
