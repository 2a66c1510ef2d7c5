r"""Eight schools: a hierarchical model of the effect of coaching on test scores.

.. math::
    \mu \sim N(0, 5^2), \quad \tau \sim \text{Half-Cauchy}(5), \quad
    \theta_j \sim N(\mu, \tau^2), \quad y_j \sim N(\theta_j, \sigma_j^2)

Ten latents whose posterior is a funnel in (log tau, theta). Given tau everything is normal, so the
evidence and all moments are one-dimensional integrals over log tau, which :func:`exact_posterior`
computes to rounding error.

References:
    Estimation in Parallel Randomized Experiments (Rubin, 1981) |
    https://doi.org/10.3102/10769986006004377

Example:
    >>> exact = exact_posterior(*data())
    >>> print(f"{exact.log_evidence:.6f}")
    -31.311347
"""

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = [
    "Data",
    "ExactPosterior",
    "centred_model",
    "data",
    "exact_posterior",
    "exact_samples",
    "model",
]

PRIOR_SCALE = 5.0


class Data(NamedTuple):
    """The arguments of the models.

    Attributes:
        sigma: Standard errors of the schools' effects, shape ``(8,)``.
        y: Estimated effects, shape ``(8,)``.
    """

    sigma: Tensor
    y: Tensor


def data(*, dtype: torch.dtype | None = None) -> Data:
    """Return the eight standard errors and effects that Rubin (1981) gives."""
    return Data(
        torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=dtype),
        torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=dtype),
    )


def model(
    sigma: Tensor,
    y: Tensor | None = None,
    *,
    mu_scale: float = PRIOR_SCALE,
    tau_scale: float = PRIOR_SCALE,
) -> Tensor:
    """Non-centred: ``eta`` is standard normal a priori, ``theta = mu + tau * eta``.

    Args:
        sigma: Standard errors, shape ``(schools,)``.
        y: Effects, shape ``(schools,)``; None to sample them.
        mu_scale: Scale of the normal prior of ``mu``.
        tau_scale: Scale of the half-Cauchy prior of ``tau``.

    Returns:
        ``theta``, shape ``(schools,)``.
    """
    mu, tau = _globals(sigma, mu_scale, tau_scale)
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(sigma.new_zeros(()), sigma.new_ones(())))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    return theta


def centred_model(
    sigma: Tensor,
    y: Tensor | None = None,
    *,
    mu_scale: float = PRIOR_SCALE,
    tau_scale: float = PRIOR_SCALE,
) -> Tensor:
    """Centred: ``theta`` is a latent of its own; the same posterior, and harder to approximate.

    Args:
        sigma: Standard errors, shape ``(schools,)``.
        y: Effects, shape ``(schools,)``; None to sample them.
        mu_scale: Scale of the normal prior of ``mu``.
        tau_scale: Scale of the half-Cauchy prior of ``tau``.

    Returns:
        ``theta``, shape ``(schools,)``.
    """
    mu, tau = _globals(sigma, mu_scale, tau_scale)
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
    return theta


def _globals(sigma: Tensor, mu_scale: float, tau_scale: float) -> tuple[Tensor, Tensor]:
    mu = pyro.sample("mu", dist.Normal(sigma.new_zeros(()), sigma.new_tensor(mu_scale)))
    tau = pyro.sample("tau", dist.HalfCauchy(sigma.new_tensor(tau_scale)))
    return mu, tau


class ExactPosterior(NamedTuple):
    """Exact answers in float64; the moments are keyed by latent: mu, tau, log_tau, theta and eta.

    Attributes:
        log_evidence: log p(y).
        mean: Posterior means.
        sd: Posterior standard deviations.
    """

    log_evidence: float
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


