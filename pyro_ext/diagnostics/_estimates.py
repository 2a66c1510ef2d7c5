"""Bounds and estimates from log weights, with their standard errors."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.bounds import cubo, iwae, jackknife

__all__ = ["Elements", "Estimate", "estimates", "ladder_sizes", "log_mean", "mean"]


_HUGE = 1e8


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate in nats.

    Args:
        value: The estimate.
        se: Its standard error.

    Example:
        >>> print(Estimate(-31.3113, 0.0123))
        -31.311 ± 0.012
    """

    value: float
    se: float

    def __str__(self) -> str:
        """Value ± standard error, with two digits of the error."""
        if not math.isfinite(self.value):
            return str(self.value)
        if not math.isfinite(self.se):
            return f"{self.value:.2f} ± {self.se}"
        if max(abs(self.value), self.se) >= _HUGE:
            return f"{self.value:.3g} ± {self.se:.2g}"
        digits = 2 if self.se == 0 else min(6, max(0, 1 - math.floor(math.log10(self.se))))
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


@dataclass(frozen=True, eq=False)
class Elements:
    """Values and standard errors per datapoint, or of the joint weight as a scalar.

    Example:
        >>> found = Elements(torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.4]))
        >>> print(found.total())
        3.00 ± 0.50
    """

    value: Float[Tensor, " *batch"]
    se: Float[Tensor, " *batch"]

    def total(self) -> Estimate:
        """Return the sum over independent elements."""
        return Estimate(self.value.sum().item(), self.se.square().sum().sqrt().item())

    def average(self) -> Estimate:
        """Return the mean over independent elements."""
        total, num = self.total(), self.value.numel()
        return Estimate(total.value / num, total.se / num)


def ladder_sizes(num_draws: int, num_particles: int) -> list[int]:
    """Return the powers of ten up to a number of draws, and a number of particles.

    Args:
        num_draws: The largest possible.
        num_particles: To be among them.
    """
    powers = (10**power for power in range(len(str(num_draws))))
    return sorted({*powers, num_particles})


def mean(samples: Tensor) -> Elements:
    """Return the mean of independent draws, ``(draws, *batch)``.

    Args:
        samples: The draws.
    """
    return Elements(samples.mean(0), samples.std(0) / len(samples) ** 0.5)


def log_mean(log_w: Tensor) -> Elements:
    """Return the log of the mean of weights, corrected to first order for the logarithm's bias.

    Args:
        log_w: Log weights, shape ``(draws, *batch)``.
    """
    relative = _relative_variance(log_w)
    return Elements(iwae(log_w) + relative / 2, relative.sqrt())


def estimates(
    log_w: Tensor, smoothed: Tensor, num_particles: int
) -> tuple[dict[str, Elements], dict[int, Elements]]:
    """Return all bounds per element by name, and the IWAE bounds by number of particles.

    Args:
        log_w: Log weights, shape ``(draws, *batch)``.
        smoothed: The same, Pareto-smoothed and normalized.
        num_particles: K of the IWAE bound.
    """
    log_w = log_w.double()
    ladder = {size: _iwae(log_w, size) for size in ladder_sizes(len(log_w), num_particles)}
    sets = _sets(log_w, num_particles)
    found = {
        "elbo": mean(log_w),
        "iwae": ladder[num_particles],
        "log_evidence": log_mean(log_w),
        "psis": _smoothed_mean(log_w, smoothed),
        "cubo": Elements(cubo(log_w), _relative_variance(2 * log_w).sqrt() / 2),
    }
    if num_particles > 1:
        values = jackknife(sets)
        many = values.shape[0] > 1
        found["jackknife"] = mean(values) if many else Elements(values[0], found["iwae"].se)
    return found, ladder


def _sets(log_w: Tensor, size: int) -> Tensor:
    """Return the draws in sets, ``(size, sets, *batch)``; those left over stay out."""
    num = len(log_w) // size
    return log_w[: num * size].unflatten(0, (num, size)).movedim(1, 0)


def _iwae(log_w: Tensor, size: int) -> Elements:
    sets = _sets(log_w, size)
    bounds = iwae(sets)
    if len(bounds) > 1:
        return mean(bounds)
    return Elements(bounds[0], _relative_variance(sets[:, 0]).sqrt())


def _smoothed_mean(log_w: Tensor, smoothed: Tensor) -> Elements:
    """Return the log of the mean of the smoothed weights.

    Smoothing leaves the smaller weights as they are, up to the factor that normalizes them all.
    """
    num = len(log_w)
    middle = log_w.kthvalue((num + 1) // 2, 0, keepdim=True).indices
    value = (log_w.gather(0, middle) - smoothed.to(log_w).gather(0, middle))[0] - math.log(num)
    plain = iwae(log_w)
    value = torch.where(value.isfinite(), value, plain)
    relative = (smoothed.to(log_w).exp() * num).var(0) / num
    return Elements(value, relative.sqrt())


def _relative_variance(log_w: Tensor) -> Tensor:
    """Return the variance of the mean of the weights over its square."""
    return log_w.softmax(0).var(0) * len(log_w)
