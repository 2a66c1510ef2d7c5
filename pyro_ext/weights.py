"""(model, guide) → log importance weights. Plates, masks and scales are dealt with here only."""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_ext._checks import Pair, check_pair, check_shapes, explain_failure
from pyro_ext._replay import remember_params
from pyro_ext._terms import (
    Particles,
    PathScale,
    Term,
    check_shape,
    make_terms,
    score,
    site_log_prob,
)
from pyro_ext.structure import (
    ParticlePlate,
    Structure,
    analyse,
    identity,
    plate_frames,
    sample_sites,
    trace_params,
)

__all__ = ["LogWeights", "Term", "log_weights"]

_Found = tuple[Structure, Structure]
_Key = tuple[Any, ...]
_CACHE: dict[_Key, tuple[_Found, tuple[weakref.ref[Any], ...]]] = {}
_CACHE_SIZE = 128


@dataclass(frozen=True)
class LogWeights:
    """Log importance weights of a (model, guide) pair: one term per set of independent plates.

    Args:
        terms: The global term (``plates=()``), where there is one, then one term per data plate.
        model_trace: Pyro's trace of the model; particles are the batch dims left of the plates.
        guide_trace: Pyro's trace of the guide.
        max_plate_nesting: Number of batch dims that belong to plates.
    """

    terms: tuple[Term, ...]
    model_trace: Trace
    guide_trace: Trace
    max_plate_nesting: int

    def estimate(self, bound: Callable[[Tensor], Tensor]) -> Float[Tensor, ""]:
        """Return Σ scale · bound(log w), the bound of the whole data set.

        Args:
            bound: A function of ``pyro_ext.bounds``.
        """
        parts = [term.scale * bound(term.log_w).sum() for term in self.terms]
        return torch.stack(parts).sum()

    @property
    def latents(self) -> dict[str, Tensor]:
        """Values of the model's latents, shape ``(particles, *site)``."""
        values = {}
        for name, site in sample_sites(self.model_trace):
            if site["is_observed"]:
                continue
            value, event_dim = site["value"], site["fn"].event_dim
            own = max((-frame.dim for frame in plate_frames(site)), default=0) + event_dim
            lead = value.shape[: max(value.dim() - self.max_plate_nesting - event_dim, 0)]
            shape = value.shape[value.dim() - own :] if own else ()
            values[name] = value.reshape((*(lead or (1,)), *shape))
        return values


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 1,
    num_outer: int = 1,
    joint: bool = False,
    **kwargs: Any,
) -> LogWeights:
    r"""Return log importance weights of latents drawn from the guide.

    .. math:: \log w_k = \log p(x, z_k) - \log q(z_k), \qquad z_k \sim q, \quad k = 1..K

    Elements of independent plates get a weight each, with masks inside and the subsampling scale
    kept apart. If there are global latents too, the K particles of local latents are drawn inside
    each of the ``num_outer`` draws of the global ones (a locally enhanced bound). All particles
    share one mini-batch.

    Args:
        model: A Pyro model that broadcasts over dims left of its plates.
        guide: Its guide.
        *args: Arguments of both.
        num_particles: Number K of particles that a bound averages inside the log.
        num_outer: Number of independent sets of particles, averaged outside the log.
        joint: Whether all sites make one joint weight instead of one per element.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If the guide lacks a latent, or has another, or their plates differ in size, or
            if a site has a batch dim that is in no plate.

    References:
        Variational Inference with Locally Enhanced Bounds for Hierarchical Models
        (Geffner and Domke, 2022) | https://arxiv.org/abs/2203.04432

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> (term,) = log_weights(model, guide, torch.zeros(3), num_particles=5).terms
        >>> term.plates, term.log_w.shape
        (('data',), torch.Size([5, 3]))
    """
    for name, value in {"num_particles": num_particles, "num_outer": num_outer}.items():
        if value < 1:
            raise ValueError(f"log_weights: expected {name} >= 1; got {value}. Write: {name}=1.")
    pair = Pair(model, guide, args, kwargs)
    return weigh(pair, Particles(num_particles, num_outer), joint=joint)


