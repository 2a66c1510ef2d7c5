r"""Radon in the houses of Minnesota: a regression whose intercepts differ between counties.

.. math:: y_{jm} \sim N(a_j + \beta_\text{floor}\, x_{jm}, \sigma^2), \quad
          a_j \sim N(\alpha + \beta_\text{uranium}\, u_j, \tau^2), \\
          \alpha, \beta_\text{uranium}, \beta_\text{floor} \sim N(0, 2^2), \quad
          \sigma, \tau \sim \text{HalfNormal}(1)

919 houses in 85 counties, from one house in a county to 116: y is log radon (pCi/L), x is 1 where
the measurement was taken above the basement, u is log uranium of the county's soil. All but two
integrals are Gaussian, so that evidence and moments are known by quadrature over (log σ, log τ).

References:
    Data Analysis Using Regression and Multilevel/Hierarchical Models (Gelman and Hill, 2007),
    chapter 12. Data: State Residential Radon Survey, US Environmental Protection Agency.

Example:
    >>> houses = data()
    >>> houses.y.shape, int(houses.mask.sum())
    (torch.Size([85, 116]), 919)
    >>> bool(exact_posterior(houses).mean["floor"] < 0)
    True
"""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["ExactPosterior", "Houses", "data", "exact_posterior", "model"]

SLOPE_SD = 2.0
SMALLEST = 0.1
"""What three readings of 0.0 pCi/L count as."""


class Houses(NamedTuple):
    """Houses by county, padded to the largest; the model's arguments.

    Attributes:
        y: Log radon, shape ``(counties, houses)``.
        x: 1 above the basement, 0 in it, shape ``(counties, houses)``.
        mask: Which houses there are, shape ``(counties, houses)``.
        u: Log uranium, shape ``(counties,)``.
    """

    y: Tensor
    x: Tensor
    mask: Tensor
    u: Tensor


class ExactPosterior(NamedTuple):
    """What is known by quadrature.

    Attributes:
        log_evidence: Log p(y).
        mean: Posterior means by site, and of the county intercepts ``a``.
        sd: Posterior standard deviations by site, and of ``a``.
    """

    log_evidence: float
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


