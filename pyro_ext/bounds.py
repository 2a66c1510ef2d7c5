r"""Bounds on the log evidence: pure functions of log importance weights.

Each takes ``log_weights`` of shape ``(particles, *batch)`` and returns ``batch``. A subsampling
scale belongs outside, and so does the sum over the batch.

Particles that are drawn from the components of a mixture in turn, and not from the mixture, count
S α each, for S components of shares α: a mean over particles is then
:math:`\frac1K \sum_k S \alpha_{c(k)} h(z_k)`, with ``log_strata`` the log of these factors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ciwae", "cubo", "elbo", "iwae", "jackknife", "renyi"]

_NEAR_ONE = 1e-3  # |1 - alpha| below which the Rényi bound is computed about the ELBO


def elbo(
    log_weights: Float[Tensor, " particles *batch"],
    *,
    log_strata: Float[Tensor, " particles *batch"] | None = None,
) -> Float[Tensor, " *batch"]:
    r"""Return the evidence lower bound, estimated with K particles.

    .. math:: \mathcal{L} = \frac1K \sum_k \log w_k

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.
        log_strata: Log of how often each particle counts, where they are stratified.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2013) | https://arxiv.org/abs/1312.6114

    Example:
        >>> elbo(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        tensor([1., 2.])
    """
    return _mean(log_weights, log_strata)


def iwae(
    log_weights: Float[Tensor, " particles *batch"],
    *,
    log_strata: Float[Tensor, " particles *batch"] | None = None,
) -> Float[Tensor, " *batch"]:
    r"""Return the importance-weighted bound of K particles.

    .. math:: \mathcal{L}_K = \log \frac1K \sum_k w_k

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.
        log_strata: Log of how often each particle counts, where they are stratified.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015) |
        https://arxiv.org/abs/1509.00519

    Example:
        >>> iwae(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6931])
    """
    if log_strata is not None:
        log_weights = log_weights + log_strata
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


def ciwae(
    log_weights: Float[Tensor, " particles *batch"],
    beta: float,
    *,
    log_strata: Float[Tensor, " particles *batch"] | None = None,
) -> Float[Tensor, " *batch"]:
    r"""Return the convex combination of the ELBO and the importance-weighted bound.

    .. math:: \beta\,\mathcal{L} + (1 - \beta)\,\mathcal{L}_K

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.
        beta: Share of the ELBO, in [0, 1].
        log_strata: Log of how often each particle counts, where they are stratified.

    Raises:
        ValueError: If ``beta`` is outside [0, 1].

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018) |
        https://arxiv.org/abs/1802.04537

    Example:
        >>> ciwae(torch.tensor([[1.0], [3.0]]).log(), beta=1.0)
        tensor([0.5493])
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"ciwae: expected beta in [0, 1]; got {beta}. Write: beta=0.5.")
    one, many = (bound(log_weights, log_strata=log_strata) for bound in (elbo, iwae))
    if beta in (0, 1):  # 0 · -inf is not a number
        return one if beta else many
    return beta * one + (1 - beta) * many


def renyi(
    log_weights: Float[Tensor, " particles *batch"],
    alpha: float,
    *,
    log_strata: Float[Tensor, " particles *batch"] | None = None,
) -> Float[Tensor, " *batch"]:
    r"""Return the Rényi bound of order α, estimated with K particles (VR-IWAE).

    .. math:: \mathcal{L}^{(\alpha)}_K = \frac{1}{1 - \alpha} \log \frac1K \sum_k w_k^{1 - \alpha}

    α = 0 is the importance-weighted bound, and α → 1 the ELBO, to which the formula is continued.

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.
        alpha: Order α, any real number.
        log_strata: Log of how often each particle counts, where they are stratified.

    References:
        Rényi Divergence Variational Inference (Li and Turner, 2016) |
        https://arxiv.org/abs/1602.02311
        Alpha-divergence Variational Inference Meets Importance Weighted Auto-Encoders
        (Daudel et al., 2023) | https://arxiv.org/abs/2210.06226

    Example:
        >>> renyi(torch.tensor([[1.0], [3.0]]).log(), alpha=0.5)
        tensor([0.6238])
    """
    order = 1 - alpha
    if abs(order) >= _NEAR_ONE:
        return iwae(order * log_weights, log_strata=log_strata) / order
    if order == 0:
        return elbo(log_weights, log_strata=log_strata)
    # About the largest weight, whatever is taken for it: it cancels. It must be finite.
    centre = log_weights.detach().amax(0).clamp(min=torch.finfo(log_weights.dtype).min)
    excess = _mean(torch.expm1(order * (log_weights - centre)), log_strata)
    if log_strata is not None:
        excess = excess + torch.expm1(log_strata).mean(0)
    return centre + torch.log1p(excess) / order


def cubo(
    log_weights: Float[Tensor, " particles *batch"],
    order: float = 2.0,
    *,
    log_strata: Float[Tensor, " particles *batch"] | None = None,
) -> Float[Tensor, " *batch"]:
    r"""Return the χ upper bound of order n, estimated with K particles.

    .. math:: \mathcal{U}_n = \frac1n \log \mathbb{E}_q w^n
              \approx \frac1n \log \frac1K \sum_k w_k^n

    It is the Rényi bound of order α = 1 - n. It lies above the log evidence; its estimate with
    finite K is biased downwards, and falls on the bound as K grows.

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.
        order: Order n, at least 1.
        log_strata: Log of how often each particle counts, where they are stratified.

    Raises:
        ValueError: If ``order`` is less than 1: then it is no upper bound.

    References:
        Variational Inference via χ Upper Bound Minimization (Dieng et al., 2017) |
        https://arxiv.org/abs/1611.00328

    Example:
        >>> cubo(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.8047])
    """
    if not order >= 1:
        raise ValueError(f"cubo: expected order >= 1; got {order}. Write: order=2.")
    return renyi(log_weights, alpha=1 - order, log_strata=log_strata)


def jackknife(log_weights: Float[Tensor, " particles *batch"]) -> Float[Tensor, " *batch"]:
    r"""Return the importance-weighted estimate with its bias of order 1/K removed.

    .. math:: K \mathcal{L}_K - \frac{K - 1}{K} \sum_k \mathcal{L}_{K-1}(w_{-k})

    Its bias is of order 1/K², and it is no lower bound.

    Args:
        log_weights: Log importance weights, shape ``(particles, *batch)``.

    Raises:
        ValueError: If there is one particle only.

    References:
        Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        Variational Inference (Nowozin, 2018) | https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> jackknife(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.8370])
    """
    count = log_weights.shape[0]
    if count < 2:
        raise ValueError(
            f"jackknife: expected at least two particles; got {count}. Write: num_particles=10."
        )
    # log(sum - w_k) cancels only for the largest weight, whose sum of others is taken directly.
    largest = log_weights.argmax(0, keepdim=True)
    total = torch.logsumexp(log_weights, 0, keepdim=True)
    share = (log_weights - total).exp().scatter(0, largest, 0.0)
    rest = torch.logsumexp(log_weights.scatter(0, largest, -math.inf), 0, keepdim=True)
    left_out = (total + torch.log1p(-share)).scatter(0, largest, rest) - math.log(count - 1)
    return count * iwae(log_weights) - (count - 1) * left_out.mean(0)


def _mean(values: Tensor, log_strata: Tensor | None) -> Tensor:
    return (values if log_strata is None else log_strata.exp() * values).mean(0)