def weigh(
    pair: Pair,
    particles: Particles,
    *,
    joint: bool,
    stop_guide: bool = False,
    scale_path: bool = False,
) -> LogWeights:
    """Do the work of ``log_weights``.

    Args:
        pair: Model, guide and their arguments.
        particles: Number of particles.
        joint: Whether all sites make one joint weight.
        stop_guide: Whether log q is evaluated with the guide's parameters stopped.
        scale_path: Whether gradients through latents are scaled by ``Term.scale_path``.
    """
    key = (*identity(pair.model), *identity(pair.guide), joint, stop_guide)
    found = _recall(key) or _remember(key, pair, _discover(pair, joint=joint, stop=stop_guide))
    candidate, structure = found
    try:
        result = _run(pair, structure, particles, stop_guide=stop_guide, scale_path=scale_path)
        if _candidate(result.model_trace, result.guide_trace, joint=joint) == candidate:
            return result
    except Exception as error:
        if _discover_or_none(pair, joint=joint, stop=stop_guide) in (None, found):
            explain_failure(error, pair, particles=particles.inner * particles.outer)
            raise
    # The pair's plates have changed since they were looked at: look again.
    _, structure = _remember(key, pair, _discover(pair, joint=joint, stop=stop_guide))
    return _run(pair, structure, particles, stop_guide=stop_guide, scale_path=scale_path)


def _recall(key: _Key) -> _Found | None:
    """Return what was found for a pair, unless it is another one at the same address."""
    entry = _CACHE.get(key)
    return entry[0] if entry is not None and all(ref() is not None for ref in entry[1]) else None


def _remember(key: _Key, pair: Pair, found: _Found) -> _Found:
    if len(_CACHE) >= _CACHE_SIZE:
        _CACHE.pop(next(iter(_CACHE)))
    try:
        refs = tuple(weakref.ref(getattr(fn, "__self__", fn)) for fn in (pair.model, pair.guide))
    except TypeError:
        return found  # cannot be watched: looked at anew in each call
    _CACHE[key] = _CACHE[(*key[:-1], False)] = found, refs
    return found


def _candidate(model_trace: Trace, guide_trace: Trace, *, joint: bool) -> Structure:
    found = analyse(model_trace, guide_trace)
    return Structure(found.nesting) if joint else found


def _discover(pair: Pair, *, joint: bool, stop: bool) -> _Found:
    """Return what the traces suggest, and what is left when coupled plates count as global."""
    with torch.no_grad(), poutine.block(), _same_random_state():
        try:
            model_trace, guide_trace = _traces(pair)
        except Exception as error:
            explain_failure(error, pair, particles=1)
            raise
        check_pair(model_trace, guide_trace)
        check_shapes(model_trace, guide_trace)
        if stop:
            _check_stopped(pair)
        candidate = _candidate(model_trace, guide_trace, joint=joint)
        structure, index = candidate, 0
        while index < len(structure.local):
            alone = Structure(
                candidate.nesting, (structure.local[index],), (structure.members[index],)
            )
            try:
                leaks = _leaks(pair, alone)
            except Exception as error:
                explain_failure(error, pair, particles=2)
                raise
            if leaks:
                structure = structure.without(index)
            else:
                index += 1
    return candidate, structure


def _discover_or_none(pair: Pair, *, joint: bool, stop: bool) -> _Found | None:
    try:
        return _discover(pair, joint=joint, stop=stop)
    except Exception:
        return None


def _check_stopped(pair: Pair) -> None:
    """Raise if the guide, run again on its draws with its parameters stopped, is another q."""
    with torch.enable_grad(), remember_params():
        trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
        given = _with_stopped_values(trace, [name for name, _ in sample_sites(trace)])
        with _frozen(pair.guide, trace):
            for name, site in sample_sites(_replayed(pair, given)):
                log_q, again = site_log_prob(trace.nodes[name]), site_log_prob(site)
                if not torch.allclose(log_q, again, rtol=1e-2, atol=0.1, equal_nan=True):
                    raise ValueError(
                        f"guide site '{name}': expected the same distribution when the guide is "
                        "run again on its own draws, as 'stl' and 'dreg' do; got another, as a "
                        "dropout layer makes it. Write guide.eval(), make the layer part of the "
                        "encoder of px.AutoAmortized, or estimator='reparam'."
                    )
                if again.requires_grad:
                    raise ValueError(
                        f"guide site '{name}': expected a distribution whose trainable tensors "
                        "Pyro sees, so that 'stl' and 'dreg' can stop them; got one that depends "
                        "on another. Write pyro.module('encoder', encoder) or pyro.param in the "
                        "guide, or estimator='reparam'."
                    )


