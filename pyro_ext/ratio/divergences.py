"""Variational bounds on divergences between p and q: pure functions of a critic's outputs.

Each takes what the critic gives on samples of p and on samples of q, and returns a scalar. In
expectation over samples that the critic has not seen, ``jsd``, ``nwj`` and ``infonce`` are lower
bounds for any critic; ``dv`` is one only for infinitely many samples of q.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["dv", "infonce", "jsd", "log_mean_exp", "nwj"]


def log_mean_exp(t: Float[Tensor, " *batch num"]) -> Float[Tensor, " *batch"]:
    """Return log of the mean of ``exp(t)`` over the last dim.

    Args:
        t: Values, shape ``(*batch, num)``.
    """
    return torch.logsumexp(t, -1) - math.log(t.shape[-1])


def jsd(t_p: Float[Tensor, " num_p"], t_q: Float[Tensor, " num_q"]) -> Float[Tensor, ""]:
    r"""Return the logistic bound of the Jensen-Shannon divergence.

    .. math:: \mathrm{JSD}(p, q) \ge
        \log 2 + \tfrac12 \mathbb{E}_p \log\sigma(T) + \tfrac12 \mathbb{E}_q \log(1 - \sigma(T))

    D = σ(T) and 1 - D are computed from the logits alone, so neither is ever rounded to zero. The
    best T is log p/q, where the bound is tight. It never exceeds log 2.

    Args:
        t_p: Logits on samples of p, shape ``(num_p,)``.
        t_q: Logits on samples of q, shape ``(num_q,)``.

    References:
        Generative Adversarial Networks (Goodfellow et al., 2014) | https://arxiv.org/abs/1406.2661

    Example:
        >>> round(jsd(torch.full((9,), 50.0), torch.full((5,), -50.0)).item(), 4)  # log 2
        0.6931
    """
    return math.log(2) + (logsigmoid(t_p).mean() + logsigmoid(-t_q).mean()) / 2


def nwj(t_p: Float[Tensor, " num_p"], t_q: Float[Tensor, " num_q"]) -> Float[Tensor, ""]:
    r"""Return the bound R1 of the KL divergence, of Nguyen, Wainwright and Jordan, and of f-GAN.

    .. math:: \mathrm{KL}(p \,\|\, q) \ge R_1[T] = \mathbb{E}_p T - \mathbb{E}_q e^{T - 1}

    The best T is 1 + log p/q.

    Args:
        t_p: Outputs on samples of p, shape ``(num_p,)``.
        t_q: Outputs on samples of q, shape ``(num_q,)``.

    References:
        Estimating divergence functionals and the likelihood ratio by convex risk minimization
        (Nguyen, Wainwright and Jordan, 2010) | https://arxiv.org/abs/0809.0853
        f-GAN (Nowozin, Cseke and Tomioka, 2016) | https://arxiv.org/abs/1606.00709

    Example:
        >>> nwj(torch.ones(3), torch.ones(4))  # T of p = q
        tensor(0.)
    """
    return t_p.mean() - torch.exp(t_q - 1).mean()


def dv(
    t_p: Float[Tensor, " num_p"],
    t_q: Float[Tensor, " num_q"],
    log_average: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the bound R2 of the KL divergence, of Donsker and Varadhan.

    .. math:: \mathrm{KL}(p \,\|\, q) \ge R_2[T] = \mathbb{E}_p T - \log \mathbb{E}_q e^T
        \ge R_1[T]

    The best T is log p/q up to a constant. The logarithm of a mini-batch mean biases the value
    upwards, and the gradient too. A running mean of e^T in the place of the mini-batch's takes the
    bias out of the gradient.

    Args:
        t_p: Outputs on samples of p, shape ``(num_p,)``.
        t_q: Outputs on samples of q, shape ``(num_q,)``.
        log_average: Log of the running mean of e^T under q, for the gradient; the value is that
            of the samples.

    References:
        Asymptotic evaluation of certain Markov process expectations for large time
        (Donsker and Varadhan, 1983) | https://doi.org/10.1002/cpa.3160360204
        MINE: Mutual Information Neural Estimation (Belghazi et al., 2018) |
        https://arxiv.org/abs/1801.04062

    Example:
        >>> dv(torch.full((3,), 7.0), torch.full((4,), 7.0))  # a constant changes nothing
        tensor(0.)
    """
    log_mean = log_mean_exp(t_q)
    value = t_p.mean() - log_mean
    if log_average is None:
        return value
    slope = t_p.mean() - torch.exp(log_mean - log_average.detach())
    return value.detach() + slope - slope.detach()


def infonce(
    t_p: Float[Tensor, " num_p"], t_q: Float[Tensor, " *num_p num_q"]
) -> Float[Tensor, ""]:
    r"""Return the contrastive bound of the KL divergence: find one sample of p among K - 1 of q.

    .. math:: \mathrm{KL}(p \,\|\, q) \ge \mathbb{E} \log
        \frac{e^{T(x)}}{\frac1K \left(e^{T(x)} + \sum_{j=1}^{K-1} e^{T(y_j)}\right)},
        \qquad x \sim p, \ y_j \sim q

    The best T is log p/q up to a constant. It never exceeds log K. For the mutual information of a
    batch of pairs, ``t_p`` is the diagonal of the matrix of scores, and each row of ``t_q`` the
    rest of its row.

    Args:
        t_p: Outputs on samples of p, shape ``(num_p,)``.
        t_q: Outputs on samples of q, shape ``(num_q,)`` where all share them, or ``(num_p,
            num_q)``.

    References:
        Representation Learning with Contrastive Predictive Coding (van den Oord, Li and Vinyals,
        2018) | https://arxiv.org/abs/1807.03748

    Example:
        >>> round(infonce(torch.full((2,), 99.0), torch.zeros(63)).item(), 4)  # log 64
        4.1589
    """
    others = torch.logsumexp(t_q, -1)
    return (t_p - torch.logaddexp(t_p, others)).mean() + math.log(t_q.shape[-1] + 1)
