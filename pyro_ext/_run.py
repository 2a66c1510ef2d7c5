"""Model and guide, run in particle plates, with gradients where a mode lets them flow."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._one_by_one import OneByOne, one_by_one
from pyro_ext._replay import remember_params
from pyro_ext._site_log_prob import score
from pyro_ext._strata import stratify
from pyro_ext._terms import Particles, PathScale
from pyro_ext.structure import ParticlePlate, Structure, is_random, sample_sites, trace_params

__all__ = [
    "Leaf",
    "Mode",
    "Rerun",
    "Traces",
    "drawn",
    "frozen",
    "held",
    "particle_plates",
    "prior_of",
    "replayed",
    "replayed_model",
    "run_pair",
    "traces",
    "with_stopped_values",
]


Rerun = Literal["stopped", "free", "no"]
"""Whether a guide is run again on its own draws, with its parameters stopped or free."""


@dataclass(frozen=True)
class Mode:
    """Where gradients flow in log weights.

    Args:
        values: How latents pass gradients on to the guide: ``"attached"``, ``"scaled"`` (by
            ``Term.scale_path``), ``"detached"``, or ``"leaf"`` (they are leaves, see ``Leaf``).
        stop_guide: Whether log q is evaluated with the guide's parameters stopped.
        stratified: Whether mixtures share out their particles among their components.
    """

    values: Literal["attached", "scaled", "detached", "leaf"] = "attached"
    stop_guide: bool = False
    stratified: bool = False

    @property
    def rerun(self) -> Rerun:
        """How the guide is run again to score its draws."""
        if self.stop_guide:
            return "stopped"
        return "no" if self.values == "attached" else "free"


@dataclass(frozen=True)
class Leaf:
    """A drawn value, cut from the log weights that are computed from it.

    Args:
        value: The value, attached to the guide's parameters.
        leaf: The same value as a leaf of the graph of the log weights.
        event_dim: Number of its event dims.
        path: Holds the weight that ``Term.scale_path`` gives to the particles.
    """

    value: Tensor
    leaf: Tensor
    event_dim: int
    path: PathScale


@dataclass(frozen=True)
class Traces:
    """What one pass leaves: the traces, the guide's as it is scored, and where gradients flow.

    Args:
        model: Trace of the model.
        guide: Trace of the guide, as it drew.
        scored: Trace of the guide whose log_prob counts.
        paths: Gradient scales, of the global term and of each local one.
        leaves: The values that were cut, in mode ``"leaf"``.
    """

    model: Trace
    guide: Trace
    scored: Trace
    paths: list[PathScale]
    leaves: tuple[Leaf, ...]


def run_pair(pair: Pair, structure: Structure, particles: Particles, mode: Mode) -> Traces:
    """Run guide and model once, and the guide again where the mode asks for it.

    Args:
        pair: The pair.
        structure: Its plates.
        particles: Number of particles.
        mode: Where gradients flow.
    """
    paths = [PathScale() for _ in range(len(structure.local) + 1)]
    leaves: tuple[Leaf, ...] = ()
    outer, inner = particles.dims(structure.nesting)
    axes = tuple(dim for dim in (inner, outer) if dim is not None)
    runs = one_by_one(structure, particles)
    with particle_plates(structure, particles), stratify(axes if mode.stratified else None):
        if mode.values == "attached" and not mode.stop_guide:
            model_trace, guide_trace = traces(pair, runs)
            scored = guide_trace
        else:
            with remember_params(stopped=mode.stop_guide):
                _, guide_trace = drawn(pair, runs)
                seen, leaves = _with_values(guide_trace, structure, paths, mode.values)
                if mode.values == "detached":
                    seen = replayed(pair, seen, runs)
                model_trace = replayed_model(pair, seen, runs)
                with frozen(pair.guide, guide_trace) if mode.stop_guide else nullcontext():
                    scored = seen if mode.values == "detached" else replayed(pair, seen, runs)
                    if mode.values == "scaled" and structure.local and particles.inner > 1:
                        _stop_globals(scored, pair, seen, structure, runs)
                    score(scored)
    return Traces(model_trace, guide_trace, scored, paths, leaves)


@contextmanager
def particle_plates(structure: Structure, particles: Particles) -> Iterator[None]:
    outer, inner = particles.dims(structure.nesting)
    inside = frozenset().union(*structure.members) if structure.local else None
    with ExitStack() as stack:
        if outer is not None:
            stack.enter_context(ParticlePlate("outer", particles.outer, outer, None))
        if inner is not None:
            stack.enter_context(ParticlePlate("inner", particles.inner, inner, inside))
        yield


def traces(pair: Pair, runs: OneByOne | None = None) -> tuple[Trace, Trace]:
    """Return the traces of the model and of the guide that it is replayed against."""
    model_trace, guide_trace = drawn(pair, runs)
    if model_trace is None:
        model_trace = replayed_model(pair, guide_trace, runs)
    return model_trace, guide_trace


def drawn(pair: Pair, runs: OneByOne | None = None) -> tuple[Trace | None, Trace]:
    """Return the guide's trace, and the model's where the guide has run it."""
    if runs is not None and runs.structure.one_by_one == "pair":
        return runs.drawn(pair)
    unwrapped = poutine.unwrap(pair.guide)
    if isinstance(unwrapped, GuideMessenger):
        pair.guide(*pair.args, **pair.kwargs)
        return unwrapped.get_traces()
    return None, poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)


def replayed_model(pair: Pair, guide_trace: Trace, runs: OneByOne | None = None) -> Trace:
    if runs is not None:
        return runs.replayed(pair.model, pair, guide_trace)
    replayed = poutine.replay(pair.model, trace=guide_trace)
    return poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)


def prior_of(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a guide that draws the latents of a model from their prior.

    Args:
        model: The model.
    """
    prior: Callable[..., Any] = poutine.block(
        model, hide_fn=lambda site: bool(site.get("is_observed"))
    )
    return prior


