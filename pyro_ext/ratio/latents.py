"""Draws of a model's latents as vectors: one unconstrained vector for each independent element."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext._bijections import bijection_to
from pyro_ext._checks import Pair, check_pair
from pyro_ext._discover import discover, suggested
from pyro_ext._one_by_one import one_by_one
from pyro_ext._run import drawn, particle_plates, prior_of, replayed_model
from pyro_ext._score_function import is_reparameterized, score_function
from pyro_ext._site_log_prob import site_log_prob
from pyro_ext._strata import mixture
from pyro_ext._terms import Particles
from pyro_ext.structure import Structure, sample_sites, unwrapped

__all__ = ["Draws", "Elements"]


@dataclass(frozen=True)
class Draws:
    """K draws of all latents, and what the model says of them.

    Args:
        z: Unconstrained latents, shape ``(K, elements, D)``.
        data: Observed values of each element, shape ``(K, elements, F)``, with F = 0 where there
            is one element only: its data never change.
        log_likelihood: Log density of what is observed, scaled, shape ``(K,)``.
        log_prior: Log density of the unconstrained latents, scaled, shape ``(K,)``.
        scale: Factor on every element: N/B of a mini-batch.
        batch: What the plates drew, for ``from_guide`` to draw latents of the same elements.
    """

    z: Tensor
    data: Tensor
    log_likelihood: Tensor
    log_prior: Tensor
    scale: float
    batch: Trace

    def same_batch(self, other: "Draws") -> bool:
        """Tell whether the elements are those of other draws.

        Args:
            other: The other draws.
        """
        ours, theirs = (
            {name: torch.as_tensor(site["value"]) for name, site in draws.batch.nodes.items()}
            for draws in (self, other)
        )
        return ours.keys() == theirs.keys() and all(
            torch.equal(value, theirs[name]) for name, value in ours.items()
        )


class Elements:
    """The independent elements of a (model, guide) pair, and how to draw their latents.

    Args:
        pair: Model, guide and arguments.
        joint: Whether all latents make one vector.

    Raises:
        ValueError: If there are latents inside a data plate and outside it, and not ``joint``.
    """

    def __init__(self, pair: Pair, *, joint: bool) -> None:
        with torch.no_grad(), poutine.block(), torch.random.fork_rng(devices=()):
            guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
            model_trace = replayed_model(pair, guide_trace)
        check_pair(model_trace, guide_trace)
        structure = _uncoupled(suggested(model_trace, guide_trace, joint=joint), pair)
        latents = [site for _, site in sample_sites(model_trace) if not site["is_observed"]]
        homes = {structure.home(site) for site in latents}
        if len(homes) > 1:
            names = [site["name"] for site in latents if structure.home(site) is None]
            plates = [dict(plates) for plates in structure.local]
            raise ValueError(
                f"Adversarial: expected latents in one data plate, or all outside; got the sites "
                f"{names} outside, others in the plates {plates}. Write: "
                "px.Adversarial(joint=True) for one critic of all latents, on the full batch."
            )
        self._structure = replace(structure, one_by_one=_what_is_single(structure, pair))
        (home,) = homes
        kept = () if home is None else structure.local[home]
        self._axes = tuple(structure.nesting + dim for _, dim in kept)

    @property
    def single(self) -> bool:
        """Whether all latents make one vector."""
        return not self._axes

    def from_guide(self, pair: Pair, num: int, *, batch: Trace | None = None) -> Draws:
        """Draw latents from the guide, and score them by the model.

        Args:
            pair: Model, guide and arguments.
            num: Number K of draws.
            batch: That of other draws, for latents of the same elements.

        Raises:
            ValueError: If gradients are on and a site has a gradient that its draws have not.
        """
        guide = pair.guide if batch is None else poutine.replay(pair.guide, trace=batch)
        particles = Particles(1, num)
        runs = one_by_one(self._structure, particles)
        with particle_plates(self._structure, particles):
            _, guide_trace = drawn(replace(pair, guide=guide), runs)
            model_trace = replayed_model(pair, guide_trace, runs)
        check_pair(model_trace, guide_trace)
        if torch.is_grad_enabled():
            _check_paths(guide_trace)
        return self._draws(model_trace, num)

    def from_model(self, pair: Pair, num: int, *, dream: bool = False) -> Draws:
        """Draw latents from the model's prior, and data too if it dreams.

        Args:
            pair: Model, guide and arguments.
            num: Number K of draws.
            dream: Whether to draw what is observed.
        """
        model = poutine.uncondition(pair.model) if dream else pair.model
        particles = Particles(1, num)
        runs = one_by_one(self._structure, particles)
        as_guide = replace(pair, guide=model)
        with particle_plates(self._structure, particles):
            _, trace = drawn(as_guide) if runs is None else runs.drawn(as_guide)
        return self._draws(trace, num)

    def _draws(self, trace: Trace, num: int) -> Draws:
        vectors, data, log_likelihood, log_prior = [], [], [], []
        scales: dict[str, Any] = {}
        for name, site in sample_sites(trace):
            fn, value = site["fn"], site["value"]
            event_dim = fn.event_dim
            total = self._total(site["scale"] * site_log_prob(site), value, num)
            if site["is_observed"] or site["infer"].get("was_observed"):
                log_likelihood.append(total)
                if self._axes and not isinstance(fn, dist.Unit):
                    data.append(self._vectors(value, event_dim, num))
                continue
            if site["mask"] is not None:
                raise ValueError(
                    f"Adversarial: expected latents without a mask; got one on site '{name}'. "
                    "Write: poutine.mask around the observed sites only."
                )
            if fn.support.is_discrete:
                raise ValueError(
                    f"Adversarial: expected continuous latents, whose draws are differentiated; "
                    f"got site '{name}', {type(unwrapped(fn)).__name__}. Write: "
                    "px.ELBO(estimator='score'), or px.WakeSleep()."
                )
            transform = bijection_to(fn.support)
            unconstrained = transform.inv(value)
            log_det = transform.log_abs_det_jacobian(unconstrained, value)
            log_prior.append(total + self._total(site["scale"] * log_det, value, num))
            gained = unconstrained.dim() - value.dim()
            vectors.append(self._vectors(unconstrained, event_dim + gained, num))
            scales[name] = site["scale"]
        scale = next(iter(scales.values()))
        if any(isinstance(s, Tensor) or s != scale for s in scales.values()):
            raise ValueError(
                f"Adversarial: expected latents with one scale; got {scales}. Write: "
                "poutine.scale around the observed sites only."
            )
        elements = max(v.shape[1] for v in vectors)
        z = torch.cat([v.expand(num, elements, -1) for v in vectors], -1)
        seen = [d.expand(num, elements, -1).to(z.dtype) for d in data]
        zero = z.new_zeros(num)
        return Draws(
            z,
            torch.cat([z.new_zeros(num, elements, 0), *seen], -1),
            torch.stack([zero, *log_likelihood]).sum(0),
            torch.stack([zero, *log_prior]).sum(0),
            scale,
            _subsamples(trace),
        )

    def _total(self, log_prob: Any, value: Tensor, num: int) -> Tensor:
        """Sum over everything but the draws."""
        log_prob = torch.as_tensor(log_prob, device=value.device)
        drawn = num > 1 and log_prob.dim() > self._structure.nesting
        return log_prob.reshape(num, -1).sum(-1) if drawn else log_prob.sum().expand(num)

    def _vectors(self, value: Tensor, event_dim: int, num: int) -> Tensor:
        """Return ``(K or 1, elements, rest)``; all dims but the kept plates go into the rest."""
        nesting = self._structure.nesting
        shape = value.shape[: value.dim() - event_dim]
        lead = num if num > 1 and len(shape) > nesting else 1
        own = tuple(shape[max(len(shape) - nesting, 0) :])
        plates = (1,) * (nesting - len(own)) + own
        value = value.reshape((lead, *plates, -1))
        kept = [1 + axis for axis in self._axes]
        others = [axis for axis in range(1, value.dim()) if axis not in kept]
        value = value.permute(0, *kept, *others).flatten(1 + len(kept))
        return value.reshape(lead, -1, value.shape[-1])


def _check_paths(guide_trace: Trace) -> None:
    """Raise if a draw depends on parameters otherwise than by its path, which has the gradient."""
    for name, site in sample_sites(guide_trace):
        fn = site["fn"]
        if isinstance(fn, dist.Unit) or is_reparameterized(site):
            continue
        if score_function(site).requires_grad:
            several = mixture(site)
            instead = (
                "px.ELBO(estimator='score')"
                if several is None
                else f"px.ELBO(num_particles={several.num_strata})"
            )
            raise ValueError(
                f"Adversarial: expected guide sites that depend on parameters to be "
                f"reparameterized, as the gradient goes through the draws alone; got site "
                f"'{name}', {type(unwrapped(fn)).__name__}, which is not. Write: {instead}, if "
                "the guide has a density."
            )


def _subsamples(trace: Trace) -> Trace:
    """Return the sites alone by which plates chose their elements."""
    found = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site):
            found.add_node(name, **site)
    return found


def _uncoupled(structure: Structure, pair: Pair) -> Structure:
    """Return the plates that are independent by the prior too, which is looked at as a guide."""
    if not structure.local:
        return structure
    found = discover(_with_prior(pair), joint=False, rerun="no", many=False)
    for index in reversed(range(len(structure.local))):
        if structure.members[index] not in found.structure.members:
            structure = structure.without(index)
    return structure


def _what_is_single(structure: Structure, pair: Pair) -> Literal["", "model", "pair"]:
    """Return what takes one draw at a time; the guide may be without a density to check it by."""
    if not discover(_with_prior(pair), joint=True, rerun="no", many=True).structure.one_by_one:
        return ""
    try:
        with torch.no_grad(), poutine.block(), torch.random.fork_rng(devices=()):
            with particle_plates(structure, Particles(1, 2)):
                drawn(pair)
    except Exception:
        return "pair"
    return "model"


def _with_prior(pair: Pair) -> Pair:
    return replace(pair, guide=prior_of(pair.model))
