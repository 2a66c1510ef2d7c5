"""Bounds on the evidence and an estimate of it, each with its standard error."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext._psis import MIN_DRAWS, KHat, smooth
from pyro_ext.diagnostics._estimates import Elements, Estimate, estimates
from pyro_ext.diagnostics._passes import (
    Layout,
    inspect,
    joint_weights,
    local_weights,
    progress,
    wholes,
)
from pyro_ext.diagnostics._target import Fitted, Target, resolve, undisturbed

__all__ = ["Evidence", "bounds_of", "evidence"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Bounds on log p(x), an estimate of it, and the k-hat that says whether to believe it.

    Args:
        elbo: ELBO.
        iwae: IWAE bound with ``num_particles`` particles.
        log_evidence: log p(x) by importance sampling with all draws, corrected to first order for
            the bias of the logarithm. Neither it nor its error is to be believed if k-hat is above
            its threshold.
        psis: log p(x) from Pareto-smoothed weights: steadier than ``log_evidence`` where k-hat is
            large, and slightly biased.
        jackknife: The IWAE bound with its bias of order 1/K removed; no bound. None if K is 1.
        cubo: χ upper bound of order 2, from all draws; its own estimate is biased downwards, and
            without k-hat below 0.5 it is not to be believed.
        ladder: IWAE bounds by K: powers of ten up to the number of draws, and ``num_particles``.
        num_particles: K of the IWAE bound.
        num_repeats: Number of times that the IWAE bound was computed.
        per_datum: The estimates per datapoint by name, if there are local latents only; else None.
        k_hat: k-hat of the weights behind ``log_evidence``: per datapoint, or joint.
        draws: log w of each draw, summed over data, shape ``(num_repeats * num_particles,)``; what
            a paired comparison of two ELBOs needs.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> found = px.evidence(exact.model, exact.guide, exact.x, num_particles=50)
        >>> round(found.elbo.value, 3), round(found.cubo.value, 3)  # both exact, as the guide is
        (-3.531, -3.531)
        >>> found.per_datum["iwae"].value.shape
        torch.Size([2])
    """

    elbo: Estimate
    iwae: Estimate
    log_evidence: Estimate
    psis: Estimate
    jackknife: Estimate | None
    cubo: Estimate
    ladder: dict[int, Estimate]
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
        """One line an estimate, and k-hat."""
        rows = {
            **{"ELBO" if k == 1 else f"IWAE-{k}": bound for k, bound in self.ladder.items()},
            "log evidence": self.log_evidence,
            "  smoothed": self.psis,
            "CUBO (upper)": self.cubo,
        }
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {estimate}" for name, estimate in rows.items()]
        return "\n".join([*lines, str(self.k_hat)])

    __repr__ = __str__  # as a console and a notebook show it


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
        \le \mathrm{CUBO} = \tfrac12 \log \mathrm{E}\, w^2

    With one latent per datapoint and no global ones, each datapoint has its own weights, and the
    estimates are sums over data. With global latents the weights are joint.

    Standard errors are those of independent draws: of means for ELBO and IWAE, by the delta method
    for the log evidence, and for the IWAE bound where ``num_repeats`` is 1. Scales are left out
    and subsampled plates show all elements, so that the result does not depend on the mini-batch.
    Where k-hat is above 1 the weights have no mean that draws could find: then it warns.

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
    num_particles, num_repeats = wholes(
        "evidence", num_particles=num_particles, num_repeats=num_repeats
    )
    if num_particles < 1 or num_repeats < 1:
        raise ValueError(
            f"evidence: expected num_particles >= 1 and num_repeats >= 1; got {num_particles} and "
            f"{num_repeats}. Write: num_particles=1000, num_repeats=10."
        )
    if num_particles * num_repeats < MIN_DRAWS:
        raise ValueError(
            f"evidence: expected num_particles * num_repeats >= {MIN_DRAWS} draws; got "
            f"{num_particles} * {num_repeats}. Write: num_particles=1000, num_repeats=10."
        )
    target = resolve("evidence", model, guide, args, kwargs)
    found = bounds_of(target, num_particles, num_repeats, chunk_size, seed)
    if found.k_hat.median > 1:
        warnings.warn(
            f"evidence: only the lower bounds are to be trusted; {found.k_hat}. The weights are "
            f"worth {found.effective_share * len(found.draws):.1f} of {len(found.draws)} draws, "
            f"and have no mean: ELBO {found.elbo}, log evidence {found.log_evidence}. Look "
            "whether the fit has converged, then write: px.ais(model, guide, *args).",
            stacklevel=2,
        )
    return found


def bounds_of(
    target: Target,
    num_particles: int,
    num_repeats: int,
    chunk_size: int | None,
    seed: int | None,
) -> Evidence:
    """Estimate without a warning; see ``evidence``.

    Args:
        target: Model, guide and arguments.
        num_particles: K of the IWAE bound.
        num_repeats: Number of IWAE bounds.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed.
    """
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        if layout.only_locals:
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
    shape, smoothed = smooth(log_w)
    found, ladder = estimates(log_w, smoothed, num_particles)
    return _evidence(found, ladder, num_particles, shape, log_w.double(), per_datum=False)


def _local(
    target: Target, layout: Layout, num_particles: int, num_repeats: int, chunk_size: int | None
) -> Evidence:
    num = num_particles * num_repeats
    parts: list[tuple[dict[str, Elements], dict[int, Elements]]] = []
    shapes: list[Tensor] = []
    draws = torch.zeros(num, dtype=torch.float64, device="cpu")
    with progress(num * layout.size, "evidence") as bar:
        for log_w in local_weights(target, layout, num, chunk_size):
            shape, smoothed = smooth(log_w)
            shapes.append(shape.values)
            parts.append(estimates(log_w, smoothed, num_particles))
            draws += log_w.double().reshape(num, -1).sum(1)
            bar.update(num * log_w.shape[1 + layout.axis])
    found = {n: _joined([part[n] for part, _ in parts], layout.axis) for n in parts[0][0]}
    ladder = {k: _joined([part[k] for _, part in parts], layout.axis) for k in parts[0][1]}
    shape = KHat(torch.cat(shapes, layout.axis), num)
    return _evidence(found, ladder, num_particles, shape, draws, per_datum=True)


def _joined(parts: list[Elements], axis: int) -> Elements:
    return Elements(
        torch.cat([part.value for part in parts], axis),
        torch.cat([part.se for part in parts], axis),
    )


def _evidence(
    found: dict[str, Elements],
    ladder: dict[int, Elements],
    num_particles: int,
    shape: KHat,
    draws: Tensor,
    *,
    per_datum: bool,
) -> Evidence:
    totals = {name: elements.total() for name, elements in found.items()}
    return Evidence(
        totals["elbo"],
        totals["iwae"],
        totals["log_evidence"],
        totals["psis"],
        totals.get("jackknife"),
        totals["cubo"],
        {size: elements.total() for size, elements in ladder.items()},
        num_particles,
        len(draws) // num_particles,
        found if per_datum else None,
        shape,
        draws,
    )
