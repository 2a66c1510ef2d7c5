"""Importance weights of globals, each with importance draws of the locals inside."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.families import FullCovariance
from pyro_ext.training.auto.adapt import weighted_moments
from pyro_ext.training.auto.affine import Affine
from pyro_ext.training.auto.correct import Part, Pool, weighted
from pyro_ext.weights import LogWeights, log_weights

__all__ = ["NestedPool", "nested_pool"]

_AT_ONCE = 1_000_000
"""Local draws of one pass."""

_ROUNDS = 2


@dataclass(frozen=True)
class NestedPool:
    """Weighted draws of all latents.

    Args:
        pool: Weighted flat globals; flat locals where there are no globals.
        latents: The draws, shape ``(draws, *site)`` each.
        own: What the guide itself draws, laid out like the pool's draws.
    """

    pool: Pool
    latents: dict[str, Tensor]
    own: Tensor

    def resample(self, num: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return draws without weights, shape ``(num, *site)`` each.

        Args:
            num: Number of draws.
            generator: Random numbers.
        """
        index = self.pool.indices(num, generator)
        return {name: value[index] for name, value in self.latents.items()}


@dataclass(frozen=True)
class _Nested:
    """What the draws of nested weights need.

    Args:
        model: The model.
        guide: Its guide.
        args: The model's arguments, with all rows.
        inner: Number of draws of the locals for each of the globals.
        num_data: Number of rows.
    """

    model: Callable[..., Any]
    guide: PackedGuide
    args: tuple[Any, ...]
    inner: int
    num_data: int

    @property
    def locals(self) -> list[str]:
        """Names of the local sites."""
        group = self.guide.groups[-1]
        return [] if group.packing.plate is None else [site.name for site in group.packing.sites]

    @property
    def structured(self) -> bool:
        """Whether there are globals and locals."""
        return len(self.guide.groups) > 1

    def draw(self, num: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return log weights and draws from the guide as it is."""
        names, inner = self.locals, self.inner
        part = max(1, min(num, _AT_ONCE // (inner * max(self.num_data, 1))))
        log_w, latents = [], []
        for _ in range(math.ceil(num / part)):
            found = log_weights(
                self.model,
                self.guide,
                *self.args,
                num_particles=inner if names else part,
                num_outer=part if names else 1,
                joint=not names,
            )
            if not names:
                (term,) = found.terms
                log_w.append(term.log_w.reshape(part))
                latents.append(found.latents)
                continue
            log_w.append(_outer(found, part))
            latents.append(_picked(found, names, inner, part))
        values = {name: torch.cat([own[name] for own in latents]) for name in latents[0]}
        return torch.cat(log_w).double(), values

    def shown(self, latents: dict[str, Tensor]) -> Tensor:
        """Return what is judged, side by side: globals, or locals if there are none."""
        names = self.locals
        shown = {n: v for n, v in latents.items() if n not in names} or latents
        return torch.cat([value.reshape(len(value), -1) for value in shown.values()], -1).double()

    def globals(self, latents: dict[str, Tensor]) -> Tensor:
        """Return the unconstrained globals, shape ``(draws, dim)``."""
        packing = self.guide.groups[0].packing
        z, _ = packing.pack({site.name: latents[site.name] for site in packing.sites})
        return z.reshape(-1, packing.dim).double()

    @contextmanager
    def proposing(self, q: Affine) -> Iterator[None]:
        """Let the guide draw its globals from a normal."""
        guide: Any = self.guide
        groups, params, family = guide.groups, guide.global_params, FullCovariance()
        guide.groups = (replace(groups[0], family=family), *groups[1:])
        guide.global_params = nn.Parameter(family.initial_params(q.loc, q.factor).to(params))
        try:
            yield
        finally:
            guide.groups, guide.global_params = groups, params

    def mixture(self, normals: tuple[Affine, ...], num: int, own: Tensor) -> NestedPool:
        """Draw globals from normals with equal shares, and weigh."""
        log_w, latents = [], []
        parts = [Part(q, math.inf, len(q.loc)) for q in normals]
        for q, part in zip(normals, parts, strict=True):
            with self.proposing(q):
                found, drawn = self.draw(num // len(parts))
            log_w.append(found + part.log_prob(self.globals(drawn)))
            latents.append(drawn)
        values = {name: torch.cat([drawn[name] for drawn in latents]) for name in latents[0]}
        z = self.globals(values)
        mixed = torch.stack([part.log_prob(z) for part in parts]).logsumexp(0)
        log_ratio = torch.cat(log_w) - mixed + math.log(len(parts))
        return NestedPool(weighted(self.shown(values), log_ratio), values, own)


def nested_pool(
    model: Callable[..., Any],
    guide: PackedGuide,
    args: tuple[Any, ...],
    *,
    num: int,
    inner: int,
    num_data: int,
    limit: float = math.inf,
) -> NestedPool:
    r"""Weigh draws of the globals by an estimate of their density that integrates the locals.

    .. math:: \hat p(x, \theta) = p(\theta) \prod_i \frac1K \sum_k
        \frac{p(x_i, z_{ik} \mid \theta)}{q(z_{ik} \mid \theta)}, \qquad
        w = \hat p(x, \theta) / q(\theta)

    The estimate has no bias, so that the weighted draws of the globals are exact for every K; one
    of the K draws of each datapoint's locals is picked by its own weight. Where the guide's
    globals do not do, they are drawn from normals that are fitted to the weighted draws, one of
    their covariance and one of twice as much; the draws of the answer are fresh ones.

    Args:
        model: The model.
        guide: Its guide.
        args: The model's arguments, with all rows.
        num: Number of draws of the globals.
        inner: Number K of draws of the locals for each.
        num_data: Number of rows.
        limit: Error that is small enough, see ``Pool.fault``.

    References:
        The Pseudo-Marginal Approach for Efficient Monte Carlo Computations
        (Andrieu and Roberts, 2009) | https://doi.org/10.1214/07-AOS574
        Population Monte Carlo (Cappé et al., 2004) | https://doi.org/10.1198/106186004X12803
    """
    nested = _Nested(model, guide, args, inner, num_data)
    with torch.no_grad():
        log_w, latents = nested.draw(num)
        own = nested.shown(latents)
        best = NestedPool(weighted(own, log_w), latents, own)
        normals: tuple[Affine, ...] = ()
        for _ in range(_ROUNDS if nested.structured else 0):
            if best.pool.fault(best.pool.z) <= limit:
                break
            fitted = _fitted(nested.globals(best.latents), best.pool)
            tried = nested.mixture(fitted, num, own)
            if tried.pool.fault(tried.pool.z) < best.pool.fault(best.pool.z):
                best, normals = tried, fitted
        return nested.mixture(normals, 2 * num, own) if normals else best


def _fitted(z: Tensor, pool: Pool) -> tuple[Affine, ...]:
    """Return normals of the weighted draws' mean, with their covariance and with twice it."""
    dim = z.shape[-1]
    w = pool.weights if pool.effective >= 4 * dim else torch.full_like(pool.weights, 1 / len(z))
    mean, covariance = weighted_moments(z, w)
    factor = torch.linalg.cholesky(covariance)
    return tuple(Affine(mean, width**0.5 * factor) for width in (1, 2))


def _outer(found: LogWeights, num: int) -> Tensor:
    total = torch.zeros(num)
    for term in found.terms:
        inside = term.log_w.logsumexp(0) - math.log(len(term.log_w))
        total = total + inside.reshape(inside.shape[0], -1).sum(-1)
    return total


def _picked(found: LogWeights, names: list[str], inner: int, num: int) -> dict[str, Tensor]:
    """Return one draw of the locals for each of the globals."""
    terms = [term for term in found.terms if term.plates]
    if len(terms) != 1 or terms[0].log_w.dim() != 3:
        raise ValueError(
            "fit: expected locals in one data plate with optim='auto'; got the plates "
            f"{[term.plates for term in terms]}. Write: px.fit(model, guide, data=data)."
        )
    weights = terms[0].log_w.softmax(0)
    size = weights.shape[-1]
    flat = weights.permute(1, 2, 0).reshape(-1, inner)
    index = torch.multinomial(flat, 1).reshape(num, 1, size)
    picked = {}
    for name, value in found.latents.items():
        if name not in names:
            picked[name] = value.reshape(num, *value.shape[2:])
            continue
        rest = value.dim() - 3
        at = index.reshape(num, 1, size, *(1,) * rest).expand(num, 1, size, *value.shape[3:])
        picked[name] = value.gather(1, at).squeeze(1)
    return picked