def data(*, num_counties: int | None = None, dtype: torch.dtype | None = None) -> Houses:
    """Load the houses.

    Args:
        num_counties: How many counties; all 85 if None.
        dtype: Floating dtype of the result; torch's default if None.
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    counties = _read("radon_counties.csv")[:num_counties]
    by_county: list[list[tuple[float, float]]] = [[] for _ in counties]
    for row in _read("radon_houses.csv"):
        if int(row["county"]) <= len(counties):
            value = math.log(float(row["radon"]) or SMALLEST)
            by_county[int(row["county"]) - 1].append((value, float(row["floor"])))
    most = max(map(len, by_county))
    padded = torch.zeros(2, len(counties), most, dtype=dtype)
    mask = torch.zeros(len(counties), most, dtype=torch.bool)
    for index, houses in enumerate(by_county):
        padded[:, index, : len(houses)] = torch.tensor(houses, dtype=dtype).T
        mask[index, : len(houses)] = True
    u = torch.tensor([float(row["log_uranium"]) for row in counties], dtype=dtype)
    return Houses(*padded, mask, u)


def model(y: Tensor, x: Tensor, mask: Tensor, u: Tensor, *, centred: bool = False) -> None:
    """Five global sites, and one latent for each county in the plate ``"counties"``.

    Args:
        y: Log radon, shape ``(counties, houses)``.
        x: 1 above the basement, shape ``(counties, houses)``.
        mask: Which houses there are, shape ``(counties, houses)``.
        u: Log uranium, shape ``(counties,)``.
        centred: Whether the latent of a county is its intercept ``a``, instead of ``eta``, the
            intercept's standardized distance from what uranium predicts.
    """
    slope = dist.Normal(y.new_zeros(()), SLOPE_SD)
    intercept, uranium = pyro.sample("intercept", slope), pyro.sample("uranium", slope)
    floor = pyro.sample("floor", slope)
    tau = pyro.sample("tau", dist.HalfNormal(y.new_ones(())))
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_ones(())))
    with pyro.plate("counties", len(y)):
        centre = intercept + uranium * u
        if centred:
            a = pyro.sample("a", dist.Normal(centre, tau))
        else:
            a = centre + tau * pyro.sample("eta", dist.Normal(y.new_zeros(()), 1.0))
        mean = a.unsqueeze(-1) + floor.unsqueeze(-1) * x
        houses = dist.Normal(mean, sigma.unsqueeze(-1)).mask(mask).to_event(1)
        pyro.sample("y", houses, obs=y)


def exact_posterior(houses: Houses, *, num_points: int = 60) -> ExactPosterior:
    """Return evidence and moments: a mixture of normals over a grid of (log σ, log τ).

    Args:
        houses: The data.
        num_points: Points of the grid along each axis.
    """
    log_sigma = torch.linspace(-0.6, 0.0, num_points).to(houses.y)
    log_tau = torch.linspace(-5.0, 0.5, num_points).to(houses.y)
    if len(houses.y) < 85:  # fewer data, wider posteriors
        log_sigma = torch.linspace(-1.5, 1.0, num_points).to(houses.y)
        log_tau = torch.linspace(-8.0, 1.5, num_points).to(houses.y)
    log_w, means, variances = [], [], []
    half_normal = dist.HalfNormal(houses.y.new_ones(()))
    for log_s in log_sigma:
        sigma, tau = log_s.exp().expand(num_points), log_tau.exp()
        log_p, mean, variance = _given_scales(houses, sigma, tau)
        prior = half_normal.log_prob(sigma) + half_normal.log_prob(tau) + log_s + log_tau
        log_w.append(log_p + prior)
        scales = torch.stack([tau, sigma], -1)
        means.append(torch.cat([mean, scales], -1))
        variances.append(torch.cat([variance, torch.zeros_like(scales)], -1))
    total = torch.cat(log_w)
    cell = (log_sigma[1] - log_sigma[0]) * (log_tau[1] - log_tau[0])
    weight = total.softmax(0).unsqueeze(-1)
    mean, square = torch.cat(means), torch.cat(variances) + torch.cat(means).square()
    first = (weight * mean).sum(0)
    sd = ((weight * square).sum(0) - first.square()).sqrt()
    names = ("intercept", "uranium", "floor")
    split = [1, 1, 1, len(houses.y), 1, 1]
    keys = (*names, "a", "tau", "sigma")

    def by_name(values: Tensor) -> dict[str, Tensor]:
        parts = zip(keys, values.split(split), strict=True)
        return {key: part if key == "a" else part[0] for key, part in parts}

    evidence = float(total.logsumexp(0) + cell.log())
    return ExactPosterior(evidence, by_name(first), by_name(sd))


def _given_scales(houses: Houses, sigma: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(y | σ, τ), and mean and variance of (α, β_uranium, β_floor, a) given both."""
    num = len(houses.y)
    county = torch.eye(num).to(houses.y).repeat_interleave(houses.mask.sum(1), 0)
    y, x = houses.y[houses.mask], houses.x[houses.mask]
    design = torch.cat([torch.ones_like(y)[:, None], (county @ houses.u)[:, None], x[:, None]], 1)
    design = torch.cat([design, county], 1)  # the last columns: a county's own deviation
    slopes = sigma.new_full((len(sigma), 3), SLOPE_SD**-2.0)
    prior = torch.cat([slopes, tau.square().reciprocal()[:, None].expand(-1, num)], 1)
    noise = 1 / sigma.square()
    precision = prior.diag_embed() + noise[:, None, None] * (design.T @ design)
    cholesky = torch.linalg.cholesky(precision)
    shift = noise[:, None] * (design.T @ y)
    mean = torch.cholesky_solve(shift.unsqueeze(-1), cholesky)[..., 0]
    log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1) - prior.log().sum(-1)
    fit = noise * (y @ y) - (mean * shift).sum(-1)
    log_p = -0.5 * (len(y) * (2 * math.pi / noise).log() + log_det + fit)
    one, zero = torch.ones_like(houses.u)[:, None], torch.zeros_like(houses.u)[:, None]
    intercepts = torch.cat([one, houses.u[:, None], zero, torch.eye(num).to(y)], 1)
    linear = torch.cat([torch.eye(3, 3 + num).to(y), intercepts])
    half = torch.linalg.solve_triangular(
        cholesky, linear.T.expand(len(sigma), -1, -1), upper=False
    )
    return log_p, mean @ linear.T, half.square().sum(-2)


def _read(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent / name).open(newline="") as file:
        return list(csv.DictReader(file))
