"""Importance correction: draws of a heavier-tailed copy of the guide, with smoothed weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_ext._psis import smooth
from pyro_ext.training.auto.affine import Map
from pyro_ext.training.auto.density import Density

__all__ = ["Part", "Pool", "defensive", "draw_pool", "flat_latents", "weighted"]

_DEGREES = 5.0


@dataclass(frozen=True)
class Part:
    """One part of a proposal: a map of normal noise, or of Student-t noise, which reaches farther.

    Args:
        q: The map, such as a normal's z = μ + S ε.
        degrees: Degrees of freedom; inf for normal noise.
        dim: Dimension.
    """

    q: Map
    degrees: float
    dim: int

    def draw(self, num: int, generator: torch.Generator) -> Float[Tensor, " num dim"]:
        """Return draws.

        Args:
            num: Number of draws.
            generator: Random numbers.
        """
        options: Any = {"generator": generator, "dtype": torch.float64}
        noise = torch.randn((num, self.dim), **options)
        if self.degrees < math.inf:
            chi = torch.randn((num, int(self.degrees)), **options).square().sum(-1)
            noise = noise * (self.degrees / chi).sqrt().unsqueeze(-1)
        return self.q.forward(noise)[0]

    def log_prob(self, z: Float[Tensor, " draws dim"]) -> Float[Tensor, " draws"]:
        """Return the log density.

        Args:
            z: Points.
        """
        return self.log_density(*self.q.inverse(z))

    def log_density(
        self, noise: Float[Tensor, " draws dim"], log_det: Tensor
    ) -> Float[Tensor, " draws"]:
        """Return the log density of points whose noise is known.

        Args:
            noise: ε.
            log_det: Log |det ∂z/∂ε|.
        """
        square, dim, nu = noise.square().sum(-1), self.dim, self.degrees
        if nu == math.inf:
            log_q = -0.5 * square - dim / 2 * math.log(2 * math.pi)
        else:
            constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2)
            constant -= dim / 2 * math.log(nu * math.pi)
            log_q = constant - (nu + dim) / 2 * torch.log1p(square / nu)
        return log_q - log_det


def defensive(q: Map, dim: int) -> tuple[Part, Part]:
    """Return a map of normal noise and its copy with Student-t noise, which reaches farther.

    Args:
        q: The map.
        dim: Dimension.
    """
    return Part(q, math.inf, dim), Part(q, _DEGREES, dim)


@dataclass(frozen=True)
class Pool:
    """Weighted draws of the posterior.

    Args:
        z: Unconstrained draws, shape ``(draws, dim)``.
        weights: Their smoothed weights, which add up to one, shape ``(draws,)``.
        k_hat: Shape of the weights' tail.
        threshold: Largest k-hat with which they can be used.
        log_evidence: Estimate of log p(x).
    """

    z: Tensor
    weights: Tensor
    k_hat: float
    threshold: float
    log_evidence: float

    @property
    def num_tail(self) -> int:
        """Number M of the largest weights, to which k-hat was fitted."""
        return math.ceil(min(len(self.z) / 5, 3 * len(self.z) ** 0.5))

    @property
    def k_error(self) -> float:
        """Standard error of k-hat, (1 + k) / √M."""
        return (1 + max(self.k_hat, 0.0)) / self.num_tail**0.5

    @property
    def inflation(self) -> float:
        r"""How many times larger the tail's errors are than weights of finite variance have them.

        .. math:: S^{(1 - r) / 2}, \qquad
            r = \frac{2 (k - 1) S^{2k + 1} + (1 - 2k) S^{2k} + S^2}{(S - 1)(S - S^{2k})}

        where k is k-hat and one standard error of it, and r the rate at which the mean square
        error of S draws falls.
        """
        k, num = self.k_hat + self.k_error, float(len(self.z))
        if k <= 0:
            return 1.0
        if k >= 1:
            return math.inf
        if abs(k - 0.5) < 1e-3:
            rate = 1 - 1 / math.log(num)
        else:
            top = 2 * (k - 1) * num ** (2 * k + 1) + (1 - 2 * k) * num ** (2 * k) + num**2
            rate = top / ((num - 1) * (num - num ** (2 * k)))
        return num ** ((1 - min(max(rate, 0.0), 1.0)) / 2)

    @property
    def effective(self) -> float:
        """Number of independent draws that they are worth."""
        return float(1 / self.weights.square().sum())

    @property
    def usable(self) -> bool:
        """Whether k-hat allows the weights to be used."""
        return self.k_hat <= self.threshold

    def worst_error(self, values: Float[Tensor, " draws size"]) -> float:
        """Return the largest standard error of a mean, in sds, or of an sd, relative.

        Args:
            values: Functions of the draws.
        """
        _, _, mean_error, sd_error = self.moments(values)
        worst = float(torch.maximum(mean_error, sd_error).max())
        return worst if math.isfinite(worst) else math.inf

    def fault(self, values: Float[Tensor, " draws size"]) -> float:
        """Return a number that is smaller for better draws: their worst error, if usable at all.

        Args:
            values: Functions of the draws.
        """
        worst = self.worst_error(values)
        return worst if self.usable else 1 + worst + self.k_hat

    def resample(self, num: int, generator: torch.Generator) -> Float[Tensor, " num dim"]:
        """Return draws without weights, by systematic resampling.

        Args:
            num: Number of draws.
            generator: Random numbers.
        """
        return self.z[self.indices(num, generator)]

    def indices(self, num: int, generator: torch.Generator) -> Int[Tensor, " num"]:
        """Return which draws systematic resampling takes.

        Args:
            num: Number of draws.
            generator: Random numbers.
        """
        start = torch.rand((), generator=generator, dtype=torch.float64)
        steps = (torch.arange(num, dtype=torch.float64) + start) / num
        edges = self.weights.double().cumsum(0)
        index = torch.searchsorted(edges / edges[-1], steps).clamp(max=len(edges) - 1)
        return index[torch.randperm(num, generator=generator)]

    def moments(
        self, values: Float[Tensor, " draws size"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Return mean and sd of functions of the draws, and standard errors in units of the sd.

        .. math:: \mathrm{se}^2 = \frac{1}{\mathrm{sd}^2} \Big(
            \sum_{i \notin \mathrm{tail}} w_i^2 (f_i - \mathrm{mean})^2
            + a^2 \sum_{i \in \mathrm{tail}} w_i^2 (f_i - \mathrm{mean})^2 \Big)

        where a is ``inflation``: of weights with a heavy tail, the largest ones have yet to be
        seen. What is below the tail has been seen.

        Args:
            values: The functions.

        Returns:
            Mean, sd, the mean's standard error over the sd, and the sd's relative one.
        """
        w = self.weights.unsqueeze(-1)
        values = torch.where(w > 0.0, values, 0.0)  # a draw without weight may have overflowed
        mean = (w * values).sum(0)
        square = (values - mean).square()
        variance = (w * square).sum(0)
        tail = w >= w.flatten().topk(self.num_tail).values[-1]
        weight = w.square() * torch.where(tail, self.inflation**2, 1.0)
        by_mean = (weight * square).sum(0) / variance
        by_variance = (weight * (square - variance).square()).sum(0) / variance.square()
        return mean, variance.sqrt(), by_mean.sqrt(), by_variance.sqrt() / 2


