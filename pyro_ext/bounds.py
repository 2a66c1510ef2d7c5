"""Bounds on the log evidence: pure functions of log importance weights.

Each takes ``log_weights`` of shape ``(particles, *batch)`` and returns ``batch``. A subsampling
scale belongs outside, and so does the sum over the batch.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["elbo", "iwae"]


def elbo(log_weights: Float[Tensor, " particles *batch"]) -> Float[Tensor, " *batch"]:
    r"""Return the evidence lower bound, estimated with K particles.

    .. math:: \mathcal{L} = \frac1K \sum_k \log w_k

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013) | https://arxiv.org/abs/1312.6114

    Example:
        >>> elbo(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        tensor([1., 2.])
    """
    return log_weights.mean(0)


def iwae(log_weights: Float[Tensor, " particles *batch"]) -> Float[Tensor, " *batch"]:
    r"""Return the importance-weighted bound of K particles.

    .. math:: \mathcal{L}_K = \log \frac1K \sum_k w_k

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015) | https://arxiv.org/abs/1509.00519

    Example:
        >>> iwae(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6931])
    """
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])