def exact_posterior(
    sigma: Tensor,
    y: Tensor,
    *,
    mu_scale: float = PRIOR_SCALE,
    tau_scale: float = PRIOR_SCALE,
) -> ExactPosterior:
    r"""Integrate theta and mu analytically, and log tau by quadrature.

    .. math::
        p(y) = \int p(\tau) \, N(y \mid 0,\ \mathrm{diag}(\sigma^2 + \tau^2)
        + s^2 \mathbf{1}\mathbf{1}^\top) \, \tau \; d\log\tau

    The integrand is analytic and decays at both ends, so the trapezoidal rule converges to
    rounding error.

    Args:
        sigma: Standard errors, shape ``(schools,)``.
        y: Effects, shape ``(schools,)``.
        mu_scale: s, the scale of the normal prior of ``mu``.
        tau_scale: Scale of the half-Cauchy prior of ``tau``.
    """
    sigma, y = sigma.double(), y.double()
    log_joint = _log_joint(sigma, y, mu_scale, tau_scale)
    weight = log_joint.softmax(0)
    tau = _LOG_TAU.exp()
    mu_mean, mu_variance, variance = _given(tau, sigma, y, mu_scale)
    zero = torch.zeros_like(tau)
    shrink, slope = tau[:, None] ** 2 / variance, tau[:, None] / variance
    conditional = {
        "mu": (mu_mean, mu_variance),
        "tau": (tau, zero),
        "log_tau": (_LOG_TAU, zero),
        "theta": (
            shrink * y + (1 - shrink) * mu_mean[:, None],
            shrink * sigma**2 + (1 - shrink) ** 2 * mu_variance[:, None],
        ),
        "eta": (
            slope * (y - mu_mean[:, None]),
            sigma**2 / variance + slope**2 * mu_variance[:, None],
        ),
    }
    mean: dict[str, Tensor] = {}
    sd: dict[str, Tensor] = {}
    for name, (means, variances) in conditional.items():
        mean[name] = weight @ means
        sd[name] = (weight @ (variances + (means - mean[name]) ** 2)).sqrt()
    log_evidence = log_joint.logsumexp(0) + math.log(_STEP)
    return ExactPosterior(log_evidence.item(), mean, sd)


def exact_samples(
    num: int,
    sigma: Tensor,
    y: Tensor,
    *,
    mu_scale: float = PRIOR_SCALE,
    tau_scale: float = PRIOR_SCALE,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Draw independent posterior samples in float64, without a Markov chain.

    Log tau comes from its density on the quadrature grid (uniform within a step of 0.01), and mu
    and theta from their normal conditionals.

    Args:
        num: Number of samples.
        sigma: Standard errors, shape ``(schools,)``.
        y: Effects, shape ``(schools,)``.
        mu_scale: Scale of the normal prior of ``mu``.
        tau_scale: Scale of the half-Cauchy prior of ``tau``.
        seed: Seed of a generator of its own.

    Returns:
        ``mu`` and ``tau`` of shape ``(num,)``, ``theta`` and ``eta`` of shape ``(num, schools)``.
    """
    sigma, y = sigma.double(), y.double()
    generator = torch.Generator().manual_seed(seed)
    weight = _log_joint(sigma, y, mu_scale, tau_scale).softmax(0)
    cell = torch.multinomial(weight, num, replacement=True, generator=generator)
    jitter = torch.rand(num, generator=generator, dtype=torch.float64) - 0.5
    tau = (_LOG_TAU[cell] + _STEP * jitter).exp()
    mu_mean, mu_variance, variance = _given(tau, sigma, y, mu_scale)
    noise = torch.randn(num, 1 + len(y), generator=generator, dtype=torch.float64)
    mu = mu_mean + mu_variance.sqrt() * noise[:, 0]
    slope = tau[:, None] / variance
    eta = slope * (y - mu[:, None]) + sigma / variance.sqrt() * noise[:, 1:]
    return {"mu": mu, "tau": tau, "eta": eta, "theta": mu[:, None] + tau[:, None] * eta}


_STEP = 0.01
_LOG_TAU = torch.arange(-4000, 1500, dtype=torch.float64) * _STEP


def _given(
    tau: Tensor, sigma: Tensor, y: Tensor, mu_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return E[mu | tau, y], Var[mu | tau, y] and Var[y_j | mu, tau]."""
    variance = sigma**2 + tau[:, None] ** 2
    mu_variance = 1 / (1 / mu_scale**2 + (1 / variance).sum(-1))
    return mu_variance * (y / variance).sum(-1), mu_variance, variance


def _log_joint(sigma: Tensor, y: Tensor, mu_scale: float, tau_scale: float) -> Tensor:
    """Return log p(y, log tau) over the grid of log tau, with theta and mu integrated out."""
    tau = _LOG_TAU.exp()
    mu_mean, mu_variance, variance = _given(tau, sigma, y, mu_scale)
    prior: Tensor = dist.HalfCauchy(sigma.new_tensor(tau_scale)).log_prob(tau) + _LOG_TAU
    noise: Tensor = dist.Normal(torch.zeros_like(y), variance.sqrt()).log_prob(y).sum(-1)
    return prior + noise + 0.5 * (mu_mean**2 / mu_variance + (mu_variance / mu_scale**2).log())
