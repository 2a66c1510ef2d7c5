"""From what was measured to a word that a user can act on."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["LIMIT", "Attempt", "Finding", "Grade", "Verdict"]

LIMIT = 0.05
"""Largest error that is called right: of a mean, in standard deviations; of an sd, relative."""

Grade = Literal["trusted", "usable with correction", "not to be trusted"]


@dataclass(frozen=True)
class Attempt:
    """One thing that was tried, and what it cost.

    Args:
        name: What it was.
        elbo: ELBO that it reached, in nats, on draws that it was not fitted to.
        gradients: Gradients of the log density that it took.
        values: Log densities that it took.
        seconds: Wall time.
        note: What came of it.
    """

    name: str
    elbo: float
    gradients: int
    values: int
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        """One line."""
        cost = f"{self.gradients} gradients, {self.seconds:.1f} s"
        return f"{self.name}: ELBO {self.elbo:.3f} ({cost}){'; ' * bool(self.note)}{self.note}"


@dataclass(frozen=True)
class Finding:
    """One check and whether it was passed.

    Args:
        passed: Whether it was.
        text: What was found, in words.
    """

    passed: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether the answer can be used.

    Args:
        checks: The checks that the corrected draws must pass, all of them.
        raw: Whether the guide is as right without correction.
        k_hat: Shape of the tail of the importance weights.
        mean_error: Largest standard error of a corrected mean, in standard deviations.
        sd_error: Largest relative standard error of a corrected standard deviation.
    """

    checks: tuple[Finding, ...]
    raw: Finding
    k_hat: float
    mean_error: float
    sd_error: float

    @property
    def grade(self) -> Grade:
        """The word."""
        if not all(check.passed for check in self.checks):
            return "not to be trusted"
        return "trusted" if self.raw.passed else "usable with correction"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What stands behind the word."""
        if self.grade == "not to be trusted":
            return tuple(check.text for check in self.checks if not check.passed)
        return (*(check.text for check in self.checks), self.raw.text)

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.grade}: {'; '.join(self.reasons)}"
