"""What the latents of the datapoints carry: rate, distortion, units that are used, overlap."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_ext._run import prior_of
from pyro_ext._site_log_prob import site_log_prob
from pyro_ext.diagnostics._density import Density
from pyro_ext.diagnostics._distances import TwoSample, mmd_test, sliced_wasserstein
from pyro_ext.diagnostics._estimates import Elements, Estimate, mean
from pyro_ext.diagnostics._passes import (
    check_draws,
    inspect,
    only_rows,
    pairs_per_pass,
    progress,
)
from pyro_ext.diagnostics._target import Fitted, Target, resolve, undisturbed
from pyro_ext.structure import sample_sites, unwrapped

__all__ = ["Rates", "rates"]

_ACTIVE = 0.01
_MIN_ROWS = 16
_MIN_DATA = 2
_MAX_NEIGHBOURS = 500


@dataclass(frozen=True, eq=False)
class Rates:
    r"""Rate and distortion of the latents of datapoints, in nats.

    Args:
        rate: KL(q(z | x) || p(z)), summed over data.
        distortion: -E log p(x | z), summed over data.
        per_datum: ``rate`` and ``distortion`` per datapoint.
        labels: Name of each latent dimension.
        kl: KL of each latent dimension's marginal to its normal prior, mean over data, shape
            ``(dims,)``; NaN where the prior is not normal.
        spread: Variance over data of each dimension's posterior mean, shape ``(dims,)``.
        aggregated_distance: Sliced Wasserstein distance of the aggregated posterior, one draw a
            datum, to the prior.
        aggregated_test: Maximum mean discrepancy between them.
        neighbour_overlap: Bhattacharyya coefficient of each posterior, taken as normal, with the
            one that it overlaps most: 1 where two data have the same posterior.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> found = px.rates(exact.model, exact.guide, exact.x, num_samples=50)
        >>> found.rate.value > 0, found.active  # nats that the latents carry; which are used
        (True, tensor([True]))
    """

    rate: Estimate
    distortion: Estimate
    per_datum: dict[str, Elements]
    labels: list[str]
    kl: Float[Tensor, " dims"]
    spread: Float[Tensor, " dims"]
    aggregated_distance: float
    aggregated_test: TwoSample
    neighbour_overlap: Float[Tensor, " neighbours"]

    @property
    def elbo(self) -> float:
        """The ELBO, which is - rate - distortion."""
        return -self.rate.value - self.distortion.value

    @property
    def active(self) -> Tensor:
        """Which dimensions are used: their posterior mean varies by more than 0.01 over data."""
        return self.spread > _ACTIVE

    def __str__(self) -> str:
        """A few lines."""
        order = self.kl.nan_to_num(-math.inf).argsort(descending=True)[:5].tolist()
        known = [f"{self.labels[i]} {self.kl[i]:.3f}" for i in order if not self.kl[i].isnan()]
        kl = ", ".join(known) or "not known, as no prior is a fixed normal"
        return "\n".join(
            [
                f"rate                  {self.rate}",
                f"distortion            {self.distortion}",
                f"active dimensions     {int(self.active.sum())} of {len(self.labels)}",
                f"KL per dimension      {kl}",
                f"aggregate vs prior    sliced Wasserstein {self.aggregated_distance:.3f}, "
                f"MMD p-value {self.aggregated_test.p_value:.3f}",
                f"overlap of neighbours {self.neighbour_overlap.median().item():.2f} (median)",
            ]
        )

    __repr__ = __str__  # as a console and a notebook show it


def rates(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_samples: int = 500,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Rates:
    r"""Return rate, distortion, and what each latent dimension carries.

    .. math:: \mathcal{L} = -\underbrace{\mathrm{E}_q \log \frac{q(z \mid x)}{p(z)}}_\text{rate}
        - \underbrace{\mathrm{E}_q [-\log p(x \mid z)]}_\text{distortion}

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both; by default the run's.
        num_samples: Number of draws per datapoint.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If there are no latents of datapoints, or global ones too, or one datum alone.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018) | https://arxiv.org/abs/1711.00464
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015) |
        https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_ext.testing.conjugate import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> found = rates(exact.model, exact.guide, exact.x, seed=0)
        >>> int(found.active.sum()), round(found.elbo, 2)
        (1, -3.53)
    """
    num_samples = check_draws("rates", num_samples, 2)
    target = resolve("rates", model, guide, args, kwargs)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        if not layout.each_alone:
            raise ValueError(
                "rates: expected latents in one data plate and no others, so that each datapoint "
                "has a rate of its own; got others. Write: px.evidence(model, guide, *args)."
            )
        if layout.size < _MIN_DATA:
            raise ValueError(
                "rates: expected two datapoints or more, as it holds their posteriors against one "
                "another; got 1. Write: px.evidence(model, guide, *args)."
            )
        rows = layout.size
        if layout.rows is not None:
            rows = min(rows, max(_MIN_ROWS, pairs_per_pass(layout, chunk_size) // num_samples))
        parts: list[_Part] = []
        with progress(layout.size, "rates") as bar:
            for chunk in torch.arange(layout.size, device="cpu").split(rows):
                with only_rows(target, layout, chunk) as part:
                    parts.append(_measure(part, num_samples))
                bar.update(len(chunk))
        prior = _prior_draws(target)
    found = {
        name: mean(torch.cat([getattr(part, name) for part in parts], 1 + layout.axis))
        for name in ("rate", "distortion")
    }
    draws, normals = (torch.cat([getattr(p, n) for p in parts], 1) for n in ("draws", "prior"))
    centre, variance = draws.mean(0), draws.var(0)
    count = len(draws)
    spread = (centre.var(0) - variance.mean(0) / count).clamp(min=0.0)
    generator = torch.Generator().manual_seed(0)
    width = prior.std(0).clamp(min=1e-300)
    return Rates(
        found["rate"].total(),
        found["distortion"].total(),
        found,
        parts[0].labels,
        _kl(centre, variance, count, normals).mean(0),
        spread,
        sliced_wasserstein(draws[0] / width, prior / width, generator),
        mmd_test(draws[0] / width, prior / width, generator),
        _overlap(draws[:, :_MAX_NEIGHBOURS]),
    )


@dataclass(frozen=True)
class _Part:
    """Some rows: rate and distortion by draw, draws ``(draws, rows, dims)``, normal priors."""

    rate: Tensor
    distortion: Tensor
    draws: Tensor
    labels: list[str]
    prior: Tensor


def _measure(target: Target, num: int) -> _Part:
    density = Density(target, joint=False)
    traces, term = density.run(num)
    log_prior = torch.zeros_like(term.log_p)
    draws, labels, priors = [], [], []
    for name, site in sample_sites(traces.model):
        if site["is_observed"]:
            continue
        log_prior = log_prior + density.collect(site_log_prob(site), num)
        values = _by_row(site["value"], site["fn"].event_dim, density)
        draws.append(values)
        priors.append(_normal(site, density, values))
        width = values.shape[-1]
        labels += [name] if width == 1 else [f"{name}[{i}]" for i in range(width)]
    return _Part(
        (term.log_q - log_prior).cpu().double(),
        (log_prior - term.log_p).cpu().double(),
        torch.cat(draws, -1).cpu().double(),
        labels,
        torch.cat(priors, -1).cpu().double(),
    )


def _by_row(values: Tensor, event_dim: int, density: Density) -> Tensor:
    """Return values as ``(draws, rows, dims)``, all data plates flattened into rows."""
    nesting = density.structure.nesting
    missing = nesting + 1 + event_dim - values.dim()
    values = values.reshape((values.shape[0], *(1,) * missing, *values.shape[1:]))
    axes = [1 + nesting + dim for dim in density.dims]
    rest = [axis for axis in range(1, values.dim()) if axis not in axes]
    rows = math.prod(values.shape[axis] for axis in axes)
    return values.permute(0, *axes, *rest).reshape(len(values), rows, -1)


def _normal(site: Any, density: Density, values: Tensor) -> Tensor:
    """Return mean and sd of a site's prior, ``(2, rows, dims)``; NaN if it is no fixed normal."""
    fn = unwrapped(site["fn"])
    shape = site["value"].shape
    if not isinstance(fn, dist.Normal):
        return torch.full((2, *values.shape[1:]), math.nan)
    parts = [part.expand(shape) for part in (fn.loc, fn.scale)]
    if any(not torch.equal(part[0], part[-1]) for part in parts):
        return torch.full((2, *values.shape[1:]), math.nan)
    return torch.stack([_by_row(p, site["fn"].event_dim, density)[0] for p in parts])


