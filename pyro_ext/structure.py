"""Which plates of a (model, guide) pair hold independent elements with latents of their own."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import pyro.distributions as dist
from pyro.poutine import Trace
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

__all__ = [
    "ParticlePlate",
    "Structure",
    "analyse",
    "counts_in_guide",
    "identity",
    "is_delta",
    "is_random",
    "is_subsampled",
    "plate_frames",
    "sample_sites",
    "trace_params",
    "trainable",
    "unconstrained",
    "unwrapped",
    "without_particles",
]

_PREFIX = "_pyro_ext_particles"
_WRAPPERS = (Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
_Plates = tuple[tuple[str, int], ...]
_PAUSED: ContextVar[bool] = ContextVar("pyro_ext_no_particles", default=False)


@dataclass(frozen=True)
class Structure:
    """Shape of a (model, guide) pair, as far as particles are concerned.

    Args:
        nesting: Number of plate dims.
        local: One entry for each set of plates that share latents: the plates around all of their
            sites, whose elements are independent given the global latents, as ``(name, dim)`` by
            rising dim.
        members: For each entry of ``local``, the names of all plates in the set.
        one_by_one: What takes no batch dim for particles, and is run for each of them: the
            ``"model"``, or the ``"pair"``, if the guide takes none either.
    """

    nesting: int
    local: tuple[tuple[tuple[str, int], ...], ...] = ()
    members: tuple[frozenset[str], ...] = ()
    one_by_one: Literal["", "model", "pair"] = ""

    def without(self, index: int) -> "Structure":
        """Return the structure with one set of plates counted as global."""
        keep = [i for i in range(len(self.local)) if i != index]
        return self._of(keep)

    def alone(self, index: int) -> "Structure":
        """Return the structure with the other sets of plates counted as global."""
        return self._of([index])

    def _of(self, keep: list[int]) -> "Structure":
        return replace(
            self,
            local=tuple(self.local[i] for i in keep),
            members=tuple(self.members[i] for i in keep),
        )

    def home(self, site: Any) -> int | None:
        """Return the index of the set of plates that a site is in, or None if it is global."""
        names = {frame.name for frame in plate_frames(site)}
        for index, members in enumerate(self.members):
            if names & members:
                return index
        return None


class ParticlePlate(IndepMessenger):
    """A plate of particles; with ``inside`` it holds only sites in the named plates.

    Unlike ``pyro.plate`` it has no subsample to draw.
    """

    def __init__(self, label: str, size: int, dim: int, inside: frozenset[str] | None) -> None:
        super().__init__(f"{_PREFIX}_{label}", size, dim=dim)
        self.inside = inside

    def _process_message(self, msg: Any) -> None:
        if _PAUSED.get():
            return
        if self.inside is None or any(f.name in self.inside for f in msg["cond_indep_stack"]):
            super()._process_message(msg)
            BroadcastMessenger._pyro_sample(msg)


@contextmanager
def without_particles() -> Iterator[None]:
    """Within this context, the plates of particles around it hold no site."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


def sample_sites(trace: Trace) -> list[tuple[str, Any]]:
    """Return the sample sites that carry density: no subsampling, no deterministic sites."""
    nodes: dict[str, Any] = trace.nodes
    return [
        (name, site)
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic", False)
    ]


def trace_params(trace: Trace) -> list[Tensor]:
    """Return the unconstrained parameters that a traced function read."""
    nodes: dict[str, Any] = trace.nodes
    return [unconstrained(site["value"]) for site in nodes.values() if site["type"] == "param"]


def trainable(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors among parameters that want a gradient, each once."""
    return list({id(param): param for param in params if param.requires_grad}.values())


def unconstrained(param: Any) -> Tensor:
    """Return the tensor behind the value of a parameter site."""
    # A module's own parameter carries no link to itself if Pyro's store is out of the game.
    found: Tensor = param.unconstrained() if hasattr(param, "unconstrained") else param
    return found


def plate_frames(site: Any) -> list[Any]:
    """Return the vectorized plates around a site, particles left out."""
    return [
        frame
        for frame in site["cond_indep_stack"]
        if frame.vectorized and not frame.name.startswith(_PREFIX)
    ]


def is_subsampled(frame: Any) -> bool:
    """Tell whether a plate shows a part of its elements."""
    return frame.full_size is not None and bool(frame.size < frame.full_size)


def counts_in_guide(site: Any) -> bool:
    """Tell whether the density of a guide's site counts: that of a draw, or an auxiliary one."""
    return not site["is_observed"] or bool(site["infer"].get("is_auxiliary"))


def is_random(site: Any) -> bool:
    """Tell whether a guide site draws anything (a Delta does not)."""
    return not site["is_observed"] and not is_delta(site)


def is_delta(site: Any) -> bool:
    """Tell whether a site has all its mass at one value."""
    return isinstance(unwrapped(site["fn"]), dist.Delta)


def unwrapped(fn: Any) -> Any:
    """Return the distribution within ``to_event``, ``mask`` and ``expand``."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def analyse(model_trace: Trace, guide_trace: Trace) -> Structure:
    """Read off the plates: those that share a site go together, if the guide draws inside.

    Args:
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.
    """
    guide_sites = [site for _, site in sample_sites(guide_trace)]
    sites = [site for _, site in sample_sites(model_trace)] + guide_sites
    plates = [tuple([(f.name, f.dim) for f in plate_frames(site)]) for site in sites]
    of_guide = plates[len(plates) - len(guide_sites) :]
    drawn = [
        own for own, site in zip(of_guide, guide_sites, strict=True) if own and is_random(site)
    ]
    return _structure(tuple(plates), tuple(drawn))


@lru_cache
def _structure(plates: tuple[_Plates, ...], drawn: tuple[_Plates, ...]) -> Structure:
    """Return the structure of sites in these plates, of which the guide draws some."""
    nesting = max((-dim for own in plates for _, dim in own), default=0)
    names = [{name for name, _ in own} for own in plates]
    groups: list[set[str]] = []
    for own in filter(None, names):
        touching = [group for group in groups if group & own]
        groups = [group for group in groups if not group & own]
        groups.append(own.union(*touching))
    local, members = [], []
    for group in groups:
        if all(group.isdisjoint(name for name, _ in own) for own in drawn):
            continue
        inside = [set(own) for own, labels in zip(plates, names, strict=True) if labels & group]
        if common := set.intersection(*inside):
            local.append(tuple(sorted(common, key=lambda plate: plate[1])))
            members.append(frozenset(group))
    return Structure(nesting, tuple(local), tuple(members))


def identity(fn: Callable[..., Any]) -> tuple[int, int]:
    """Return a key for a callable that is the same for two references to one bound method."""
    return id(getattr(fn, "__self__", fn)), id(getattr(fn, "__func__", fn))
