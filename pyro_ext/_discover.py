"""The plates of a (model, guide) pair, looked at once and remembered."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_ext._checks import Pair, check_pair, check_shapes, explain_failure
from pyro_ext._errors import of_batch_dims
from pyro_ext._flat_guides import check_flat
from pyro_ext._one_by_one import one_by_one
from pyro_ext._replay import remember_params
from pyro_ext._run import (
    Rerun,
    drawn,
    frozen,
    particle_plates,
    replayed,
    replayed_model,
    traces,
    with_stopped_values,
)
from pyro_ext._site_log_prob import check_shape, site_log_prob
from pyro_ext._slower import tell_slower
from pyro_ext._supports import check_supports
from pyro_ext._terms import Particles
from pyro_ext.structure import Structure, analyse, identity, sample_sites

__all__ = ["Found", "discover", "recall", "suggested"]

_CACHE: dict[tuple[Any, ...], tuple["Found", tuple[weakref.ref[Any], ...]]] = {}
_CACHE_SIZE = 128
_RERUNS: tuple[Rerun, ...] = ("stopped", "free", "no")  # who passes a check passes the next


@dataclass(frozen=True)
class Found:
    """What is known of a pair's plates.

    Args:
        suggested: The plates as the traces suggest them.
        structure: The same, with plates whose elements turn out to be coupled counted as global.
    """

    suggested: Structure
    structure: Structure


def recall(pair: Pair, *, joint: bool, rerun: Rerun, many: bool) -> Found | None:
    """Return what is known of this pair, or None.

    Args:
        pair: The pair.
        joint: Whether all sites make one joint weight.
        rerun: How the guide will be run again.
        many: Whether there is more than one particle.
    """
    known = _CACHE.get(_key(pair, joint=joint, rerun=rerun, many=many))
    if known is None or any(ref() is None for ref in known[1]):
        return None  # unknown, or another pair at the same address
    return known[0]


def suggested(model_trace: Trace, guide_trace: Trace, *, joint: bool) -> Structure:
    """Return the plates as two traces suggest them.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.
        joint: Whether all sites make one joint weight.
    """
    found = analyse(model_trace, guide_trace)
    return Structure(found.nesting) if joint else found


def discover(
    pair: Pair, *, joint: bool, rerun: Rerun, many: bool, particles: Particles | None = None
) -> Found:
    """Run a pair without particles, look at its plates, and remember them.

    Args:
        pair: The pair.
        joint: Whether all sites make one joint weight.
        rerun: How the guide will be run again.
        many: Whether there is more than one particle.
        particles: With how many to try it, where it has failed with them.

    Raises:
        ValueError: If model and guide do not match, the guide has no parameters of its own for
            each element of a subsampled plate, a support moves, or the model mixes particles.
    """
    with torch.no_grad(), poutine.block(), _same_random_state():
        try:
            model_trace, guide_trace = traces(pair)
        except Exception as error:
            explain_failure(error, pair, particles=1)
            raise
        check_flat(pair.guide, model_trace)
        check_supports(pair.guide, model_trace)
        check_pair(model_trace, guide_trace)
        check_shapes(model_trace, guide_trace)
        if rerun != "no":
            _check_rerun(pair, stopped=rerun == "stopped")
        first = suggested(model_trace, guide_trace, joint=joint)
        structure = _tried(pair, first, many=many, particles=particles)
    return _remember(pair, Found(first, structure), joint=joint, rerun=rerun, many=many)


def _tried(
    pair: Pair, structure: Structure, *, many: bool, particles: Particles | None
) -> Structure:
    """Return the structure that works: with all particles at once, or else one by one."""
    try:
        with _same_random_state():
            return _checked(pair, structure, many=many, particles=particles)
    except Exception as error:
        found = None
        if of_batch_dims(error):
            found = _tried_alone(pair, structure, many=many, particles=particles)
        if found is None:
            explain_failure(error, pair, particles=2)
            raise
        if many:
            tell_slower(pair.model, error)
        return found


def _tried_alone(
    pair: Pair, structure: Structure, *, many: bool, particles: Particles | None
) -> Structure | None:
    """Return the structure of a pair that works one by one, with the draws that failed at once."""
    try:
        how = _how(pair, structure, particles or Particles(1, 2))
        with _same_random_state():
            alone = replace(structure, one_by_one=how)
            return _checked(pair, alone, many=many, particles=particles)
    except Exception:
        return None


def _checked(
    pair: Pair, structure: Structure, *, many: bool, particles: Particles | None
) -> Structure:
    """Return the structure with plates whose elements turn out to be coupled counted as global."""
    index = 0
    while index < len(structure.local):
        if _leaks(pair, structure.alone(index)):
            structure = structure.without(index)
        else:
            index += 1
    if many:
        _check_apart(pair, structure)
    if particles is not None:
        with particle_plates(structure, particles):
            found = traces(pair, one_by_one(structure, particles))
        for trace in found:
            _check_shapes(trace, structure)
    return structure


def _how(pair: Pair, structure: Structure, particles: Particles) -> Literal["model", "pair"]:
    """Return what is run one by one: the model, or the pair where the guide fails too."""
    if isinstance(poutine.unwrap(pair.guide), GuideMessenger):
        return "pair"
    try:
        with _same_random_state(), particle_plates(structure, particles):
            _check_shapes(drawn(pair)[1], structure)
    except Exception:
        return "pair"
    return "model"


def _key(pair: Pair, *, joint: bool, rerun: Rerun, many: bool) -> tuple[Any, ...]:
    return (*map(_callable_key, (pair.model, pair.guide)), joint, rerun, many)


def _callable_key(fn: Any) -> tuple[Any, ...]:
    """Return which callable it is, and the modes of its modules: dropout shows in one alone."""
    owner = getattr(fn, "__self__", fn)
    modules = owner.modules() if isinstance(owner, torch.nn.Module) else ()
    return *identity(fn), tuple([module.training for module in modules])


def _remember(pair: Pair, found: Found, *, joint: bool, rerun: Rerun, many: bool) -> Found:
    if len(_CACHE) >= _CACHE_SIZE:
        _CACHE.pop(next(iter(_CACHE)))
    try:
        refs = tuple(weakref.ref(getattr(fn, "__self__", fn)) for fn in (pair.model, pair.guide))
    except TypeError:
        return found  # cannot be watched: looked at anew in each call
    for checked, several in product(_RERUNS[_RERUNS.index(rerun) :], {many, False}):
        _CACHE[_key(pair, joint=joint, rerun=checked, many=several)] = found, refs
    return found


def _check_rerun(pair: Pair, *, stopped: bool) -> None:
    """Raise if the guide, run again on its draws, is another q, or cannot be stopped."""
    with torch.enable_grad(), remember_params(stopped=stopped):
        trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
        given = with_stopped_values(trace, [name for name, _ in sample_sites(trace)])
        with frozen(pair.guide, trace) if stopped else nullcontext():
            for name, site in sample_sites(replayed(pair, given)):
                log_q, again = site_log_prob(trace.nodes[name]), site_log_prob(site)
                if not torch.allclose(log_q, again, rtol=1e-2, atol=0.1, equal_nan=True):
                    raise ValueError(
                        f"guide site '{name}': expected the same distribution when the guide is "
                        "run again on its own draws, as 'stl', 'dreg', px.PIWAE and px.WakeSleep "
                        "do; got another, as a dropout layer makes it. Write: guide.eval(); or "
                        "px.AutoAmortized(model, encoder) with the layer in the encoder; or "
                        "px.ELBO, px.IWAE or px.MIWAE with estimator='reparam'."
                    )
                if stopped and again.requires_grad:
                    raise ValueError(
                        f"guide site '{name}': expected a distribution whose trainable tensors "
                        "Pyro sees, so that 'stl' and 'dreg' can stop them; got one that depends "
                        "on another. Write: pyro.module('encoder', encoder) or pyro.param in the "
                        "guide, or estimator='reparam'."
                    )


def _leaks(pair: Pair, alone: Structure) -> bool:
    """Tell whether a site outside the plates changes with the particles inside them."""
    particles = Particles(2, 1)
    with particle_plates(alone, particles):
        model_trace, guide_trace = traces(pair, one_by_one(alone, particles))
    for trace in (model_trace, guide_trace):
        for _, site in sample_sites(trace):
            if alone.home(site) is None:
                try:
                    check_shape(site, site_log_prob(site).shape)
                except ValueError:
                    return True
    return False


def _check_apart(pair: Pair, structure: Structure) -> None:
    """Raise if the density of one particle changes with the latents of another."""
    if isinstance(poutine.unwrap(pair.guide), GuideMessenger):
        return
    particles = Particles(1, 2)
    runs = one_by_one(structure, particles)
    with torch.enable_grad(), particle_plates(structure, particles):
        _, trace = drawn(pair, runs)
        seen = with_stopped_values(trace, [name for name, _ in sample_sites(trace)])
        leaves = {
            name: (site["value"].requires_grad_(), site["fn"].event_dim)
            for name, site in sample_sites(seen)
            if site["value"].is_floating_point()
        }
        model_trace = replayed_model(pair, seen, runs)
        _check_shapes(model_trace, structure)
    if leaves and runs is None:  # discrete latents alone have no gradient to tell by
        with torch.enable_grad():
            _check_gradients(model_trace, leaves, -structure.nesting - 1)


def _check_shapes(trace: Trace, structure: Structure) -> None:
    for _, site in sample_sites(trace):
        shape = site_log_prob(site).shape
        check_shape(site, shape, max(len(shape) - structure.nesting, 0))


def _check_gradients(model_trace: Trace, leaves: dict[str, tuple[Tensor, int]], dim: int) -> None:
    for name, site in sample_sites(model_trace):
        log_prob = site_log_prob(site)
        if log_prob.dim() < -dim or not log_prob.requires_grad:
            continue
        first = log_prob.select(dim, 0).sum()
        values = [value for value, _ in leaves.values()]
        grads = torch.autograd.grad(first, values, retain_graph=True, allow_unused=True)
        for (latent, (_, event_dim)), grad in zip(leaves.items(), grads, strict=True):
            if grad is not None and grad.select(dim - event_dim, 1).any():
                raise ValueError(
                    f"site '{name}': expected the density of a particle to depend on its own "
                    f"latents; got one that changes with '{latent}' of another particle. Write: "
                    "x.flatten(-2) for x.view(n, -1), u[..., index] of a u in a plate for "
                    "u[index], and dim=-1 for dim=1, as particles are a "
                    f"batch dim to the left of the plates (dim {dim}); for a batch-norm layer, "
                    "model.eval(), a LayerNorm, or num_particles=1."
                )


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Leave the random state as it was, so that a look at the pair changes no draw."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield
