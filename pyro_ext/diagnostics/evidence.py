"""Bounds on the evidence and an estimate of it, each with its standard error."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext.diagnostics._passes import (
    Layout,
    inspect,
    joint_weights,
    local_weights,
    progress,
)
from pyro_ext.diagnostics._target import Fitted, Target, resolve, undisturbed
from pyro_ext.diagnostics.khat import KHat, k_hat

__all__ = ["Estimate", "Evidence", "evidence"]


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate in nats.

    Args:
        value: The estimate.
        se: Its standard error.
    """

    value: float
    se: float

    def __str__(self) -> str:
        """Value ± standard error, with two digits of the error."""
        if not math.isfinite(self.se):
            return f"{self.value:.2f} ± {self.se}"
        digits = 2 if self.se == 0 else min(6, max(0, 1 - math.floor(math.log10(self.se))))
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


@dataclass(frozen=True, eq=False)
class Elements:
    """Values and standard errors per datapoint, or of the joint weight as a scalar."""

    value: Float[Tensor, " *batch"]
    se: Float[Tensor, " *batch"]

    def total(self) -> Estimate:
        """Return the sum over independent elements."""
        return Estimate(self.value.sum().item(), self.se.square().sum().sqrt().item())


@dataclass(frozen=True, eq=False)
class Evidence:
    """Bounds on log p(x), an estimate of it, and the k-hat that says whether to believe it.

    Args:
        elbo: ELBO.
        iwae: IWAE bound with ``num_particles`` particles.
        log_evidence: log p(x) by importance sampling with all draws, corrected to first order for
            the bias of the logarithm. Neither it nor its error is to be believed if k-hat is above
            its threshold.
        num_particles: K of the IWAE bound.
        num_repeats: Number of times that the IWAE bound was computed.
        per_datum: The same three per datapoint, if there are local latents only; else None.
        k_hat: k-hat of the weights behind ``log_evidence``: per datapoint, or joint.
        draws: log w of each draw, summed over data, shape ``(num_repeats * num_particles,)``; what
            a paired comparison of two ELBOs needs.
    """

    elbo: Estimate
    iwae: Estimate
    log_evidence: Estimate
    num_particles: int
    num_repeats: int
    per_datum: dict[str, Elements] | None
    k_hat: KHat
    draws: Float[Tensor, " draws"]

    @property
    def effective_share(self) -> float:
        """Effective sample size of the weighted draws over their number.

        The median over datapoints, if each has its own weights. It is 1 where the guide is the
        posterior: then the draws can be used as they are.
        """
        if self.per_datum is None:
            se = torch.tensor(self.log_evidence.se)
        else:
            se = self.per_datum["log_evidence"].se.flatten()
        return (1 / (1 + len(self.draws) * se.square())).median().item()

    def __str__(self) -> str:
        """Four lines."""
        rows = {
            "ELBO": self.elbo,
            f"IWAE-{self.num_particles}": self.iwae,
            "log evidence": self.log_evidence,
        }
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {estimate}" for name, estimate in rows.items()]
        return "\n".join([*lines, str(self.k_hat)])


def evidence(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_particles: int = 1000,
    num_repeats: int = 10,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Evidence:
    r"""Estimate bounds on the log evidence and the log evidence itself.

    .. math::
        \mathrm{ELBO} \le \mathrm{IWAE}_K = \mathrm{E} \log \frac1K \sum_k w_k \le \log p(x)

    With one latent per datapoint and no global ones, each datapoint has its own weights, and the
    estimates are sums over data. With global latents the weights are joint.

    Standard errors are those of independent draws: of means for ELBO and IWAE, by the delta method
    for the log evidence, and for the IWAE bound where ``num_repeats`` is 1. Scales are left out
    and subsampled plates show all elements, so that the result does not depend on the mini-batch.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both; by default the run's.
        num_particles: K of the IWAE bound.
        num_repeats: Number R of IWAE bounds; R K draws in all.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If there are too few draws for a standard error, or weights are not finite.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015) | https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_ext.testing.conjugate import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> print(evidence(exact.model, exact.guide, exact.x, num_particles=100).elbo.value)
        -3.53...
    """
    if num_particles < 1 or num_repeats < 1:
        raise ValueError(
            f"evidence: expected num_particles >= 1 and num_repeats >= 1; got {num_particles} and "
            f"{num_repeats}. Write: num_particles=1000, num_repeats=10."
        )
    target = resolve("evidence", model, guide, args, kwargs)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        if layout.has_locals and not layout.has_globals:
            return _local(target, layout, num_particles, num_repeats, chunk_size)
        return _joint(target, layout, num_particles, num_repeats, chunk_size)


def _joint(
    target: Target, layout: Layout, num_particles: int, num_repeats: int, chunk_size: int | None
) -> Evidence:
    parts = []
    num = num_particles * num_repeats
    with progress(num, "evidence") as bar:
        for weights in joint_weights(target, layout, num, chunk_size):
            parts.append(weights.terms[0].log_w.cpu())
            bar.update(len(parts[-1]))
    log_w = torch.cat(parts)
    shape = k_hat(log_w)
    estimates = _estimates(log_w, num_particles)
    totals = {name: elements.total() for name, elements in estimates.items()}
    return Evidence(
        **totals,
        num_particles=num_particles,
        num_repeats=num_repeats,
        per_datum=None,
        k_hat=shape,
        draws=log_w.double(),
    )


def _local(
    target: Target, layout: Layout, num_particles: int, num_repeats: int, chunk_size: int | None
) -> Evidence:
    num = num_particles * num_repeats
    found: list[dict[str, Elements]] = []
    shapes: list[Tensor] = []
    draws = torch.zeros(num, dtype=torch.float64)
    with progress(num * layout.size, "evidence") as bar:
        for log_w in local_weights(target, layout, num, chunk_size):
            shapes.append(k_hat(log_w).values)
            found.append(_estimates(log_w, num_particles))
            draws += log_w.double().reshape(num, -1).sum(1)
            bar.update(num * log_w.shape[1 + layout.axis])
    per_datum = {
        name: Elements(
            torch.cat([part[name].value for part in found], layout.axis),
            torch.cat([part[name].se for part in found], layout.axis),
        )
        for name in found[0]
    }
    totals = {name: elements.total() for name, elements in per_datum.items()}
    return Evidence(
        **totals,
        num_particles=num_particles,
        num_repeats=num_repeats,
        per_datum=per_datum,
        k_hat=KHat(torch.cat(shapes, layout.axis), num),
        draws=draws,
    )


def _estimates(log_w: Tensor, num_particles: int) -> dict[str, Elements]:
    """Return value and standard error per element, of weights of shape ``(draws, *batch)``."""
    log_w = log_w.double()
    num = len(log_w)
    sets = log_w.unflatten(0, (num // num_particles, num_particles))
    bounds = sets.logsumexp(1) - math.log(num_particles)
    log_mean = log_w.logsumexp(0) - math.log(num)
    relative = (log_w - log_mean).exp().var(0) / num
    variance = bounds.var(0) / len(bounds) if len(bounds) > 1 else relative
    return {
        "elbo": Elements(log_w.mean(0), (log_w.var(0) / num).sqrt()),
        "iwae": Elements(bounds.mean(0), variance.sqrt()),
        "log_evidence": Elements(log_mean + relative / 2, relative.sqrt()),
    }
