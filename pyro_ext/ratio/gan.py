"""What a generator descends, as functions of the critic's logits on its samples."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["maximum_likelihood", "minimax", "non_saturating"]


def minimax(logits: Float[Tensor, " num"]) -> Float[Tensor, ""]:
    r"""Return the generator's loss of the minimax game.

    .. math:: \mathbb{E}_{x \sim p_\text{gen}} \log(1 - D(x)), \qquad D = \sigma(\text{logit})

    For the best D it descends the Jensen-Shannon divergence, with a gradient that fades where the
    critic is sure.

    Args:
        logits: Of the critic on generated samples, shape ``(num,)``; data is the positive class.

    References:
        Generative Adversarial Networks (Goodfellow et al., 2014) | https://arxiv.org/abs/1406.2661

    Example:
        >>> minimax(torch.zeros(3))  # log 1/2
        tensor(-0.6931)
    """
    return -softplus(logits).mean()


def non_saturating(logits: Float[Tensor, " num"]) -> Float[Tensor, ""]:
    r"""Return the loss whose gradient does not fade where the critic is sure.

    .. math:: -\mathbb{E}_{x \sim p_\text{gen}} \log D(x)

    Args:
        logits: Of the critic on generated samples, shape ``(num,)``; data is the positive class.

    References:
        Generative Adversarial Networks (Goodfellow et al., 2014) | https://arxiv.org/abs/1406.2661

    Example:
        >>> non_saturating(torch.zeros(3))
        tensor(0.6931)
    """
    return softplus(-logits).mean()


def maximum_likelihood(
    logits: Float[Tensor, " num"], log_prob: Float[Tensor, " num"] | None = None
) -> Float[Tensor, ""]:
    r"""Return the loss whose expected gradient is that of the likelihood of the data.

    .. math:: -\mathbb{E}_{x \sim p_\text{gen}} f(D(x)), \qquad
        f(D) = e^{\sigma^{-1}(D)} = \frac{D}{1 - D}

    For the best D, f(D) = p_data / p_gen, and with the critic's parameters stopped

    .. math:: \nabla \mathbb{E}_{x \sim p_\text{gen}} f(D(x))
        = \mathbb{E}_{p_\text{gen}} \frac{p_\text{data}}{p_\text{gen}} \nabla \log p_\text{gen}
        = \nabla \mathbb{E}_{p_\text{data}} \log p_\text{gen}.

    The variance is that of importance sampling from the generator.

    Args:
        logits: Of the critic on generated samples, shape ``(num,)``. Without ``log_prob`` they
            carry the gradient through the samples; the critic's parameters must get none.
        log_prob: Log p_gen of the samples, shape ``(num,)``, where they are not reparameterized;
            the ratio is then stopped, and weighs the score.

    References:
        On Distinguishability Criteria for Estimating Generative Models (Goodfellow, 2014) |
        https://arxiv.org/abs/1412.6515

    Example:
        >>> maximum_likelihood(torch.tensor([2.0, 3.0]).log())
        tensor(-2.5000)
    """
    if log_prob is None:
        return -logits.exp().mean()
    ratio = logits.detach().exp()
    score = (ratio * log_prob).mean()
    return -ratio.mean() - (score - score.detach())
