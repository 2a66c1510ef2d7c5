"""Models that take no batch dim for particles: run for each particle, and put together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from tqdm.auto import tqdm

from pyro_ext._checks import Pair
from pyro_ext._progress import hidden
from pyro_ext._score_function import is_reparameterized
from pyro_ext._site_log_prob import unmask_drawn
from pyro_ext._supports import bounds_differ
from pyro_ext._terms import Particles
from pyro_ext.structure import (
    Structure,
    is_delta,
    plate_frames,
    sample_sites,
    without_particles,
)

__all__ = ["OneByOne", "Stacked", "one_by_one"]


def one_by_one(structure: Structure, particles: Particles) -> "OneByOne | None":
    """Return how a pair is run for each particle, or None if it is run for all at once.

    Args:
        structure: The pair's plates.
        particles: Number of particles.
    """
    several = particles.count_dims > 0
    return OneByOne(structure, particles) if structure.one_by_one and several else None


class Stacked(TorchDistribution):
    """The distributions of a site in the runs of all particles, as one.

    Args:
        fns: One for each particle.
        runs: How the particles lie.
        shared: Whether the site is the same for all particles inside an outer one.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch asks for a plain dict)

    def __init__(self, fns: list[Any], runs: "OneByOne", *, shared: bool) -> None:
        first = fns[0]
        self.fns, self.runs, self.shared = fns, runs, shared
        self.has_rsample = first.has_rsample
        batch = (1,) * (runs.nesting - len(first.batch_shape)) + tuple(first.batch_shape)
        super().__init__(Size((*runs.sizes, *batch)), first.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of the first particle, or of one that has another."""
        first = self.fns[0].support
        others = (fn.support for fn in self.fns[1:])
        return next((found for found in others if bounds_differ(first, found)), first)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each particle's value under its own distribution.

        Args:
            value: One for each particle, or one for all.
        """
        values = self.runs.split(value, self.event_dim)
        found = [fn.log_prob(one) for fn, one in zip(self.fns, values, strict=True)]
        stacked = self.runs.stack(found, 0)
        if not self.shared:
            return stacked
        # It is for whoever reads the shape to say what follows if they differ.
        alone = stacked.narrow(len(self.runs.sizes) - 1, 0, 1)
        alike = torch.allclose(stacked, alone, rtol=0.0, atol=0.0, equal_nan=True)
        return alone if alike else stacked


class _Given(ReplayMessenger):
    """Handler that gives latents the values of one particle, in the shape that the site has."""

    def __init__(self, trace: Trace, values: dict[str, Tensor]) -> None:
        super().__init__(trace=trace)
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.values and not msg["is_observed"]:
            value, fn = self.values[msg["name"]], msg["fn"]
            surplus = max(value.dim() - len(fn.batch_shape) - fn.event_dim, 0)
            if all(size == 1 for size in value.shape[:surplus]):
                value = value.reshape(value.shape[surplus:])
            msg["value"] = value


@dataclass(frozen=True)
class OneByOne:
    """Runs of a model or a guide, one a particle, that make one trace.

    Args:
        structure: The pair's plates.
        particles: Number of particles.
    """

    structure: Structure
    particles: Particles

    @property
    def nesting(self) -> int:
        """Number of plate dims."""
        return self.structure.nesting

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the particle dims."""
        return tuple(n for n in (self.particles.outer, self.particles.inner) if n > 1)

    def split(self, value: Tensor, event_dim: int) -> tuple[Tensor, ...]:
        """Return the value of each particle.

        Args:
            value: Shape ``(*particles, *plates, *event)``, or without dims of particles.
            event_dim: Number of event dims.
        """
        lead = value.dim() - event_dim - self.nesting
        if lead <= 0:
            return (value,) * (self.particles.outer * self.particles.inner)
        value = value.reshape((1,) * (len(self.sizes) - lead) + tuple(value.shape))
        value = value.expand(*self.sizes, *value.shape[len(self.sizes) :])
        return value.flatten(0, len(self.sizes) - 1).unbind(0)

    def stack(self, values: list[Tensor], event_dim: int) -> Tensor:
        """Put values of all particles together, the inverse of ``split``.

        Args:
            values: One a particle.
            event_dim: Number of event dims.
        """
        shape = tuple(values[0].shape)
        missing = (1,) * (self.nesting + event_dim - len(shape))
        return torch.stack(values).reshape((*self.sizes, *missing, *shape))

    def replayed(self, fn: Callable[..., Any], pair: Pair, trace: Trace) -> Trace:
        """Run a model, or a guide, at the draws of a trace.

        Args:
            fn: What to run.
            pair: The pair that it is of.
            trace: The draws, with the dims of particles.
        """
        drawn = [(name, site) for name, site in sample_sites(trace) if not site["is_observed"]]
        split = {name: self.split(site["value"], site["fn"].event_dim) for name, site in drawn}
        given, found = trace.copy(), []
        with self._alone() as particles:
            for index in particles:
                values = {name: parts[index] for name, parts in split.items()}
                run = _Given(given, values)(fn)
                found.append(poutine.trace(run).get_trace(*pair.args, **pair.kwargs))
                if index == 0:
                    _add(given, found[0], [n for n in _subsamples(found[0]) if n not in given])
        if fn is not pair.guide:
            for one in found:
                unmask_drawn(one, trace)
        return self._together(found, trace)

    def drawn(self, pair: Pair) -> tuple[Trace | None, Trace]:
        """Draw from the guide; return the trace of the model, if it ran too, and the guide's.

        Args:
            pair: The pair.
        """
        messenger: Any = poutine.unwrap(pair.guide)
        both = isinstance(messenger, GuideMessenger)
        models, guides, known = [], [], Trace()
        with self._alone() as particles:
            for index in particles:
                outer = index - index % self.particles.inner
                if both:
                    pair.guide(*pair.args, **pair.kwargs)
                    model_trace, one = messenger.get_traces()
                    models.append(model_trace)
                else:
                    run = poutine.replay(pair.guide, trace=known)
                    one = poutine.trace(run).get_trace(*pair.args, **pair.kwargs)
                guides.append(one)
                known = Trace()
                _add(known, guides[0], _subsamples(guides[0]))
                if self.structure.local:
                    _add(known, guides[outer], self._shared(guides[outer]))
        guide_trace = self._together(guides, None)
        return (self._together(models, guide_trace) if both else None), guide_trace

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        count = self.particles.outer * self.particles.inner
        with without_particles():
            yield tqdm(range(count), "draws", delay=2, disable=hidden(), leave=False)

    def _shared(self, trace: Trace) -> list[str]:
        return [n for n, site in sample_sites(trace) if self.structure.home(site) is None]

    def _together(self, traces: list[Trace], draws: Trace | None) -> Trace:
        """Return one trace of those of all particles."""
        merged = traces[0].copy()
        names = set(merged.nodes)
        for trace in traces:
            if set(trace.nodes) != names:
                other = sorted(map(str, names ^ set(trace.nodes)))[0]
                raise ValueError(
                    f"site '{other}': expected the same sites in each draw; got it in some alone. "
                    "Write: the site in each, with poutine.mask(mask=...) where it does not count."
                )
        skipped = {*_subsamples(merged), *(n for n, s in merged.nodes.items() if _is_no_site(s))}
        for name in names - skipped:
            sites: list[Any] = [trace.nodes[name] for trace in traces]
            drawn = None if draws is None else draws.nodes.get(name)
            merged.nodes[name] = self._site(sites, drawn)
        return merged

    def _site(self, sites: list[Any], drawn: Any) -> Any:
        first = sites[0]
        for key in ("mask", "scale"):
            if not _alike([site[key] for site in sites]):
                raise ValueError(
                    f"site '{first['name']}': expected the same {key} in each draw; got another "
                    f"where a latent has another value. Write: poutine.{key} with what is known."
                )
        values = [site["value"] for site in sites]
        if first["infer"].get("_deterministic", False):
            event_dim = _event_dim(first)
            value = self.stack(values, event_dim)
            fn = dist.Delta(value, event_dim=event_dim).mask(mask=False)
            return first | {"value": value, "fn": fn}
        fns, event_dim = [site["fn"] for site in sites], first["fn"].event_dim
        if drawn is not None and not first["is_observed"]:
            value = drawn["value"]
        elif first["is_observed"] and _alike(values):
            value = values[0]
        else:
            value = self.stack(values, event_dim)
        if is_delta(first) and not first["is_observed"] and drawn is None:
            log_density = self.stack([site["fn"].log_prob(site["value"]) for site in sites], 0)
            return first | {"value": value, "fn": dist.Delta(value, log_density, event_dim)}
        if first["fn"].has_rsample and not all(map(is_reparameterized, sites)) and drawn is None:
            raise ValueError(
                f"site '{first['name']}': expected draws with all of their gradient, or none; "
                f"got {type(first['fn']).__name__}, which rejects some. Write: a guide that takes "
                "batch dims left of its plates."
            )
        inside = not self.structure.local or self.structure.home(first) is not None
        shared = not inside and self.particles.inner > 1
        return first | {"value": value, "fn": Stacked(fns, self, shared=shared)}


def _is_no_site(site: Any) -> bool:
    return bool(site["type"] != "sample")


def _subsamples(trace: Trace) -> list[str]:
    nodes: dict[str, Any] = trace.nodes
    return [n for n, s in nodes.items() if s["type"] == "sample" and site_is_subsample(s)]


def _add(trace: Trace, source: Trace, names: list[str]) -> None:
    for name in names:
        trace.nodes[name] = source.nodes[name]


def _alike(values: list[Any]) -> bool:
    first = values[0]
    return all(
        torch.equal(first, value)
        if isinstance(first, Tensor) and isinstance(value, Tensor)
        else type(first) is type(value) and bool(first == value)
        for value in values
        if value is not first
    )


def _event_dim(site: Any) -> int:
    """Return the event dims of a deterministic site: what its plates leave of its value's dims."""
    value, event_dim = site["value"], int(site["fn"].event_dim)
    if event_dim < value.dim():
        return event_dim
    sizes = {frame.dim: frame.size for frame in plate_frames(site)}
    own = max((-dim for dim in sizes), default=0)
    batch = tuple(value.shape[:own])
    fits = len(batch) == own and all(
        size in (1, sizes.get(axis - own, 1)) for axis, size in enumerate(batch)
    )
    return value.dim() - own if fits else value.dim()
