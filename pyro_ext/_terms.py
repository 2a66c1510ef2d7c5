"""From the sites of two traces to log weights per element of each set of independent plates."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions.util import broadcast_shape
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext._scales import Scale, split_scales
from pyro_ext._score_function import is_reparameterized, score_function
from pyro_ext._site_log_prob import check_shape, site_log_prob
from pyro_ext._strata import check_plates, stratified
from pyro_ext.structure import Structure, counts_in_guide, plate_frames, sample_sites

__all__ = ["Particles", "PathScale", "Term", "make_terms"]


@dataclass(frozen=True)
class Particles:
    """How many particles there are, inside the log and outside it."""

    inner: int
    outer: int

    @property
    def count_dims(self) -> int:
        """Number of batch dims that the particles take."""
        return (self.inner > 1) + (self.outer > 1)

    def dims(self, nesting: int) -> tuple[int | None, int | None]:
        """Return the batch dims of the outer and inner particle plates (None: no plate)."""
        inner = -nesting - 1 if self.inner > 1 else None
        outer = -nesting - 1 - (self.inner > 1) if self.outer > 1 else None
        return outer, inner


class PathScale:
    """A factor on the gradient through latents that is known only after the forward pass."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None

    def __call__(self, value: Tensor, event_dim: int) -> Tensor:
        """Return ``value`` with its gradient scaled."""
        scaled: Tensor = _ScaleGradient.apply(value, self, event_dim)
        return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, path: PathScale, event_dim: int) -> Tensor:
        ctx.path, ctx.event_dim = path, event_dim
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weight = ctx.path.weight
        return grads[0] * weight.reshape(weight.shape + (1,) * ctx.event_dim), None, None


@dataclass(frozen=True)
class _Layout:
    """Where a term's dims lie among the batch dims of a trace: (outer, inner, *plates)."""

    particles: Particles
    nesting: int
    kept: tuple[int, ...]

    def collect(self, log_prob: Tensor, sizes: Sequence[int]) -> Tensor:
        """Sum out the plates that the term does not keep; return (outer, inner, *batch)."""
        nesting, particles = self.nesting, self.particles
        total = nesting + particles.count_dims
        if not self.kept and log_prob.dim() <= nesting:  # a number, the same for all particles
            missing = math.prod(sizes) // max(log_prob.numel(), 1)
            whole = log_prob.sum() if log_prob.dim() else log_prob
            return (whole * missing if missing > 1 else whole).reshape(1, 1)
        shape = (1,) * (total - log_prob.dim()) + tuple(log_prob.shape)
        outer = shape[0] if particles.outer > 1 else 1
        inner = shape[total - nesting - 1] if particles.inner > 1 else 1
        plates = tuple(map(max, shape[total - nesting :], sizes))
        log_prob = log_prob.reshape((outer, inner, *shape[total - nesting :]))
        if log_prob.shape[2:] != plates:
            log_prob = log_prob.expand(outer, inner, *plates)
        dropped = [2 + axis for axis in range(nesting) if axis not in self.kept]
        return log_prob.sum(dropped) if dropped else log_prob

    def restore(self, weight: Tensor) -> Tensor:
        """Return a term's tensor (inner, *batch) with the batch dims of the trace."""
        if self.particles.outer == 1:
            weight = weight.unsqueeze(1)
        weight = weight.movedim(0, 1)
        shape = [1] * self.nesting
        for axis, size in zip(self.kept, weight.shape[2:], strict=True):
            shape[axis] = size
        outer, inner = weight.shape[:2]
        lead = [outer] * (self.particles.outer > 1) + [inner] * (self.particles.inner > 1)
        return weight.reshape((*lead, *shape))


