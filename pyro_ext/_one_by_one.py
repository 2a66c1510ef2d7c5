"""Models that take no batch dim for particles: run for each of them, and put together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from torch import Size, Tensor
from torch.distributions.constraints import Constraint
from tqdm.auto import tqdm

from pyro_ext._checks import Pair
from pyro_ext._one_run import Run, Unrecorded, alike, mapped, read, subsamples
from pyro_ext._progress import hidden
from pyro_ext._score_function import is_reparameterized
from pyro_ext._site_log_prob import unmask_drawn
from pyro_ext._supports import bounds
from pyro_ext._terms import Particles
from pyro_ext._unchecked import is_unchecked
from pyro_ext.structure import (
    Structure,
    is_delta,
    plate_frames,
    sample_sites,
    without_particles,
)

__all__ = ["OneByOne", "one_by_one"]


def one_by_one(structure: Structure, particles: Particles) -> "OneByOne | None":
    """Return how a pair is run for each particle, or None if it is run for all at once.

    Args:
        structure: The pair's plates.
        particles: Number of particles.

    Raises:
        Unrecorded: If a graph is made of it, and the guide is run for each, too.
    """
    if not structure.one_by_one or not particles.count_dims:
        return None
    if structure.one_by_one == "pair" and is_unchecked():
        raise Unrecorded
    return OneByOne(structure, particles)


class _Scored(TorchDistribution):
    """What is known of a site's distributions in the runs of all particles.

    Args:
        first: That of the first particle.
        sizes: Sizes of the particle dims, and of the plates.
        value: The values of all particles.
        log_prob: Their log density.
        support: The support.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch asks for a plain dict)

    def __init__(
        self, first: Any, sizes: tuple[int, ...], value: Tensor, log_prob: Tensor, support: Any
    ) -> None:
        self.has_rsample = first.has_rsample
        self._value, self._log_prob, self._support = value, log_prob, support
        super().__init__(Size(sizes), first.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of all particles."""
        return self._support

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the values that it is known of."""
        if value is not self._value:
            raise NotImplementedError
        return self._log_prob


class _Moving(Constraint):
    """A support that is not the same for all particles."""

    def __init__(self, found: list[Any]) -> None:
        self.bounds = found


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
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the particle dims."""
        return tuple(n for n in (self.particles.outer, self.particles.inner) if n > 1)

    def replayed(self, fn: Callable[..., Any], pair: Pair, trace: Trace) -> Trace:
        """Run a model, or a guide, at the draws of a trace.

        Args:
            fn: What to run.
            pair: The pair that it is of.
            trace: The draws, with the dims of particles.
        """
        drawn = [(name, site) for name, site in sample_sites(trace) if not site["is_observed"]]
        values = {name: self._rows(site["value"], site["fn"].event_dim) for name, site in drawn}
        given = trace.copy()

        def run(own: dict[str, Tensor]) -> Trace:
            handled = _Given(given, own)(fn)
            found = poutine.trace(handled).get_trace(*pair.args, **pair.kwargs)
            if fn is not pair.guide:
                unmask_drawn(found, trace)
            return found

        with without_particles():
            first = run({name: rows[0] for name, rows in values.items()})
            _add(given, first, [name for name in subsamples(first) if name not in given])
            found = mapped(run, values, first)
            if found is None and is_unchecked():
                raise Unrecorded
            if found is None:
                split = {name: rows.unbind(0) for name, rows in values.items()}
                runs = [read(first, first, values)]
                for index in self._indices(1):
                    own = {name: rows[index] for name, rows in split.items()}
                    runs.append(read(run(own), first, values))
                found = Run.stacked(runs, first)
        return self._together(first, found, trace)

    def drawn(self, pair: Pair) -> tuple[Trace | None, Trace]:
        """Draw from the guide; return the trace of the model, if it ran too, and the guide's.

        Args:
            pair: The pair.
        """
        messenger: Any = poutine.unwrap(pair.guide)
        both = isinstance(messenger, GuideMessenger)
        models: list[Trace] = []
        guides: list[Trace] = []
        known = Trace()
        with without_particles():
            for index in self._indices(0):
                if both:
                    pair.guide(*pair.args, **pair.kwargs)
                    model_trace, one = messenger.get_traces()
                    models.append(model_trace)
                else:
                    run = poutine.replay(pair.guide, trace=known)
                    one = poutine.trace(run).get_trace(*pair.args, **pair.kwargs)
                guides.append(one)
                known = Trace()
                _add(known, guides[0], subsamples(guides[0]))
                if self.structure.local and (index + 1) % self.particles.inner:
                    outer = guides[index - index % self.particles.inner]
                    _add(known, outer, [n for n, s in sample_sites(outer) if self._outside(s)])
        guide_trace = self._joined(guides, None)
        for one in models:
            unmask_drawn(one, guide_trace)
        return (self._joined(models, guide_trace) if both else None), guide_trace

    def _indices(self, start: int) -> Any:
        count = self.particles.outer * self.particles.inner
        return tqdm(range(start, count), "draws", delay=2, disable=hidden(), leave=False)

    def _outside(self, site: Any) -> bool:
        return bool(self.structure.local) and self.structure.home(site) is None

    def _rows(self, value: Tensor, event_dim: int) -> Tensor:
        """Return the value of each particle, in the first dim."""
        sizes, lead = self.sizes, max(value.dim() - event_dim - self.structure.nesting, 0)
        shape = value.shape[lead:]
        value = value.reshape((*(1,) * (len(sizes) - lead), *value.shape[:lead], *shape))
        return value.expand(*sizes, *shape).reshape(-1, *shape)

    def _unrows(self, rows: Tensor, event_dim: int) -> Tensor:
        """Return what has a row for each particle with the dims of particles and plates."""
        shape = tuple(rows.shape[1:])
        missing = (1,) * (self.structure.nesting + event_dim - len(shape))
        return rows.reshape((*self.sizes, *missing, *shape))

    def _joined(self, traces: list[Trace], draws: Trace | None) -> Trace:
        given = () if draws is None else draws.nodes
        runs = [read(trace, traces[0], given) for trace in traces]
        return self._together(traces[0], Run.stacked(runs, traces[0]), draws)

    def _together(self, first: Trace, found: Run, draws: Trace | None) -> Trace:
        """Return one trace of those of all particles."""
        merged = first.copy()
        nodes: dict[str, Any] = first.nodes
        for name in found.names:
            merged.nodes[name] = self._site(nodes[name], found, draws)
        return merged

    def _site(self, first: Any, found: Run, draws: Trace | None) -> Any:
        name, event_dim = first["name"], first["fn"].event_dim
        for key in ("mask", "scale"):
            if not alike(found.get(name, key)):
                raise ValueError(
                    f"site '{name}': expected the same {key} in each draw; got another where a "
                    f"latent has another value. Write: poutine.{key} with what is known."
                )
        rows = found.get(name, "value")
        if first["infer"].get("_deterministic", False):
            event_dim = _event_dim(first)
            computed = self._unrows(rows, event_dim)
            fn = dist.Delta(computed, event_dim=event_dim).mask(mask=False)
            return first | {"value": computed, "fn": fn}
        if draws is not None and name in draws.nodes and not first["is_observed"]:
            value: Any = draws.nodes[name]["value"]
        elif first["is_observed"] and alike(rows):
            value = first["value"]
        else:
            value = self._unrows(rows, event_dim)
        log_prob = self._unrows(found.get(name, "log_prob"), 0)
        if self._outside(first) and self.particles.inner > 1:
            # It is for whoever reads the shape to say what follows if they differ.
            alone = log_prob.narrow(len(self.sizes) - 1, 0, 1)
            same = is_unchecked() or alike(log_prob.movedim(len(self.sizes) - 1, 0))
            log_prob = alone if same else log_prob
        if is_delta(first) and (first["is_observed"] or draws is None):
            fn = dist.Delta(value, log_prob, event_dim, validate_args=False)
            return first | {"value": value, "fn": fn}
        if draws is None and first["fn"].has_rsample and not is_reparameterized(first):
            raise ValueError(
                f"site '{name}': expected draws with all of their gradient, or none; got "
                f"{type(first['fn']).__name__}, which rejects some. Write: a guide that takes "
                "batch dims left of its plates."
            )
        batch = first["fn"].batch_shape
        sizes = (*self.sizes, *(1,) * (self.structure.nesting - len(batch)), *batch)
        fn = _Scored(first["fn"], sizes, value, log_prob, _support(first, found))
        return first | {"value": value, "fn": fn}


def _support(first: Any, found: Run) -> Any:
    """Return the first particle's support, or another one if the others have not the same."""
    support = first["fn"].support
    known = enumerate(bounds(support))
    rows = [found.get(first["name"], f"bound {i}", bound) for i, bound in known]
    return support if all(map(alike, rows)) else _Moving(rows)


def _add(trace: Trace, source: Trace, names: list[str]) -> None:
    for name in names:
        trace.nodes[name] = source.nodes[name]


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