def replayed(pair: Pair, trace: Trace, runs: OneByOne | None = None) -> Trace:
    if runs is not None and runs.structure.one_by_one == "pair":
        return runs.replayed(pair.guide, pair, trace)
    replayed = poutine.replay(pair.guide, trace=trace)
    return poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)


def _stop_globals(
    scored: Trace, pair: Pair, trace: Trace, structure: Structure, runs: OneByOne | None
) -> None:
    """Score the local sites with the globals that they depend on stopped.

    The globals are parameters of q(z | globals), whose score the doubly reparameterized estimator
    replaces by the scaled path, as it does that of the guide's own parameters.
    """
    shared = [name for name, site in sample_sites(trace) if structure.home(site) is None]
    for name, site in sample_sites(replayed(pair, with_stopped_values(trace, shared), runs)):
        if structure.home(site) is not None:
            scored.nodes[name] = site


def with_stopped_values(trace: Trace, names: list[str]) -> Trace:
    copy = trace.copy()
    nodes: dict[str, Any] = copy.nodes
    for name in names:
        nodes[name] = nodes[name] | {"value": nodes[name]["value"].detach()}
    return copy


def _with_values(
    trace: Trace, structure: Structure, paths: list[PathScale], values: str
) -> tuple[Trace, tuple[Leaf, ...]]:
    """Return a copy of the guide's trace whose values let gradients through as the mode says.

    Only the term whose particles are averaged inside the log is scaled: the local ones, if any.
    """
    if values == "attached":
        return trace, ()
    copy, leaves = trace.copy(), []
    for name, site in sample_sites(trace):
        home = structure.home(site)
        if site["is_observed"] or (values == "scaled" and home is None and structure.local):
            continue
        copy.nodes[name] = site.copy()
        value, event_dim = site["value"], site["fn"].event_dim
        path = paths[0 if home is None else home + 1]
        if values == "scaled":
            value = path(value, event_dim)
        elif values == "detached":
            if not is_random(site):
                copy.remove_node(name)  # a Delta is computed anew, from the detached draws
                continue
            value = value.detach()
        elif value.is_floating_point():
            leaves.append(Leaf(value, value.detach().requires_grad_(), event_dim, path))
            value = leaves[-1].leaf
        copy.nodes[name]["value"] = value
    return copy, tuple(leaves)


@contextmanager
def frozen(guide: Callable[..., Any], trace: Trace) -> Iterator[None]:
    """Stop the guide's parameters, and silence Pyro's word about parameters without gradient."""
    params = set(trace_params(trace))
    owner = getattr(guide, "__self__", guide)
    if isinstance(owner, torch.nn.Module):
        params |= set(owner.parameters())
    with held([param for param in params if param.requires_grad]):
        yield


@contextmanager
def held(params: Sequence[Tensor]) -> Iterator[None]:
    """Within this context the given parameters get no gradient.

    Args:
        params: Trainable tensors.
    """
    try:
        for param in params:
            param.requires_grad = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*was not registered in the param store")
            yield
    finally:
        for param in params:
            param.requires_grad = True