@dataclass(frozen=True)
class Term:
    """Log importance weights of the elements of one set of independent plates.

    Args:
        log_p: log p(x, z), masked and unscaled, shape ``(particles, *batch)``.
        log_q: log q(z), the same shape.
        log_q_score: Log density of the draws that are not reparameterized, masked or not, or None.
        plates: The plates that ``batch`` runs over, left to right; empty for one joint weight.
        scale: Factor outside the bound: subsampling N/B, ``poutine.scale``, 1 / ``num_outer``. A
            tensor that broadcasts to ``batch`` where ``poutine.scale`` is one.
        subsampled: A subsampled plate whose scale had to stay inside the weight, or None. A
            K-sample bound of such a weight is no bound.
        log_strata: Log of how often each particle counts, shape ``(particles, *batch)``, where
            mixtures shared out the particles; else None.
        log_outer_strata: The same for outer draws, broadcastable to ``batch``, or None.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.zeros(3))
        >>> (term,) = px.log_weights(exact.model, exact.guide, exact.x, num_particles=5).terms
        >>> term.log_w.shape  # (particles, *batch)
        torch.Size([5, 3])
    """

    log_p: Float[Tensor, " particles *batch"]
    log_q: Float[Tensor, " particles *batch"]
    log_q_score: Float[Tensor, " particles *batch"] | None
    plates: tuple[str, ...]
    scale: Scale
    subsampled: str | None
    _path: PathScale = field(repr=False)
    _layout: _Layout = field(repr=False)
    log_strata: Float[Tensor, " particles *batch"] | None = None
    log_outer_strata: Tensor | None = None

    @property
    def log_w(self) -> Float[Tensor, " particles *batch"]:
        """Log p(x, z) - log q(z)."""
        return self.log_p - self.log_q

    def estimate(
        self, bound: Callable[..., Tensor], log_w: Float[Tensor, " particles *batch"] | None = None
    ) -> Float[Tensor, ""]:
        """Return scale · Σ bound, each outer draw as often as it counts.

        Args:
            bound: A function of ``pyro_ext.bounds``.
            log_w: Log weights to take instead of this term's.
        """
        log_w = self.log_w if log_w is None else log_w
        known = {} if self.log_strata is None else {"log_strata": self.log_strata}
        value = bound(log_w, **known)
        if self.log_outer_strata is not None:
            value = value * self.log_outer_strata.exp()
        return self.scaled_sum(value)

    def scaled_sum(self, value: Tensor) -> Float[Tensor, ""]:
        """Return Σ scale · value.

        Args:
            value: A number for each element, shape ``(*lead, *batch)``.
        """
        if isinstance(self.scale, Tensor):
            return (self.scale * value).sum()
        total = value.sum()
        return total if self.scale == 1.0 else self.scale * total

    def scale_path(self, weights: Float[Tensor, " particles *batch"]) -> None:
        """Set the factor on the gradients through this term's latents."""
        self._path.weight = self._layout.restore(weights.detach())


def make_terms(
    model_trace: Trace,
    guide_trace: Trace,
    structure: Structure,
    particles: Particles,
    paths: Sequence[PathScale],
    drawn: Trace,
    *,
    linear: bool,
) -> tuple[Term, ...]:
    """Return the terms of a pair of traces, the global one first.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide, scored.
        structure: The pair's independent plates.
        particles: The particle plates that the traces ran in.
        paths: Gradient scales, of the global term and of each entry of ``structure.local``.
        drawn: Trace of the guide, as it drew.
        linear: Whether the bound is linear in log w.
    """
    homes: dict[int | None, tuple[list[Any], list[Any]]] = {}
    for side, trace in enumerate((model_trace, guide_trace)):
        for _, site in sample_sites(trace):
            if side == 0 or counts_in_guide(site):
                homes.setdefault(structure.home(site), ([], []))[side].append(site)
    terms: list[Term] = []
    for home in (None, *range(len(structure.local))):
        if home in homes:
            path = paths[0 if home is None else home + 1]
            model_sites, guide_sites = homes[home]
            origins = [drawn.nodes[site["name"]] for site in guide_sites]
            term = _term(
                model_sites, guide_sites, origins, home, structure, particles, path, linear=linear
            )
            terms.append(_inside(terms[0], term) if terms else term)
    return tuple(terms)


def _inside(first: Term, term: Term) -> Term:
    """Return a local term whose outer draws count as often as those of the globals say too."""
    shared = None if first.plates else first.log_outer_strata
    if shared is None:
        return term
    shared = shared.reshape(-1, *(1,) * len(term.plates))
    own = term.log_outer_strata
    return replace(term, log_outer_strata=shared if own is None else own + shared)


