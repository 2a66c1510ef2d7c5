"""What a guide loses, split into what its family costs and what its source of π costs."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext._psis import MIN_DRAWS, KHat, k_hat
from pyro_ext.bounds import iwae
from pyro_ext.diagnostics._estimates import Elements, Estimate, log_mean, mean
from pyro_ext.diagnostics._passes import (
    Layout,
    check_draws,
    inspect,
    joint_weights,
    local_weights,
    progress,
)
from pyro_ext.diagnostics._refined import refined
from pyro_ext.diagnostics._target import Fitted, Target, resolve, undisturbed

__all__ = ["Gaps", "gaps"]

_WORSE, _SIGMAS = 0.1, 3.0  # nats per element, and standard errors, by which q* may fall behind


@dataclass(frozen=True, eq=False)
class Gaps:
    r"""The two parts of :math:`\log p(x) - \mathcal{L}[q_\phi]`, per datapoint.

    With global latents, or where one π serves all data, there is one element: the joint one.

    Args:
        approximation: log p(x) - L[q*]: what the family costs.
        amortization: L[q*] - L[q_φ]: what the encoder costs beyond it, or an unfinished fit.
        log_evidence: log p(x).
        elbo: L[q_φ], of the guide.
        best_elbo: L[q*], of its family at its best for each datum.
        k_hat: k-hat of the weights behind ``log_evidence``; None where that was given.
        seconds: Seconds of the guide's fit (None if not known) and of the fit of q*.
        num_params: Number of parameters of the guide and of q*.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> guide = px.AutoAmortized(exact.model, lambda x: x.unsqueeze(-1))
        >>> found = px.gaps(exact.model, guide, exact.x, num_samples=100, num_steps=50, seed=0)
        >>> found.amortization.value.shape
        torch.Size([2])
    """

    approximation: Elements
    amortization: Elements
    log_evidence: Elements
    elbo: Elements
    best_elbo: Elements
    k_hat: KHat | None
    seconds: tuple[float | None, float]
    num_params: tuple[int, int]

    def worst(self, num: int = 10) -> Tensor:
        """Return the indices of the datapoints with the largest amortization gap.

        Args:
            num: How many.
        """
        return self.amortization.value.flatten().argsort(descending=True, stable=True)[:num]

    @property
    def share(self) -> float:
        """Share of the whole gap that is the amortization's."""
        whole = self.approximation.value.sum() + self.amortization.value.sum()
        return (self.amortization.value.sum() / whole).item()

    def __str__(self) -> str:
        """Means per datum, and what each source cost."""
        rows: dict[str, Estimate] = {
            "log evidence": self.log_evidence.average(),
            "- approximation gap": self.approximation.average(),
            "- amortization gap": self.amortization.average(),
            "= ELBO": self.elbo.average(),
        }
        lines = [f"{name:<20} {estimate}" for name, estimate in rows.items()]
        spent = "?" if self.seconds[0] is None else f"{self.seconds[0]:.1f}"
        num = self.elbo.value.numel()
        unit, to = ("nats", "the data") if num == 1 else (f"nats per datum of {num}", "each datum")
        lines.append(
            f"{unit}; guide {spent} s and {self.num_params[0]:,} parameters, fitted to {to} "
            f"{self.seconds[1]:.1f} s and {self.num_params[1]:,}"
        )
        if self.k_hat is not None and self.k_hat.share_above > 0:
            lines.append(f"behind the log evidence and the approximation gap: {self.k_hat}")
        return "\n".join(lines)

    __repr__ = __str__  # as a console and a notebook show it


def gaps(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    log_evidence: Elements | Float[Tensor, "..."] | float | None = None,
    num_samples: int = 2000,
    num_steps: int = 500,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Gaps:
    r"""Split a guide's gap to the log evidence into approximation and amortization.

    .. math:: \log p(x) - \mathcal{L}[q_\phi] =
        \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation}} +
        \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q_\phi]}_{\text{amortization}}

    q* is the same family, fitted to each datum by itself from the guide's own answer. Both guides
    are evaluated on the same random numbers, and standard errors are those of paired draws. For
    the training data, or for held-out data that the guide is called with.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: One of the automatic guides; left out with a run.
        *args: Arguments of both; by default the run's.
        log_evidence: log p(x) per datapoint, where it is known or comes from ``px.ais``; by
            default by importance sampling from q*.
        num_samples: Number of draws per datapoint.
        num_steps: Steps of the fit of q*. It warns where these leave q* below the guide.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        TypeError: If the guide is none of the automatic guides.
        ValueError: If ``log_evidence`` has another shape than the datapoints.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li and Duvenaud, 2018) |
        https://arxiv.org/abs/1801.03558

    Example:
        >>> from pyro_ext.testing.conjugate import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> guide = px.AutoAmortized(exact.model, lambda x: x.unsqueeze(-1))
        >>> found = gaps(exact.model, guide, exact.x, num_samples=200, num_steps=200)
        >>> round(found.share, 2)
        1.0
    """
    num_samples = check_draws("gaps", num_samples, MIN_DRAWS if log_evidence is None else 2)
    target = resolve("gaps", model, guide, args, kwargs)
    seconds = getattr(model, "seconds", None) if guide is None else None
    seed = int(torch.randint(2**31, (), generator=_fork())) if seed is None else seed
    with undisturbed(target, seed):
        with torch.enable_grad():
            free, spent = refined("gaps", target, num_steps)
        best = replace(target, guide=free)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        own = _weights(target, layout, num_samples, chunk_size)
    with undisturbed(best, seed) as plates:
        layout = inspect(best, plates)
        star = _weights(best, layout, num_samples, chunk_size)
    if own.shape != star.shape:
        own, star = (w.reshape(num_samples, -1).sum(1) for w in (own, star))
    amortization = mean(star - own)
    _warn_if_worse(amortization, num_steps)
    shape = None
    if log_evidence is None:
        shape, exact = k_hat(star), log_mean(star)
        ratio = (star - iwae(star)).exp() - star
        approximation = Elements(exact.value - star.mean(0), ratio.std(0) / num_samples**0.5)
    else:
        exact = _known(log_evidence, star)
        error = mean(star).se.square() + exact.se.square()
        approximation = Elements(exact.value - star.mean(0), error.sqrt())
    return Gaps(
        approximation,
        amortization,
        exact,
        mean(own),
        mean(star),
        shape,
        (seconds, spent),
        (int(target.guide.num_params), int(free.num_params)),  # type: ignore[attr-defined]
    )


def _warn_if_worse(amortization: Elements, num_steps: int) -> None:
    gap = amortization.average()
    if gap.value < -max(_WORSE, _SIGMAS * gap.se):
        warnings.warn(
            "gaps: neither the gaps nor the log evidence are to be trusted: the family fitted to "
            f"the data themselves is {Estimate(-gap.value, gap.se)} nats below the guide, so its "
            f"fit has not ended. Write: num_steps={4 * num_steps}.",
            stacklevel=3,
        )


def _fork() -> torch.Generator:
    """Return a generator in the caller's state, which stays as it was."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return generator


def _weights(target: Target, layout: Layout, num: int, chunk_size: int | None) -> Tensor:
    """Return log weights of all draws, ``(num, *batch)``."""
    with progress(num * layout.size, "gaps") as bar:
        parts = []
        if layout.only_locals:
            for log_w in local_weights(target, layout, num, chunk_size):
                parts.append(log_w.double())
                bar.update(num * log_w.shape[1 + layout.axis])
            return torch.cat(parts, 1 + layout.axis)
        for weights in joint_weights(target, layout, num, chunk_size):
            parts.append(weights.terms[0].log_w.cpu().double())
            bar.update(len(parts[-1]) * layout.size)
        return torch.cat(parts)


def _known(log_evidence: Elements | Tensor | float, star: Tensor) -> Elements:
    known = log_evidence.value if isinstance(log_evidence, Elements) else log_evidence
    value = torch.as_tensor(known, dtype=star.dtype).detach().cpu()
    if value.shape != star.shape[1:]:
        raise ValueError(
            f"gaps: expected log_evidence of shape {tuple(star.shape[1:])}, one for each "
            f"datapoint; got {tuple(value.shape)}. Write: px.gaps(run), which estimates it."
        )
    if not math.isfinite(value.sum()):
        raise ValueError(
            f"gaps: expected a finite log_evidence; got {int((~value.isfinite()).sum())} of "
            f"{value.numel()} that are not. Write: px.gaps(run), which estimates it."
        )
    if isinstance(log_evidence, Elements):
        return log_evidence
    return Elements(value, torch.zeros_like(value))