def draw_pool(
    density: Density, parts: Sequence[Part], num: int, generator: torch.Generator
) -> Pool:
    r"""Draw from a mixture with equal shares, and weigh by the target.

    .. math:: \log w = \log p(x, z) - \log \tfrac1M \sum_m q_m(z)

    The weights of a normal guide have heavy tails wherever the target's are heavier; those of a
    defensive mixture are at most M times as large, and its other parts reach farther.

    Args:
        density: The target.
        parts: Parts of the mixture.
        num: Number of draws.
        generator: Random numbers.

    Raises:
        ValueError: If draws have no density, as where the posterior is improper.

    References:
        Weighted Average Importance Sampling and Defensive Mixture Distributions
        (Hesterberg, 1995) | https://doi.org/10.1080/00401706.1995.10484303
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024) | https://arxiv.org/abs/1507.02646
    """
    share = num // len(parts)
    z = torch.cat([part.draw(share, generator) for part in parts]).to(density.dtype)
    # A flow is dear to invert, and a map and its heavier copy have one inverse.
    maps = {id(part.q): part.q for part in parts}
    inverses = {key: q.inverse(z) for key, q in maps.items()}
    densities = [part.log_density(*inverses[id(part.q)]) for part in parts]
    log_mixture = torch.stack(densities).logsumexp(0)
    log_w = density.value(z) - log_mixture + math.log(len(parts))
    lost = int((log_w.isnan() | (log_w == math.inf)).sum())
    if lost:
        raise ValueError(
            f"fit: expected a posterior that a normal can follow; got {lost} of {len(z)} draws "
            "without a density, as the normal ran away along latents that nothing holds. Write: a "
            "proper prior for each latent, and scales that cannot be 0 where data are all alike."
        )
    return weighted(z, log_w)


def weighted(z: Float[Tensor, " draws dim"], log_w: Float[Tensor, " draws"]) -> Pool:
    """Return draws with Pareto-smoothed weights.

    Args:
        z: The draws.
        log_w: Their log weights.
    """
    log_evidence = float(log_w.logsumexp(0)) - math.log(len(z))
    if bool((log_w == -math.inf).all()):
        return Pool(z, torch.full_like(log_w, 1 / len(z)), math.inf, 0.0, log_evidence)
    shape, log_smooth = smooth(log_w)
    weights = log_smooth.to(log_w).softmax(0)
    return Pool(z, weights, shape.values.item(), shape.threshold, log_evidence)


def flat_latents(density: Density, z: Float[Tensor, " draws dim"]) -> Float[Tensor, " draws size"]:
    """Return the constrained values of all sites side by side, without entries that are constants.

    Args:
        density: The target.
        z: Unconstrained draws.
    """
    # Such as the zeros and ones of a Cholesky factor of a correlation matrix.
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((8, density.dim), generator=generator, dtype=density.dtype)
    some = _side_by_side(density, probe)
    varies = (some != some[0]).any(0)
    return _side_by_side(density, z)[:, varies | ~varies.any()]


def _side_by_side(density: Density, z: Tensor) -> Tensor:
    latents = density.latents(z)
    return torch.cat([value.reshape(len(z), -1) for value in latents.values()], -1)
