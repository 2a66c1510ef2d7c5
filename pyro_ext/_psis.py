"""Pareto-smoothed importance weights, and k-hat, the shape of their tail."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["MIN_DRAWS", "KHat", "k_hat", "pareto_smooth", "smooth"]

MIN_DRAWS = 25
"""Fewest draws that leave five in the tail."""

_UNDERFLOW = -math.log(torch.finfo(torch.float64).tiny)


@dataclass(frozen=True, eq=False)
class KHat:
    r"""Tail shape of importance weights, with the threshold that the number of draws allows.

    .. math:: \text{threshold} = \min(1 - 1 / \log_{10} S,\ 0.7)

    Args:
        values: One k-hat for each set of weights, shape ``batch``.
        num_draws: Number S of draws behind each.

    Example:
        >>> found = KHat(torch.tensor([0.1, 0.9]), num_draws=1000)
        >>> round(found.threshold, 2), found.share_above
        (0.67, 0.5)
    """

    values: Float[Tensor, " *batch"]
    num_draws: int

    @property
    def threshold(self) -> float:
        """Largest k-hat with which importance-corrected answers can be used."""
        return min(1 - 1 / math.log10(self.num_draws), 0.7)

    @property
    def median(self) -> float:
        """Middle of the values."""
        return self.values.flatten().quantile(0.5, interpolation="lower").item()

    @property
    def share_above(self) -> float:
        """Share of the values above the threshold."""
        return (self.values > self.threshold).double().mean().item()

    def worst(self, num: int = 10) -> Tensor:
        """Return the indices of the largest values, largest first.

        Args:
            num: How many.
        """
        flat = self.values.flatten()
        return flat.argsort(descending=True, stable=True)[:num]

    @property
    def verdict(self) -> str:
        """What the values mean, in plain words."""
        if self.values.numel() == 1:
            return _verdict(self.values.item(), self.threshold)
        share = self.share_above
        if share == 0:
            low = (self.values <= min(0.5, self.threshold)).double().mean().item()
            return "good" if low == 1 else "usable with importance correction"
        part = f"{share:.0%}" if share >= 0.005 else "some (under 1 %)"
        if share <= 0.5:
            return f"not to be trusted for {part} of the datapoints"
        return f"not to be trusted ({part} of the datapoints are above {self.threshold:.2f})"

    def __str__(self) -> str:
        """One line."""
        if self.values.numel() == 1:
            numbers = f"k-hat {self.values.item():.2f}"
        else:
            numbers = f"k-hat median {self.median:.2f}, {self.share_above:.1%} above"
        limit = f"threshold {self.threshold:.2f} for {self.num_draws} draws"
        return f"{numbers} ({limit}): {self.verdict}"


def k_hat(log_weights: Float[Tensor, " particles *batch"]) -> KHat:
    r"""Return the shape of the generalized Pareto distribution that fits the largest weights.

    The weights have finite moments of order below 1/k. Below 0.5 their variance is finite; below
    the threshold Pareto-smoothed importance sampling is reliable; above 1 they have no mean.
    Constant weights, those of an exact guide, have no tail and get 0. A tail that cannot be fitted
    gets inf: one of ties, or one of weights that are zero beside the largest in floating point, as
    those of a guide that diverged. A low k-hat says that weighted draws can be used, not that they
    can be used without weights.

    Args:
        log_weights: Log importance weights log p - log q, shape ``(particles, *batch)``; at least
            25 particles.

    Raises:
        ValueError: If there are too few particles, or weights are NaN or infinite.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024) | https://arxiv.org/abs/1507.02646
        Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018) | https://arxiv.org/abs/1802.02538

    Example:
        >>> normal = dist.Normal(0.0, 1.0)
        >>> z = normal.sample((1000,))
        >>> weights = dist.Normal(0.0, 1.1).log_prob(z) - normal.log_prob(z)
        >>> k_hat(weights).verdict
        'good'
    """
    return smooth(log_weights)[0]


def smooth(log_weights: Tensor) -> tuple[KHat, Tensor]:
    """Return k-hat, and the Pareto-smoothed log weights, normalized over the particles.

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.

    Raises:
        ValueError: If there are too few particles, or weights are NaN or infinite.
    """
    if not (isinstance(log_weights, Tensor) and log_weights.is_floating_point()):
        what = getattr(log_weights, "dtype", type(log_weights).__name__)
        raise TypeError(
            f"k_hat: expected log weights as a tensor of floating-point numbers; got {what}. "
            "Write: torch.as_tensor(log_weights, dtype=torch.float64)."
        )
    num = len(log_weights) if log_weights.dim() else 1
    if num < MIN_DRAWS:
        raise ValueError(
            f"k_hat: expected at least {MIN_DRAWS} particles in the first dim; got shape "
            f"{tuple(log_weights.shape)}. Write: num_samples=1000."
        )
    flat = log_weights.detach().reshape(num, -1)
    bad = flat.isnan() | (flat == math.inf)
    if bad.any():
        raise ValueError(
            f"k_hat: expected finite log weights; got {int(bad.sum())} of {flat.numel()} that are "
            "NaN or inf. Write: torch.isfinite(x).all(), to look for NaN in the data."
        )
    empty = (flat == -math.inf).all(0)
    if empty.any():
        raise ValueError(
            "k_hat: expected draws where the model's density is positive; got none in "
            f"{int(empty.sum())} of {flat.shape[1]} elements, as the guide lies outside the "
            "model's support. Write: a guide with the supports of the model's latents, as "
            "px.AutoJoint(model) has."
        )
    flat = flat.double()
    values = torch.zeros(flat.shape[1], dtype=torch.float64, device="cpu")
    smoothed = (flat - flat.logsumexp(0)).cpu()
    varying, unfit = _tails(log_weights.detach().reshape(num, -1))
    values[unfit] = math.inf
    fitting = varying & ~unfit
    if fitting.any():
        smoothed[:, fitting], values[fitting] = pareto_smooth(flat[:, fitting.to(flat.device)])
    shape = log_weights.shape[1:]
    return KHat(values.reshape(shape), num), smoothed.reshape((num, *shape))


def pareto_smooth(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pareto-smoothed, normalized log weights, and the shape k of the right tail.

    ArviZ takes the negative of the log weights, as leave-one-out cross-validation has them.

    Args:
        log_w: Log weights, shape ``(draws, elements)``, whose tail is not constant.

    Returns:
        Shapes ``(draws, elements)`` and ``(elements,)``; k is inf where the tail cannot be fitted.
    """
    from arviz_stats.base.array import array_stats

    weights = log_w.detach().cpu().double().numpy()
    with np.errstate(all="ignore"):
        smoothed, shape = array_stats.psislw(-weights, axis=0)
    smoothed = np.moveaxis(np.asarray(smoothed).reshape(weights.shape[::-1]), -1, 0)
    shape = np.nan_to_num(np.asarray(shape, dtype=float), nan=np.inf)
    return torch.from_numpy(np.ascontiguousarray(smoothed)), torch.from_numpy(shape.reshape(-1))


def _verdict(value: float, threshold: float) -> str:
    if value <= min(0.5, threshold):
        return "good"
    if value <= threshold:
        return "usable with importance correction"
    return "not to be trusted"


def _tails(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which columns have a tail beyond rounding, and which of these cannot be fitted.

    The fit is led by the upper quartile of what the tail exceeds its end by: it must not be zero,
    neither by ties nor by underflow.
    """
    num = log_w.shape[0]
    size = int(3 * num**0.5) if num > 225 else num // 5
    top = log_w.topk(size + 1, 0).values
    finite = top.masked_fill(top == -math.inf, 0.0).abs().amax(0).clamp(min=1.0)
    rounding = torch.finfo(log_w.dtype).eps * finite
    # Log weights of many data are large: 64 roundings of 1e5 would hide a tail of half a nat.
    varying = top[0] - top[size - 1] > torch.minimum(64 * rounding, (4 * rounding).clamp(min=0.01))
    quartile = top[size - int(size / 4 + 0.5)]
    unfit = (quartile == top[size]) | (top[0] - quartile > _UNDERFLOW)
    return varying.cpu(), (varying & unfit).cpu()