def _leaks(pair: Pair, alone: Structure) -> bool:
    """Tell whether a site outside the plates changes with the particles inside them."""
    with _particle_plates(alone, Particles(2, 1)):
        model_trace, guide_trace = _traces(pair)
    for trace in (model_trace, guide_trace):
        for _, site in sample_sites(trace):
            if alone.home(site) is None:
                try:
                    check_shape(site, site_log_prob(site).shape)
                except ValueError:
                    return True
    return False


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Leave the random state as it was, so that a look at the pair changes no draw."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _particle_plates(structure: Structure, particles: Particles) -> Iterator[None]:
    outer, inner = particles.dims(structure.nesting)
    inside = frozenset().union(*structure.members) if structure.local else None
    with ExitStack() as stack:
        if outer is not None:
            stack.enter_context(ParticlePlate("outer", particles.outer, outer, None))
        if inner is not None:
            stack.enter_context(ParticlePlate("inner", particles.inner, inner, inside))
        yield


def _traces(pair: Pair) -> tuple[Trace, Trace]:
    """Return the traces of the model and of the guide that it is replayed against."""
    unwrapped = poutine.unwrap(pair.guide)
    if isinstance(unwrapped, GuideMessenger):
        pair.guide(*pair.args, **pair.kwargs)
        return unwrapped.get_traces()
    guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
    return _model_trace(pair, guide_trace), guide_trace


def _model_trace(pair: Pair, guide_trace: Trace) -> Trace:
    replayed = poutine.replay(pair.model, trace=guide_trace)
    return poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)


def _run(
    pair: Pair,
    structure: Structure,
    particles: Particles,
    *,
    stop_guide: bool = False,
    scale_path: bool = False,
) -> LogWeights:
    paths = [PathScale() for _ in range(len(structure.local) + 1)]
    with remember_params(), _particle_plates(structure, particles):
        if not (stop_guide or scale_path):
            model_trace, guide_trace = _traces(pair)
            scored = guide_trace
        else:
            guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
            scaled = _with_scaled_paths(guide_trace, structure, paths) if scale_path else None
            model_trace = _model_trace(pair, scaled or guide_trace)
            with _frozen(pair.guide, guide_trace):
                scored = _replayed(pair, scaled or guide_trace)
                if scaled is not None and structure.local and particles.inner > 1:
                    _stop_globals(scored, pair, scaled, structure)
                score(scored)
    check_pair(model_trace, guide_trace)
    terms = make_terms(model_trace, scored, structure, particles, paths)
    return LogWeights(terms, model_trace, guide_trace, structure.nesting)


def _replayed(pair: Pair, trace: Trace) -> Trace:
    replayed = poutine.replay(pair.guide, trace=trace)
    return poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)


def _stop_globals(scored: Trace, pair: Pair, trace: Trace, structure: Structure) -> None:
    """Score the local sites with the globals that they depend on stopped.

    The globals are parameters of q(z | globals), whose score the doubly reparameterized estimator
    replaces by the scaled path, as it does that of the guide's own parameters.
    """
    shared = [name for name, site in sample_sites(trace) if structure.home(site) is None]
    for name, site in sample_sites(_replayed(pair, _with_stopped_values(trace, shared))):
        if structure.home(site) is not None:
            scored.nodes[name] = site


def _with_stopped_values(trace: Trace, names: list[str]) -> Trace:
    copy = trace.copy()
    nodes: dict[str, Any] = copy.nodes
    for name in names:
        nodes[name] = nodes[name] | {"value": nodes[name]["value"].detach()}
    return copy


def _with_scaled_paths(trace: Trace, structure: Structure, paths: list[PathScale]) -> Trace:
    """Return a copy whose values pass their gradients on through the scale of their term.

    Only the term whose particles are averaged inside the log is scaled: the local ones, if any.
    """
    copy = trace.copy()
    for name, site in sample_sites(trace):
        home = structure.home(site)
        if site["is_observed"] or (home is None and structure.local):
            continue
        path = paths[0 if home is None else home + 1]
        copy.nodes[name] = site.copy()
        copy.nodes[name]["value"] = path(site["value"], site["fn"].event_dim)
    return copy


@contextmanager
def _frozen(guide: Callable[..., Any], trace: Trace) -> Iterator[None]:
    """Stop the guide's parameters, and silence Pyro's word about parameters without gradient."""
    params = set(trace_params(trace))
    owner = getattr(guide, "__self__", guide)
    if isinstance(owner, torch.nn.Module):
        params |= set(owner.parameters())
    trainable = [param for param in params if param.requires_grad]
    try:
        for param in trainable:
            param.requires_grad = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*was not registered in the param store")
            yield
    finally:
        for param in trainable:
            param.requires_grad = True
