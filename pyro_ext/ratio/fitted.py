"""The fit of a ratio, and what it can tell, whatever the ratio is made of."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext._cited import Cited
from pyro_ext.ratio.counts import check_counts
from pyro_ext.ratio.divergences import log_mean_exp
from pyro_ext.ratio.estimate import RatioEstimate, js_estimate, kl_estimate, warn_of
from pyro_ext.ratio.report import CriticReport, report
from pyro_ext.ratio.samples import Sampler, Samples, check_alike

__all__ = ["FittedRatio"]


class FittedRatio(Cited, ABC):
    """Base of the estimators of log p/q: trained on samples, judged on others.

    A subclass writes one step, what follows the last step, and the log ratio.
    """

    _instead: ClassVar[str] = "Use waymarks, px.ratio.TelescopingRatio, or more samples"

    def __init__(self) -> None:
        self._held_out: tuple[Tensor, Tensor] | None = None
        self.bounds: list[float] = []

    @abstractmethod
    def _log_ratio(self, x: Tensor) -> Tensor:
        """Return log p(x)/q(x) as it was fitted, shape ``batch``."""

    @abstractmethod
    def _optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of all critics."""

    @abstractmethod
    def _step(self, x_p: Tensor, x_q: Tensor) -> Tensor:
        """Take one step on samples of p and of q; return the bound that is climbed."""

    @abstractmethod
    def _settle(self, x_p: Tensor, x_q: Tensor) -> None:
        """Fix the constants that a bound leaves free."""

    def fit(
        self,
        p: Tensor | Sampler,
        q: Tensor | Sampler,
        *,
        num_steps: int = 2000,
        batch_size: int = 256,
        held_out: float = 0.2,
        num_held_out: int = 10_000,
        seed: int | None = None,
    ) -> None:
        """Train; the learning rate falls to zero on a cosine.

        ``ratio.bounds`` are then the values of the bound that the steps climbed. A further call
        goes on from there, with the rate at its first value again.

        Args:
            p: Samples of p, shape ``(num, dim)``, or a function of n that returns n fresh ones.
            q: The same for q.
            num_steps: Number of steps.
            batch_size: Samples of p in a step, and of q.
            held_out: Share of given samples that is kept to evaluate on.
            num_held_out: Number of samples to evaluate on where there are samplers.
            seed: Seed; the caller's random state stays as it was. By default the caller's own.

        Raises:
            ValueError: If samples have another shape than ``(num, dim)`` or another precision than
                the critic, are not finite, or too few are left; if a number is too small.
        """
        check_counts(type(self).__name__, least=1, num_steps=num_steps, batch_size=batch_size)
        check_counts(type(self).__name__, least=2, num_held_out=num_held_out)
        with torch.random.fork_rng(devices=(), enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            of_p = Samples(p, "p", held_out=held_out, num_held_out=num_held_out)
            of_q = Samples(q, "q", held_out=held_out, num_held_out=num_held_out)
            check_alike(of_p, of_q, self._optimizer())
            bounds = []
            with falling(self._optimizer(), num_steps) as schedule:
                for _ in range(num_steps):
                    bounds.append(self._step(of_p.batch(batch_size), of_q.batch(batch_size)))
                    schedule.step()
            with torch.no_grad():
                # What is held out must decide nothing.
                self._settle(of_p.batch(num_held_out), of_q.batch(num_held_out))
        self.bounds = torch.stack(bounds).tolist()
        self._held_out = (of_p.held_out, of_q.held_out)

    def log_ratio(
        self, x: Float[Tensor, " *batch dim"], *, normalized: bool = False
    ) -> Float[Tensor, " *batch"]:
        """Return the estimated log p(x)/q(x).

        Args:
            x: Where, shape ``(*batch, dim)``.
            normalized: Whether to divide r by its mean over the held-out samples of q, so that r q
                integrates to 1 there.

        Raises:
            RuntimeError: If nothing was fitted yet.
        """
        self._samples()
        value = self._log_ratio(x)
        return value - self.log_normalizer() if normalized else value

    def density(
        self,
        x: Float[Tensor, " *batch dim"],
        log_f0: Float[Tensor, " *batch"],
        *,
        normalized: bool = False,
    ) -> Float[Tensor, " *batch"]:
        r"""Return the estimated log density of p where that of q is known.

        .. math:: \log f_1(x) = \log f_0(x) + \log \frac{D(x)}{1 - D(x)}

        Args:
            x: Where, shape ``(*batch, dim)``.
            log_f0: Log density of q there, shape ``batch``.
            normalized: As in ``log_ratio``.
        """
        return log_f0 + self.log_ratio(x, normalized=normalized)

    def weights(self, x_q: Float[Tensor, " num dim"]) -> Float[Tensor, " num"]:
        """Return self-normalized weights that make samples of q stand for p; they sum to 1.

        Args:
            x_q: Samples of q, shape ``(num, dim)``.
        """
        with torch.no_grad():
            return torch.softmax(self.log_ratio(x_q), 0)

    def log_normalizer(self) -> Float[Tensor, ""]:
        """Return the log of the mean of r over held-out samples of q: 0 for an exact ratio."""
        return log_mean_exp(self._held_out_log_ratios()[1])

    def kl(self, *, method: str = "plug-in") -> RatioEstimate:
        """Return KL(p‖q) from the held-out samples, and warn if it is not to be trusted.

        Args:
            method: ``"plug-in"`` (an estimate), ``"nwj"`` (a lower bound in expectation) or
                ``"dv"`` (an estimate).

        Raises:
            ValueError: If the method is unknown.
        """
        log_r_p, log_r_q = self._held_out_log_ratios()
        found = kl_estimate(log_r_p, log_r_q, method=method, links=self._links())
        warn_of(found, self._instead)
        return found

    def js(self) -> RatioEstimate:
        """Return the Jensen-Shannon divergence from the held-out samples, a lower bound."""
        return js_estimate(*self._held_out_log_ratios())

    def report(self) -> CriticReport:
        """Return accuracy, AUC, calibration and the two-sample test on the held-out samples."""
        return report(*self._held_out_log_ratios())

    def _links(self) -> list[tuple[Tensor, Tensor]]:
        """Return the held-out log ratios of each factor on its own two sides, if there are any."""
        return []

    def _held_out_log_ratios(self) -> tuple[Tensor, Tensor]:
        x_p, x_q = self._samples()
        with torch.no_grad():
            return self._log_ratio(x_p), self._log_ratio(x_q)

    def _samples(self) -> tuple[Tensor, Tensor]:
        if self._held_out is None:
            raise RuntimeError(
                f"{type(self).__name__}: expected a fitted ratio; got one that has seen no "
                "samples. Write: ratio.fit(p, q) first."
            )
        return self._held_out


@contextmanager
def falling(optimizer: torch.optim.Optimizer, num_steps: int) -> Iterator[CosineAnnealingLR]:
    """Within this context the learning rates follow a cosine to zero; then they are as before.

    Args:
        optimizer: The optimizer.
        num_steps: Number of steps, after each of which the schedule is stepped.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        yield CosineAnnealingLR(optimizer, T_max=num_steps)
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
