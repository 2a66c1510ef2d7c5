"""The score function's part of a gradient, for guide sites that are not reparameterized."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ext.weights import LogWeights

__all__ = ["score_surrogate"]


def score_surrogate(
    log_weights: LogWeights, bound: Callable[[Tensor], Tensor], num_outer: int
) -> Tensor:
    r"""Return a term of value zero whose gradient is that of the non-reparameterized draws.

    .. math:: \sum_k (\hat{L} - b_k) \nabla \log q(z_k)

    The baseline :math:`b_k` does not depend on z_k: with K > 1 it is the bound with the k-th
    weight replaced by the geometric mean of the others (VIMCO), else the mean over the other
    outer draws.
    A local latent is charged with the bound of its own element only, a global one with all.

    Args:
        log_weights: Log weights of the pair.
        bound: The bound.
        num_outer: Number of independent sets of particles.

    References:
        Variational Inference for Monte Carlo Objectives (Mnih and Rezende, 2016) |
        https://arxiv.org/abs/1602.06725
    """
    parts: list[Tensor] = []
    hierarchical = len(log_weights.terms) > 1
    for term in log_weights.terms:
        if term.log_q_score is None:
            continue
        with torch.no_grad():
            if term.plates or not hierarchical:
                signal = _signal(term.log_w, bound, several_outer=num_outer > 1)
                signal = term.scale * signal
            else:
                total = _totals(log_weights, bound, num_outer)
                signal = (total - _others_mean(total)) if num_outer > 1 else total
                signal = signal / num_outer
        parts.append((signal * term.log_q_score).sum())
    if not parts:
        return log_weights.terms[0].log_w.new_zeros(())
    surrogate = torch.stack(parts).sum()
    return surrogate - surrogate.detach()


def _signal(log_w: Tensor, bound: Callable[[Tensor], Tensor], *, several_outer: bool) -> Tensor:
    """Return bound minus baseline, shape ``(particles, *batch)``."""
    value = bound(log_w)
    count = log_w.shape[0]
    if count > 1:
        same = torch.eye(count, dtype=torch.bool, device=log_w.device)
        same = same.reshape(count, count, *(1,) * (log_w.dim() - 1))
        # Not _others_mean, which subtracts: log w is -inf where the model has no mass.
        others = log_w.unsqueeze(1).masked_fill(same, 0.0).sum(0) / (count - 1)
        baseline = bound(torch.where(same, others, log_w.unsqueeze(1)))
        return value - torch.where(baseline.isfinite(), baseline, 0.0)
    if several_outer:
        value = value - _others_mean(value)
    return value.unsqueeze(0)


def _totals(log_weights: LogWeights, bound: Callable[[Tensor], Tensor], num_outer: int) -> Tensor:
    """Return the bound of the whole data set for each outer draw, shape ``(num_outer,)``."""
    total: Tensor | float = 0.0
    for term in log_weights.terms:
        value = term.scale * num_outer * bound(term.log_w)
        total = total + value.reshape(num_outer, -1).sum(-1)
    return torch.as_tensor(total)


def _others_mean(values: Tensor) -> Tensor:
    """Return, for each entry along the first dim, the mean of the others."""
    return (values.sum(0, keepdim=True) - values) / (len(values) - 1)
