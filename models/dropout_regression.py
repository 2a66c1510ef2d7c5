r"""Linear regression with dropout, and the Gaussian prior that gives the same answer.

.. math:: w_j \sim N\Big(0, \frac{\sigma^2}{\lambda \Gamma_j^2}\Big), \quad
          y \mid w \sim N(X w, \sigma^2 I), \qquad
          \lambda = \frac{1 - p}{p}, \quad \Gamma_j^2 = \sum_i X_{ij}^2

With R a mask of independent Bernoulli(p) entries, p the probability to **keep** a feature,

.. math:: E_R \lVert y - (X \odot R) w \rVert^2
          = \lVert y - p X w \rVert^2 + p (1 - p) \lVert \Gamma w \rVert^2,

so that dropout is ridge regression of p w with coefficient λ, in units of each feature's own
length, and the mean of the posterior above.

References:
    Dropout: A Simple Way to Prevent Neural Networks from Overfitting (Srivastava et al., 2014),
    section 9.1 | https://jmlr.org/papers/v15/srivastava14a.html
    Dropout Training as Adaptive Regularization (Wager, Wang and Liang, 2013) |
    https://arxiv.org/abs/1307.1493

Example:
    >>> x, y = data()
    >>> x.shape, y.shape
    (torch.Size([442, 10]), torch.Size([442]))
    >>> dropout_solution(x, y, keep=0.5).shape
    torch.Size([10])
"""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = [
    "Data",
    "data",
    "dropout_loss",
    "dropout_loss_by_masks",
    "dropout_solution",
    "model",
    "penalized_loss",
    "posterior",
]


class Data(NamedTuple):
    """A regression.

    Attributes:
        x: Features, centred, in units of their own, shape ``(num, num_features)``.
        y: Responses, centred and of unit variance, shape ``(num,)``.
    """

    x: Tensor
    y: Tensor


def data(*, dtype: torch.dtype | None = None) -> Data:
    """Load the diabetes data that scikit-learn bundles: 442 patients, 10 features.

    The features keep units that differ: standard deviations from 0.25 to 2.

    Args:
        dtype: Floating dtype of the result; torch's default if None.
    """
    from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]

    dtype = torch.get_default_dtype() if dtype is None else dtype
    found = load_diabetes()
    x = torch.as_tensor(found.data, dtype=dtype) * len(found.target) ** 0.5
    y = torch.as_tensor(found.target, dtype=dtype)
    units = torch.logspace(-2, 1, x.shape[1], base=2, dtype=dtype)
    return Data(x * units, (y - y.mean()) / y.std(correction=0))


def model(x: Tensor, y: Tensor, *, keep: float = 0.5, sigma: float = 0.7) -> Tensor:
    """Sites ``w`` (vector latent) and ``y``: the Bayesian reading of dropout.

    Args:
        x: Features, shape ``(num, num_features)``.
        y: Responses, shape ``(num,)``.
        keep: Probability p to keep a feature.
        sigma: Standard deviation of the noise.

    Returns:
        The weights, shape ``(*particles, num_features)``.
    """
    scale = sigma / (_ridge(keep) * x.square().sum(0)).sqrt()
    w: Tensor = pyro.sample("w", dist.Normal(torch.zeros_like(scale), scale).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((w * x).sum(-1), sigma), obs=y)
    return w


def posterior(x: Tensor, y: Tensor, *, keep: float, sigma: float = 0.7) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the exact posterior of ``w``; the mean is p w of dropout.

    Args:
        x: Features, shape ``(num, num_features)``.
        y: Responses, shape ``(num,)``.
        keep: Probability p to keep a feature.
        sigma: Standard deviation of the noise.
    """
    gram = x.T @ x
    precision = gram + _ridge(keep) * gram.diagonal().diag()
    return torch.linalg.solve(precision, x.T @ y), sigma**2 * torch.linalg.inv(precision)


def dropout_solution(x: Tensor, y: Tensor, *, keep: float) -> Tensor:
    """Return the w that minimizes the expected loss under dropout without rescaling.

    Args:
        x: Features, shape ``(num, num_features)``.
        y: Responses, shape ``(num,)``.
        keep: Probability p to keep a feature.
    """
    return posterior(x, y, keep=keep)[0] / keep


def dropout_loss(x: Tensor, y: Tensor, w: Tensor, *, keep: float) -> Tensor:
    """Return E_R |y - (X * R) w|² from the moments of each (X * R) w, a scalar.

    Args:
        x: Features, shape ``(num, num_features)``.
        y: Responses, shape ``(num,)``.
        w: Weights, shape ``(num_features,)``.
        keep: Probability p to keep a feature.
    """
    mean = keep * x @ w
    variance = keep * (1 - keep) * (x * w).square().sum(-1)
    return ((y - mean).square() + variance).sum()


def penalized_loss(x: Tensor, y: Tensor, w: Tensor, *, keep: float) -> Tensor:
    """Return |y - p X w|² + p (1 - p) |Γ w|², a scalar.

    Args:
        x: Features, shape ``(num, num_features)``.
        y: Responses, shape ``(num,)``.
        w: Weights, shape ``(num_features,)``.
        keep: Probability p to keep a feature.
    """
    lengths = x.square().sum(0)
    return (y - keep * x @ w).square().sum() + keep * (1 - keep) * (lengths * w**2).sum()


def dropout_loss_by_masks(
    x: Tensor, y: Tensor, w: Tensor, *, keep: float, num_masks: int
) -> Tensor:
    """Return |y - (X * R) w|² of independent masks R, shape ``(num_masks,)``.

    Args:
        x: Features, shape ``(num, num_features)``.
        y: Responses, shape ``(num,)``.
        w: Weights, shape ``(num_features,)``.
        keep: Probability p to keep a feature.
        num_masks: Number of masks.
    """
    masks = torch.bernoulli(torch.full((num_masks, *x.shape), keep, dtype=x.dtype))
    return (y - (x * masks) @ w).square().sum(-1)


def _ridge(keep: float) -> float:
    if not 0 < keep < 1:
        raise ValueError(f"dropout: expected 0 < keep < 1; got {keep}. Write: keep=0.5.")
    return (1 - keep) / keep
