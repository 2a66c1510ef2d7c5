"""Checks that an answer must pass, whatever made it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ext.training.auto.adapt import adapted_pool
from pyro_ext.training.auto.affine import Map
from pyro_ext.training.auto.correct import Pool, flat_latents
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.drift import drift
from pyro_ext.training.auto.verdict import LIMIT, Finding, Verdict

__all__ = ["Judgement", "judge", "right_as_drawn", "small_errors"]

_POOL, _ENTRIES, _LEAST = 20_000, 4e6, 4000
_CHAINS = 1500
_GAP = 0.25
_SIGMAS = 3.0


@dataclass(frozen=True)
class Judgement:
    """What is known of an answer.

    Args:
        pool: Weighted draws.
        checks: Checks that they must pass.
        raw: Whether the guide is right without weights.
        mean_error: Largest standard error of a mean, in standard deviations.
        sd_error: Largest relative standard error of a standard deviation.
        note: What was found, in short.
    """

    pool: Pool
    checks: tuple[Finding, ...]
    raw: Finding
    mean_error: float
    sd_error: float
    note: str

    @property
    def passed(self) -> bool:
        """Whether all checks are."""
        return all(check.passed for check in self.checks)

    @property
    def order(self) -> tuple[int, float]:
        """Smaller for a better answer: passed, then usable with small errors, then small k-hat."""
        if not self.pool.usable:
            return 2, self.pool.k_hat
        return (0, 0.0) if self.passed else (1, max(self.mean_error, self.sd_error))

    def leaves(self, bound: float) -> bool:
        """Tell whether a larger family has something to gain: a failed check, or nats.

        Args:
            bound: The guide's ELBO.
        """
        return not self.passed or (not self.raw.passed and self.pool.log_evidence - bound > _GAP)

    def verdict(self, *others: Finding) -> Verdict:
        """Return the verdict from these checks and others.

        Args:
            *others: More checks.
        """
        return Verdict(
            (*self.checks, *others), self.raw, self.pool.k_hat, self.mean_error, self.sd_error
        )


def judge(density: Density, q: Map, generator: torch.Generator) -> Judgement:
    """Correct the draws of q by importance weights, and check the answer.

    Args:
        density: The target.
        q: The guide.
        generator: Random numbers.
    """
    num = int(max(_LEAST, min(_POOL, _ENTRIES / density.dim)))
    limit = LIMIT / _SIGMAS
    pool = adapted_pool(density, q, num, 4 * num, limit, generator)
    latents = flat_latents(density, pool.z)
    mean, sd, mean_errors, sd_errors = pool.moments(latents)
    mean_error, sd_error = float(mean_errors.max()), float(sd_errors.max())
    checks = [
        Finding(pool.usable, f"k-hat {pool.k_hat:.2f} (limit {pool.threshold:.2f})"),
        small_errors(pool, mean_error, sd_error, limit),
    ]
    note = f"k-hat {pool.k_hat:.2f}"
    if all(check.passed for check in checks):
        moved = drift(density, q, pool, _CHAINS, LIMIT, generator)
        checks.append(
            Finding(
                not moved.found,
                f"draws {'leave' if moved.found else 'stay in'} their place under Hamiltonian "
                f"moves (shifts: means {moved.mean:.2f} sd, sds {moved.spread:.1%}, "
                f"{moved.acceptance:.0%} accepted)",
            )
        )
        note += f", {moved.acceptance:.0%} of moves accepted"
    options = {"generator": generator, "dtype": density.dtype}
    z, _ = q.forward(torch.randn((num, density.dim), **options))
    raw = right_as_drawn(flat_latents(density, z), mean, sd, "means")
    return Judgement(pool, tuple(checks), raw, mean_error, sd_error, note)


def small_errors(pool: Pool, mean_error: float, sd_error: float, limit: float) -> Finding:
    """Return whether the errors of weighted draws are small enough.

    Args:
        pool: The draws.
        mean_error: Largest standard error of a mean, in standard deviations.
        sd_error: Largest relative standard error of a standard deviation.
        limit: The largest that is small enough.
    """
    return Finding(
        max(mean_error, sd_error) <= limit,
        f"standard errors of at most {mean_error:.3f} sd (means) and {sd_error:.1%} (sds) "
        f"from {pool.effective:.0f} effective draws (limit {limit:.3f})",
    )


def right_as_drawn(values: Tensor, mean: Tensor, sd: Tensor, means: str) -> Finding:
    """Return whether a guide's own draws have the moments of the weighted ones.

    Args:
        values: Functions of the guide's draws, shape ``(draws, size)``.
        mean: Their means by weighted draws.
        sd: Their standard deviations by these.
        means: What the means are of, in words.
    """
    off = float(((values.mean(0) - mean) / sd).abs().max())
    ratio = values.std(0) / sd
    low, high = float(ratio.min()), float(ratio.max())
    right = off <= LIMIT and 1 - LIMIT <= low and high <= 1 + LIMIT
    text = f"uncorrected {means} are within {off:.2f} sd, sd ratios in {low:.2f} to {high:.2f}"
    return Finding(right, text)
