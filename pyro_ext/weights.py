"""(model, guide) → log importance weights. Plates, masks and scales are dealt with here only."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext._checks import Pair, check_pair, explain_failure
from pyro_ext._discover import Found, discover, recall, suggested
from pyro_ext._errors import out_of_memory
from pyro_ext._one_by_one import OneByOne, one_by_one
from pyro_ext._one_run import Unrecorded
from pyro_ext._run import Leaf, Mode, Rerun, Traces, run_pair
from pyro_ext._site_log_prob import unmask_drawn
from pyro_ext._strata import stratified
from pyro_ext._supports import check_supports
from pyro_ext._terms import Particles, PathScale, Term, make_terms
from pyro_ext.structure import Structure, is_random, plate_frames, sample_sites

__all__ = ["LogWeights", "Mode", "Term", "log_weights", "weigh"]


@dataclass(frozen=True)
class LogWeights:
    """Log importance weights of a (model, guide) pair: one term per set of independent plates.

    Args:
        terms: The global term (``plates=()``), where there is one, then one term per data plate.
        model_trace: Pyro's trace of the model; particles are the batch dims left of the plates.
        guide_trace: Pyro's trace of the guide.
        max_plate_nesting: Number of batch dims that belong to plates.
        leaves: Draws that were cut from what is computed from them.
        runs: How the model was run for each draw, if it was.

    Example:
        >>> from pyro_ext.testing import NormalHierarchy
        >>> exact = NormalHierarchy(torch.zeros(3))
        >>> found = px.log_weights(exact.model, exact.guide, exact.x, num_particles=5, num_outer=2)
        >>> [term.plates for term in found.terms]
        [(), ('data',)]
    """

    terms: tuple[Term, ...]
    model_trace: Trace
    guide_trace: Trace
    max_plate_nesting: int
    leaves: tuple[Leaf, ...] = ()
    runs: OneByOne | None = field(default=None, repr=False)

    def estimate(self, bound: Callable[..., Tensor]) -> Float[Tensor, ""]:
        """Return Σ scale · bound(log w), the bound of the whole data set.

        Args:
            bound: A function of ``pyro_ext.bounds``.
        """
        first, *others = [term.estimate(bound) for term in self.terms]
        return torch.stack([first, *others]).sum() if others else first

    @property
    def hierarchical(self) -> bool:
        """Whether there are global latents beside local ones."""
        local = {name for term in self.terms for name in term.plates}
        return bool(local) and any(
            is_random(site) and local.isdisjoint(frame.name for frame in plate_frames(site))
            for _, site in sample_sites(self.guide_trace)
        )

    @property
    def point_estimates(self) -> list[str]:
        """Names of the guide's Deltas at a parameter, among sites with particles inside the log.

        The other Deltas are functions of draws, with another value in each particle.
        """
        local = {name for term in self.terms for name in term.plates}
        found = []
        for name, site in sample_sites(self.guide_trace):
            shared = local.isdisjoint(frame.name for frame in plate_frames(site))
            if is_random(site) or site["is_observed"] or (local and shared):
                continue
            value = site["value"]
            axis = value.dim() - site["fn"].event_dim - self.max_plate_nesting - 1
            if value.requires_grad and (axis < 0 or value.stride(axis) == 0):
                found.append(name)
        return found

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
    share one mini-batch. A model that does not broadcast over dims left of its plates is run draw
    by draw, which is slower, and a warning says so once.

    Args:
        model: A Pyro model.
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
    return weigh(pair, Particles(num_particles, num_outer), joint=joint, mode=Mode())


def weigh(
    pair: Pair,
    particles: Particles,
    *,
    joint: bool,
    mode: Mode,
    adjust: Callable[[Trace, Trace], object] | None = None,
    linear: bool = False,
) -> LogWeights:
    """Do the work of ``log_weights``.

    Args:
        pair: Model, guide and their arguments.
        particles: Number of particles.
        joint: Whether all sites make one joint weight.
        mode: Where gradients flow.
        adjust: Called with the model's trace and the guide's before their sites are added up; it
            may change their log densities and scales.
        linear: Whether the bound is linear in log w, so that a joint weight may be split where
            mixtures share out the particles of each element apart, and scales that are tensors may
            stay inside.
    """
    many = particles.count_dims > 0

    def finished(traces: Traces, structure: Structure) -> LogWeights:
        if is_validation_enabled():
            check_supports(pair.guide, traces.model)
        sites = (site for _, site in sample_sites(traces.guide))
        if linear and joint and any(plate_frames(site) for site in sites if stratified(site)):
            structure = _apart(pair, traces, mode.rerun, many=many)
            traces = replace(traces, paths=[PathScale() for _ in (None, *structure.local)])
        return _weights(traces, structure, particles, adjust, linear=linear)

    known = recall(pair, joint=joint, rerun=mode.rerun, many=many)
    found = known or discover(pair, joint=joint, rerun=mode.rerun, many=many)
    try:
        traces = run_pair(pair, found.structure, particles, mode)
        if suggested(traces.model, traces.guide, joint=joint) == found.suggested:
            return finished(traces, found.structure)
    except Exception as error:
        if out_of_memory(error) or isinstance(error, Unrecorded):
            raise
        again = _again(pair, particles if many else None, joint=joint, rerun=mode.rerun)
        if again in (None, found):
            at_once = 1 if found.structure.one_by_one else particles.inner * particles.outer
            explain_failure(error, pair, particles=at_once)
            raise
        found = again
    else:
        found = discover(pair, joint=joint, rerun=mode.rerun, many=many)
    # The pair's plates have changed since they were looked at, or it takes no such particles.
    traces = run_pair(pair, found.structure, particles, mode)
    return finished(traces, found.structure)


def _apart(pair: Pair, traces: Traces, rerun: Rerun, *, many: bool) -> Structure:
    """Return the structure with weights for each element, of traces that ran for a joint one."""
    found = recall(pair, joint=False, rerun=rerun, many=many)
    if found is None or suggested(traces.model, traces.guide, joint=False) != found.suggested:
        found = discover(pair, joint=False, rerun=rerun, many=many)
    return found.structure


def _again(pair: Pair, particles: Particles | None, *, joint: bool, rerun: Rerun) -> Found | None:
    many = particles is not None
    try:
        return discover(pair, joint=joint, rerun=rerun, many=many, particles=particles)
    except Exception:
        return None


def _weights(
    traces: Traces,
    structure: Structure,
    particles: Particles,
    adjust: Callable[[Trace, Trace], object] | None,
    *,
    linear: bool,
) -> LogWeights:
    check_pair(traces.model, traces.guide)
    unmask_drawn(traces.model, traces.guide)
    if adjust is not None:
        adjust(traces.model, traces.scored)
    terms = make_terms(
        traces.model,
        traces.scored,
        structure,
        particles,
        traces.paths,
        traces.guide,
        linear=linear,
    )
    runs = one_by_one(structure, particles)
    return LogWeights(terms, traces.model, traces.guide, structure.nesting, traces.leaves, runs)
