"""Numbers that come out of a critic, each with its standard error and what it is."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from pyro_ext.ratio.divergences import log_mean_exp
from pyro_ext.ratio.report import report

__all__ = [
    "RatioEstimate",
    "RatioWarning",
    "js_estimate",
    "kl_estimate",
    "mean_and_variance",
    "warn_of",
]

# The mean of an exact ratio is 1, so by Markov it exceeds this with a chance of 1 % at most.
IMPOSSIBLE_MEAN = 100.0
SEPARABLE = 0.999  # AUC from which the samples hardly overlap
STRETCH = 1.25  # what a sum of log ratios may be off by, where the samples can tell
CHANCE = 4.9  # standard errors that a normal exceeds once in a million
KL_METHODS = ("plug-in", "nwj", "dv")


class RatioWarning(UserWarning):
    """A critic's estimate that is not to be trusted.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", px.ratio.RatioWarning)  # a doubt stops the script
    """


@dataclass(frozen=True)
class RatioEstimate:
    """A number that a critic gives, in nats.

    Args:
        value: The number.
        se: Its standard error over held-out samples, with the critic as it is.
        what: What it is: ``"estimate of ..."`` or ``"lower bound of ..., in expectation"``.
        num_samples: Number of held-out samples of each side.
        doubts: Why not to trust it; empty if nothing speaks against it.

    Example:
        >>> print(RatioEstimate(0.512, 0.011, "estimate of KL(p‖q)", num_samples=1000))
        0.5120 ± 0.0110 (estimate of KL(p‖q))
    """

    value: float
    se: float
    what: str
    num_samples: int
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return value, standard error and label."""
        mark = f" [doubtful: {'; '.join(self.doubts)}]" if self.doubts else ""
        return f"{self.value:.4f} ± {self.se:.4f} ({self.what}){mark}"


def warn_of(found: RatioEstimate, instead: str) -> None:
    """Warn if there are doubts about an estimate.

    Args:
        found: The estimate.
        instead: What to do.
    """
    if found.doubts:
        warnings.warn(f"{found}. {instead}.", RatioWarning, stacklevel=3)


def mean_and_variance(values: Float[Tensor, " num"]) -> tuple[Tensor, Tensor]:
    """Return the mean and its variance, the square of its standard error."""
    return values.mean(), values.var() / len(values)


def kl_estimate(
    log_r_p: Float[Tensor, " num_p"],
    log_r_q: Float[Tensor, " num_q"],
    *,
    method: str = "plug-in",
    links: Sequence[tuple[Tensor, Tensor]] = (),
) -> RatioEstimate:
    r"""Return KL(p‖q) from log ratios on held-out samples.

    ``"plug-in"`` is :math:`\mathbb{E}_p \log r`; ``"nwj"`` adds :math:`1 - \mathbb{E}_q r`, which
    makes it a lower bound in expectation, with a heavy tail; ``"dv"`` takes off
    :math:`\log \mathbb{E}_q r` instead, which normalizes r.

    Args:
        log_r_p: Log ratios on samples of p, shape ``(num_p,)``.
        log_r_q: Log ratios on samples of q, shape ``(num_q,)``.
        method: One of the three.
        links: Of a ratio that is a product, the log ratios of each factor on samples of its own
            two sides: then these are held against the number of samples, and not the product.
            Where p and q overlap, it must also have a better score than its powers.

    Raises:
        ValueError: If the method is unknown.
    """
    if method not in KL_METHODS:
        raise ValueError(
            f"kl: expected method to be one of {list(KL_METHODS)}; got {method!r}. "
            "Write: ratio.kl(method='plug-in')."
        )
    mean, square = mean_and_variance(log_r_p)
    what = "estimate of KL(p‖q)" + (f" by {len(links)} links" if links else "")
    r_mean, r_square = mean_and_variance(log_r_q.exp())
    if method == "nwj":
        mean, square = mean + 1 - r_mean, square + r_square
        what = "lower bound of KL(p‖q), in expectation"
    elif method == "dv":
        mean = mean - log_mean_exp(log_r_q)
        largest = log_r_q.amax()
        scaled, scaled_square = mean_and_variance((log_r_q - largest).exp())
        square = square + scaled_square / scaled.square()
    num = min(len(log_r_p), len(log_r_q))
    doubts = [
        f"link {index} of {len(links)}: {doubt}"
        for index, (near, far) in enumerate(links, 1)
        for doubt in (*_saturation(float(near.mean()), near, far), *_not_normalized(near, far))
    ]
    if links:
        doubts += _off_by_a_factor(log_r_p, log_r_q)
    else:
        doubts = _saturation(float(mean), log_r_p, log_r_q)
    doubts += _not_normalized(log_r_p, log_r_q)
    return RatioEstimate(float(mean), float(square.sqrt()), what, num, tuple(doubts))


def js_estimate(
    log_r_p: Float[Tensor, " num_p"], log_r_q: Float[Tensor, " num_q"]
) -> RatioEstimate:
    """Return the Jensen-Shannon divergence from log ratios on held-out samples, a lower bound.

    Args:
        log_r_p: Log ratios on samples of p, shape ``(num_p,)``.
        log_r_q: Log ratios on samples of q, shape ``(num_q,)``.
    """
    of_p, square_p = mean_and_variance(-softplus(-log_r_p))
    of_q, square_q = mean_and_variance(-softplus(log_r_q))
    value = math.log(2) + float(of_p + of_q) / 2
    se = float(torch.sqrt(square_p + square_q)) / 2
    num = min(len(log_r_p), len(log_r_q))
    return RatioEstimate(value, se, "lower bound of JSD(p, q), in expectation", num)


def _saturation(kl: float, log_r_p: Tensor, log_r_q: Tensor) -> list[str]:
    num = min(len(log_r_p), len(log_r_q))
    found = []
    if not kl < math.log(num):
        found.append(f"{kl:.1f} nats, beyond log {num} = {math.log(num):.1f} of the samples")
    auc = report(log_r_p, log_r_q).auc
    if auc >= SEPARABLE:
        found.append(f"p and q hardly overlap in the samples (AUC {auc:.4f})")
    return found


def _off_by_a_factor(log_r_p: Tensor, log_r_q: Tensor) -> list[str]:
    """Return a doubt if a multiple of log r has the better logistic score.

    The exact log ratio has the best expected score, and no tail is heavy. Each critic's own
    training sees to it; nothing does for their sum.
    """
    if report(log_r_p, log_r_q).auc >= SEPARABLE:
        return []
    for factor, what in ((STRETCH, "small"), (1 / STRETCH, "large")):
        of_p, square_p = mean_and_variance(logsigmoid(factor * log_r_p) - logsigmoid(log_r_p))
        of_q, square_q = mean_and_variance(logsigmoid(-factor * log_r_q) - logsigmoid(-log_r_q))
        if of_p + of_q > CHANCE * torch.sqrt(square_p + square_q):
            return [f"the sum of links is too {what}: {factor:g} times it tells p from q better"]
    return []


def _not_normalized(log_r_p: Tensor, log_r_q: Tensor) -> list[str]:
    found = []
    for what, log_r in (("p/q over q", log_r_q), ("q/p over p", -log_r_p)):
        log_mean = float(log_mean_exp(log_r))
        if not log_mean < math.log(IMPOSSIBLE_MEAN):
            found.append(f"the mean of {what} is e^{log_mean:.1f} instead of 1")
    return found