def _kl(centre: Tensor, variance: Tensor, count: int, prior: Tensor) -> Tensor:
    """Return KL(N(m, v) || prior), corrected for the errors of moments of ``count`` draws."""
    loc, scale = prior
    ratio = variance / scale**2
    excess = ((centre - loc) / scale).square() - ratio / count
    return (ratio + excess - 1 - ratio.log() - 1 / (count - 1)) / 2


def _prior_draws(target: Target) -> Tensor:
    density = Density(replace(target, guide=prior_of(target.model)), joint=False)
    traces, _ = density.run(2)
    parts = [
        _by_row(site["value"], site["fn"].event_dim, density)[0]
        for _, site in sample_sites(traces.model)
        if not site["is_observed"]
    ]
    return torch.cat(parts, -1).cpu().double()


def _overlap(draws: Tensor) -> Tensor:
    """Return each row's largest Bhattacharyya coefficient with another, as normals."""
    draws = draws / draws.var(0).mean(0).sqrt().clamp(min=1e-300)  # the ridge knows no units
    centre = draws.mean(0)
    centred = draws - centre
    covariance = torch.einsum("sni,snj->nij", centred, centred) / (len(draws) - 1)
    covariance = covariance + 1e-12 * torch.eye(centre.shape[1]).to(centre)
    logdet = covariance.logdet()
    best = []
    for row in range(len(centre)):
        mixed = (covariance + covariance[row]) / 2
        difference = (centre - centre[row]).unsqueeze(-1)
        square = (difference * torch.linalg.solve(mixed, difference)).sum((-2, -1))
        distance = square / 8 + (mixed.logdet() - (logdet + logdet[row]) / 2) / 2
        distance[row] = math.inf
        best.append((-distance).exp().max())
    return torch.stack(best)
