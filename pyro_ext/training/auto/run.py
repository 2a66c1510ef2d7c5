"""What an automatic fit leaves behind."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pyro_ext.training.auto.correct import Pool
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.nested import NestedPool
from pyro_ext.training.auto.verdict import Attempt, Verdict
from pyro_ext.training.run import Run

__all__ = ["AutoRun", "JudgedRun", "LocalRun"]


@dataclass(frozen=True)
class JudgedRun(Run):
    """A run with a verdict, what was tried, and draws with importance weights.

    Args:
        verdict: Whether the answer can be used, and why.
        history: What was tried and what it cost.
    """

    verdict: Verdict
    history: tuple[Attempt, ...] = field(repr=False)

    @property
    def num_gradients(self) -> int:
        """Number of gradients of the log density that the fit and its checks took."""
        return sum(attempt.gradients for attempt in self.history)

    def _lines(self) -> dict[str, str]:
        return {**super()._lines(), "verdict": str(self.verdict)}

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
        dtype = torch.get_default_dtype()
        with torch.no_grad():
            drawn = self._resample(num_samples, torch.Generator().manual_seed(seed))
        return {name: value.to(dtype) for name, value in drawn.items()}

    @abstractmethod
    def _resample(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return corrected draws."""


@dataclass(frozen=True)
class AutoRun(JudgedRun):
    """An automatic fit of all latents together.

    Args:
        pool: Weighted draws of the posterior.
        density: The log density that was fitted.

    Example:
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> run = px.fit(model, data=torch.full((20,), 3.0), optim="auto", seed=0)
        >>> str(run.verdict).partition(":")[0]
        'trusted'
        >>> run.sample(100)["mu"].shape
        torch.Size([100])
    """

    papers: ClassVar[tuple[str, ...]] = (
        "zhang2022pathfinder",
        "dhaka2020robust",
        "giordano2024black",
        "burroni2023sample",
        "dauphin2014identifying",
        "bekas2007estimator",
        "agrawal2020advances",
        "roeder2017sticking",
        "hesterberg1995weighted",
        "cappe2004population",
        "hoogerheide2012class",
        "vehtari2024pareto",
        "neal2011mcmc",
        "lewis2013nonsmooth",
    )

    pool: Pool = field(repr=False)
    density: Density = field(repr=False)

    def _resample(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.density.latents(self.pool.resample(num_samples, generator))


@dataclass(frozen=True)
class LocalRun(JudgedRun):
    """An automatic fit from mini-batches, of globals and of locals of one data plate.

    Args:
        pool: Weighted draws of the globals, each with draws of the locals; None if there are too
            many data to weigh.

    Example:
        >>> run = px.fit(model, guide, data=x, optim="auto")  # doctest: +SKIP
        >>> issubclass(px.LocalRun, px.Run)
        True
    """

    papers: ClassVar[tuple[str, ...]] = (
        "dhaka2020robust",
        "roeder2017sticking",
        "andrieu2009pseudo",
        "vehtari2024pareto",
    )

    pool: NestedPool | None = field(repr=False)

    def _resample(self, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
        if self.pool is None:
            raise ValueError(
                "LocalRun.sample: expected weighted draws; got none, as there are too many data. "
                "Write: run.sample(num_samples, corrected=False)."
            )
        return self.pool.resample(num_samples, generator)