def _term(
    model_sites: list[Any],
    guide_sites: list[Any],
    origins: list[Any],
    home: int | None,
    structure: Structure,
    particles: Particles,
    path: PathScale,
    *,
    linear: bool,
) -> Term:
    plates = () if home is None else structure.local[home]
    names = tuple(name for name, _ in plates)
    layout = _Layout(
        particles, structure.nesting, tuple(structure.nesting + dim for _, dim in plates)
    )
    outside, factors, subsampled = split_scales(
        [*model_sites, *guide_sites], plates, linear=linear
    )
    count = len(model_sites)
    log_p = _total(model_sites, map(site_log_prob, model_sites), factors[:count], layout)
    log_q = _total(guide_sites, map(site_log_prob, guide_sites), factors[count:], layout)
    # The draws themselves have a score, not a guide that is run again on them.
    drawn = [site for site, origin in zip(guide_sites, origins, strict=True) if site is origin]
    scored = [site for site in drawn if not is_reparameterized(site)]
    log_q_score = _total(scored, map(score_function, scored), [1.0] * len(scored), layout)
    parts = [part for part in (log_p, log_q, log_q_score) if part is not None]
    shape = broadcast_shape(*(part.shape for part in parts))
    inner = particles.inner if home is not None or not structure.local else 1
    if shape[1] > inner:
        raise RuntimeError(
            f"log_weights: expected the sites {[site['name'] for site in model_sites]}, outside "
            "the data plates, to be the same for all particles inside these; got others for each. "
            "Write: joint=True, or move the sites into the plate."
        )
    sizes = (particles.outer, inner, *shape[2:])
    zero = parts[0].new_zeros(())

    def arranged(part: Tensor | None) -> Tensor:
        part = zero if part is None else part
        part = part if part.shape == sizes else part.expand(sizes)
        return part.squeeze(0) if particles.outer == 1 else part.movedim(1, 0)

    log_strata, outer_strata = _strata(origins, names, layout)
    return Term(
        arranged(log_p),
        arranged(log_q),
        arranged(log_q_score) if scored else None,
        names,
        outside / particles.outer,
        subsampled,
        path,
        layout,
        None if log_strata is None else arranged(log_strata),
        outer_strata,
    )


def _strata(
    sites: list[Any], plates: tuple[str, ...], layout: _Layout
) -> tuple[Tensor | None, Tensor | None]:
    """Return the strata of a term, (outer, inner, *batch), and of its outer draws."""
    inner: Tensor | None = None
    outer: Tensor | None = None
    for site in sites:
        fn = stratified(site)
        if fn is None or fn.log_strata is None:
            continue
        check_plates(site, plates)
        part = layout.collect(fn.log_strata, _sizes(site, layout))
        if fn.strata_dim == layout.particles.dims(layout.nesting)[1]:
            inner = part if inner is None else inner + part
        else:
            outer = part[:, 0] if outer is None else outer + part[:, 0]
    return inner, outer


def _sizes(site: Any, layout: _Layout) -> tuple[int, ...]:
    """Return the size of each plate dim of a site."""
    sizes = [1] * layout.nesting
    for frame in plate_frames(site):
        sizes[frame.dim] = frame.size
    return tuple(sizes)


def _total(
    sites: Sequence[Any], log_probs: Iterable[Tensor], factors: list[Scale], layout: _Layout
) -> Tensor | None:
    alike: dict[Any, Tensor] = {}  # sites of one shape are added up before they are arranged
    for site, log_prob, factor in zip(sites, log_probs, factors, strict=True):
        lead = max(log_prob.dim() - layout.nesting, 0)
        check_shape(site, log_prob.shape, min(lead, layout.particles.count_dims))
        if isinstance(factor, Tensor) or factor != 1:
            log_prob = log_prob * factor
        key = log_prob.shape, _sizes(site, layout)
        alike[key] = alike[key] + log_prob if key in alike else log_prob
    total: Tensor | None = None
    for (_, sizes), log_prob in alike.items():
        part = layout.collect(log_prob, sizes)
        total = part if total is None else total + part
    return total
