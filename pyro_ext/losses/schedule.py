"""Schedules: a number that goes from one value to another within some steps."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["CosineSchedule", "LinearSchedule", "Schedule"]


@dataclass(frozen=True)
class Schedule(ABC):
    """Base of the schedules, from ``start`` to ``end`` and constant from then on.

    Args:
        start: Value at step 0.
        end: Value from step ``num_steps`` on.
        num_steps: Number of steps, an int; or a float in (0, 1], that fraction of a run.
    """

    start: float
    end: float
    num_steps: int | float

    def __post_init__(self) -> None:
        name, steps = type(self).__name__, self.num_steps
        for option in ("start", "end"):
            if not 0 <= getattr(self, option) < math.inf:
                raise ValueError(
                    f"{name}: expected a finite {option} >= 0; got {getattr(self, option)}. "
                    f"Write: px.{name}(start=0.0, end=1.0, num_steps=1000)."
                )
        if isinstance(steps, bool) or not (
            steps >= 1 if isinstance(steps, int) else 0 < steps <= 1
        ):
            raise ValueError(
                f"{name}: expected num_steps to be an int >= 1, or a float in (0, 1] for a "
                f"fraction of the run; got {steps!r}. Write: px.{name}({self.start}, {self.end}, "
                "num_steps=1000), or num_steps=0.5."
            )

    def __call__(self, step: int, total: int | None = None) -> float:
        """Return the value at a step.

        Args:
            step: The step, counted from 0.
            total: Number of steps of the run, which a fraction is of.

        Raises:
            ValueError: If a fraction of a run of unknown length is asked for.
        """
        name, steps = type(self).__name__, float(self.num_steps)
        if isinstance(self.num_steps, float):
            if total is None:
                raise ValueError(
                    f"{name}: expected num_steps as an int outside px.fit, where the length of "
                    f"the run is not known; got the fraction {self.num_steps}. Write: "
                    f"px.{name}({self.start}, {self.end}, num_steps=1000)."
                )
            steps *= total - 1  # so that the last step, number total - 1, has the end value
        if step >= steps:
            return self.end
        return self.start + (self.end - self.start) * self._shape(step / steps)

    @abstractmethod
    def _shape(self, fraction: float) -> float:
        """Return how far the value has gone, from 0 to 1, at a fraction of the steps."""


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    r"""A straight line.

    .. math:: \beta_t = \beta_0 + (\beta_1 - \beta_0) \min(t / T, 1)

    Args:
        start: Value :math:`\beta_0` at step 0.
        end: Value :math:`\beta_1` from step T on.
        num_steps: T, an int; or a float in (0, 1], that fraction of a run.

    Raises:
        ValueError: If an argument is not in its range.

    Example:
        >>> beta = LinearSchedule(0.0, 1.0, num_steps=10)
        >>> beta(0), beta(5), beta(100)
        (0.0, 0.5, 1.0)
    """

    def _shape(self, fraction: float) -> float:
        return fraction


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    r"""Half a cosine wave: slow at both ends.

    .. math:: \beta_t = \beta_0 + (\beta_1 - \beta_0) \, \tfrac12 (1 - \cos \pi \min(t / T, 1))

    Args:
        start: Value :math:`\beta_0` at step 0.
        end: Value :math:`\beta_1` from step T on.
        num_steps: T, an int; or a float in (0, 1], that fraction of a run.

    Raises:
        ValueError: If an argument is not in its range.

    Example:
        >>> beta = CosineSchedule(0.0, 1.0, num_steps=10)
        >>> beta(0), round(beta(5), 6), beta(100)
        (0.0, 0.5, 1.0)
    """

    def _shape(self, fraction: float) -> float:
        return 0.5 * (1 - math.cos(math.pi * fraction))
