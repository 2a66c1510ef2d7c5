"""How good a critic is on samples that it has not seen."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["CriticReport", "report"]

_BINS = 10


@dataclass(frozen=True)
class CriticReport:
    """A critic as a classifier of held-out samples. All are estimates.

    Args:
        accuracy: Share of samples that it puts on the right side.
        accuracy_se: Its standard error.
        auc: Probability that a sample of p gets a higher logit than one of q.
        calibration_error: Mean distance of its probability from the share of p, over ten bins of
            equal size.
        p_value: Of the classifier two-sample test: p = q, one-sided, by the normal approximation.
        num_samples: Number of held-out samples of each side.

    Example:
        >>> p, q = dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0)
        >>> ratio = px.ratio.DensityRatio(px.ratio.QuadraticCritic(1))
        >>> ratio.fit(
        ...     lambda n: p.sample((n, 1)), lambda n: q.sample((n, 1)), num_steps=50, seed=0
        ... )
        >>> bool(0.6 < ratio.report().auc < 0.9)
        True
    """

    accuracy: float
    accuracy_se: float
    auc: float
    calibration_error: float
    p_value: float
    num_samples: int

    def __str__(self) -> str:
        """One line a number."""
        return "\n".join(
            [
                f"accuracy           {self.accuracy:.4f} ± {self.accuracy_se:.4f}",
                f"AUC                {self.auc:.4f}",
                f"calibration error  {self.calibration_error:.4f}",
                f"p-value of p = q   {self.p_value:.3g}",
                f"held-out samples   {self.num_samples:,} of each side",
            ]
        )


def report(log_r_p: Float[Tensor, " num_p"], log_r_q: Float[Tensor, " num_q"]) -> CriticReport:
    """Return what logits on held-out samples say about a critic.

    Args:
        log_r_p: Log ratios on samples of p, shape ``(num_p,)``.
        log_r_q: Log ratios on samples of q, shape ``(num_q,)``. As many count as there are
            of both.

    References:
        Revisiting Classifier Two-Sample Tests (Lopez-Paz and Oquab, 2017) |
        https://arxiv.org/abs/1610.06545

    Example:
        >>> report(torch.tensor([2.0, 3.0, -1.0]), torch.tensor([-2.0, 1.0, -3.0])).auc
        0.888...
    """
    num = min(len(log_r_p), len(log_r_q))
    log_r_p, log_r_q = log_r_p[:num], log_r_q[:num]
    logits = torch.cat([log_r_p, log_r_q])
    labels = torch.cat([torch.ones_like(log_r_p), torch.zeros_like(log_r_q)])
    # A tie counts one half.
    right = torch.cat([_side(log_r_p), _side(-log_r_q)])
    accuracy = float(right.mean())
    ranks = _ranks(logits)[:num]
    auc = float((ranks.sum() - num * (num + 1) / 2) / num**2)
    order = logits.argsort()
    probabilities, shares = torch.sigmoid(logits[order]), _of_ties(logits, labels)[order]
    bins = zip(probabilities.tensor_split(_BINS), shares.tensor_split(_BINS), strict=True)
    gaps = [abs(float(p.mean() - share.mean())) * len(p) for p, share in bins if len(p)]
    score = (accuracy - 0.5) * 2 * math.sqrt(2 * num)
    return CriticReport(
        accuracy,
        math.sqrt(accuracy * (1 - accuracy) / (2 * num)),
        auc,
        sum(gaps) / (2 * num),
        math.erfc(score / math.sqrt(2)) / 2,
        num,
    )


def _side(logits: Tensor) -> Tensor:
    return (torch.sign(logits) + 1) / 2


def _of_ties(values: Tensor, labels: Tensor) -> Tensor:
    """Return, for each value, the mean label of all that are equal to it."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    sums = labels.new_zeros(len(counts)).index_add(0, inverse, labels)
    return (sums / counts)[inverse]


def _ranks(values: Tensor) -> Tensor:
    """Return ranks from 1, ties at their mean."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).to(values.dtype)
    return (last - (counts - 1) / 2)[inverse]
