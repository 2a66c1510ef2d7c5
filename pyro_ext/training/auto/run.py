"""What an automatic fit leaves behind."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_ext.training.auto.correct import Pool
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.verdict import Attempt, Verdict
from pyro_ext.training.run import Run

__all__ = ["AutoRun"]


@dataclass(frozen=True)
class AutoRun(Run):
    """An automatic fit: a run with a verdict, what was tried, and draws with importance weights.

    Args:
        verdict: Whether the answer can be used, and why.
        history: What was tried and what it cost.
        pool: Weighted draws of the posterior.
        density: The log density that was fitted.
    """

    verdict: Verdict
    history: tuple[Attempt, ...] = field(repr=False)
    pool: Pool = field(repr=False)
    density: Density = field(repr=False)

    @property
    def num_gradients(self) -> int:
        """Number of gradients of the log density that the fit and its checks took."""
        return sum(attempt.gradients for attempt in self.history)

    def sample(self, num_samples: int, *, corrected: bool | None = None) -> dict[str, Tensor]:
        """Draw latents, shape ``(num_samples, *site)`` each.

        Args:
            num_samples: Number of draws.
            corrected: Whether to resample by importance weights; by default, unless the verdict
                is "not to be trusted".
        """
        if corrected is None:
            corrected = self.verdict.grade != "not to be trusted"
        if not corrected:
            return super().sample(num_samples)
        seed = int(torch.randint(2**31, ()))
        z = self.pool.resample(num_samples, torch.Generator().manual_seed(seed))
        dtype = torch.get_default_dtype()
        with torch.no_grad():
            return {name: value.to(dtype) for name, value in self.density.latents(z).items()}
