"""log q and log w of a pair, as functions of the guide's unconstrained draws."""

from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_ext._bijections import bijection_to
from pyro_ext._checks import Pair
from pyro_ext._discover import discover
from pyro_ext._run import Mode, Traces, run_pair
from pyro_ext._site_log_prob import site_log_prob, unmask_drawn
from pyro_ext._terms import Particles, Term, make_terms
from pyro_ext.structure import is_random, sample_sites

__all__ = ["Density", "Point"]

Point = dict[str, Tensor]
"""Unconstrained value of each random site of a guide, shape ``(particles, *plates, *event)``."""


class Density:
    r"""The path between a guide and the posterior, in the guide's unconstrained coordinates u.

    .. math:: \log f_\beta(u) = \log q(u) + \beta \log w(u)

    f_0 is the guide's density and f_1 the unnormalized posterior's. Elements of independent plates
    have a density each; with global latents there is one for all.

    Args:
        pair: Model, guide and arguments; the guide must be able to score any value.
        joint: Whether all latents make one density.

    Raises:
        ValueError: If the guide takes one draw at a time.
    """

    def __init__(self, pair: Pair, *, joint: bool) -> None:
        self.pair = pair
        self.structure = discover(self.pair, joint=joint, rerun="no", many=True).structure
        if self.structure.one_by_one == "pair":
            raise ValueError(
                "annealing: expected a start that takes many draws at once, as chains move "
                "together; got one that takes one, as the prior of a model that does. Write: "
                "start='guide', or in the model (x * w).sum(-1) for x @ w, and the like: "
                "docs/howto/particles.md."
            )
        local = self.structure.local
        self.dims = () if not local else tuple(dim for _, dim in local[0])

    def run(self, num: int) -> tuple[Traces, Term]:
        """Run guide and model; return their traces, and the log weights.

        Args:
            num: Number of particles, at least 2.
        """
        return self._run(self.pair, num)

    def _run(self, pair: Pair, num: int) -> tuple[Traces, Term]:
        particles = Particles(num, 1)
        traces = run_pair(pair, self.structure, particles, Mode())
        unmask_drawn(traces.model, traces.guide)
        (term,) = make_terms(
            traces.model,
            traces.guide,
            self.structure,
            particles,
            traces.paths,
            traces.guide,
            linear=False,
        )
        return traces, term

    def draw(self, num: int) -> tuple[Point, dict[str, Tensor]]:
        """Return draws of the guide, unconstrained, and the constrained latents of the model.

        Args:
            num: Number of particles, at least 2.
        """
        traces = run_pair(self.pair, self.structure, Particles(num, 1), Mode())
        point = {}
        for name, site in sample_sites(traces.guide):
            if is_random(site) and site["value"].numel():
                point[name] = _unconstrained(name, site).detach()
        model: dict[str, Any] = dict(sample_sites(traces.model))
        return point, {n: s["value"] for n, s in model.items() if not s["is_observed"]}

    def locate(self, values: dict[str, Tensor]) -> Point:
        """Return constrained values of the guide's random sites as a point of one particle.

        Args:
            values: Value of each site, without particles.
        """
        pair = self.pair
        fixed = poutine.condition(pair.guide, data=values)
        trace = poutine.trace(fixed).get_trace(*pair.args, **pair.kwargs)
        point = {}
        for name, site in sample_sites(trace):
            if name in values:
                point[name] = _unconstrained(name, site)
                missing = self.structure.nesting + 1 - len(site["fn"].batch_shape)
                point[name] = point[name].reshape((1,) * missing + point[name].shape)
        return point

    def __call__(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return log q and log w at a point, each of shape ``(particles, *batch)``.

        Args:
            point: Where.
        """
        num = len(next(iter(point.values())))
        at = _At(point)
        pair = replace(self.pair, guide=at(self.pair.guide))
        # A trajectory may leave the numbers that can be represented: it is rejected, no error.
        with pyro.validation_enabled(is_validate=False):
            traces, term = self._run(pair, num)
            log_q = torch.zeros_like(term.log_w)
            for name, site in sample_sites(traces.guide):
                if name in point:
                    log_q = log_q + self.collect(site_log_prob(site) + at.log_dets[name], num)
        return log_q, term.log_w

    def collect(self, values: Tensor, num: int) -> Tensor:
        """Sum what is given per particle and plate element over all but the density's elements.

        Args:
            values: Shape ``(particles, *plates)``, or fewer dims.
            num: Number of particles.
        """
        nesting = self.structure.nesting
        values = values.reshape((1,) * (nesting + 1 - values.dim()) + tuple(values.shape))
        values = values.expand(num, *values.shape[1:])
        dropped = [1 + nesting + dim for dim in range(-nesting, 0) if dim not in self.dims]
        return values.sum(dropped) if dropped else values

    def spread(self, values: Tensor, event_dim: int) -> Tensor:
        """Return what is given per element with the dims of a site.

        Args:
            values: Shape ``(particles, *batch)``.
            event_dim: Number of event dims of the site.
        """
        shape = [1] * self.structure.nesting
        for dim, size in zip(self.dims, values.shape[1:], strict=True):
            shape[dim] = size
        return values.reshape((len(values), *shape, *(1,) * event_dim))

    def event_dim(self, values: Tensor) -> int:
        """Return how many dims of an unconstrained value lie right of the plates.

        Args:
            values: Shape ``(particles, *plates, *event)``.
        """
        return values.dim() - self.structure.nesting - 1


def _unconstrained(name: str, site: Any) -> Tensor:
    if site["fn"].support.is_discrete:
        raise ValueError(
            f"site '{name}': expected a continuous latent, as annealed chains follow gradients; "
            f"got {type(site['fn']).__name__}. Write: px.evidence(model, guide, *args), which "
            "weights draws of the guide."
        )
    return bijection_to(site["fn"].support).inv(site["value"])


class _At(Messenger):
    """Handler that gives the guide's random sites the values of a point."""

    def __init__(self, point: Point) -> None:
        super().__init__()
        self.point = point
        self.log_dets: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.point or msg["is_observed"]:
            return
        point = self.point[msg["name"]]
        transform = bijection_to(msg["fn"].support)
        msg["value"] = transform(point)
        log_det = transform.log_abs_det_jacobian(point, msg["value"])
        batch_dim = msg["value"].dim() - msg["fn"].event_dim
        self.log_dets[msg["name"]] = sum_rightmost(log_det, log_det.dim() - batch_dim)
        msg["done"] = True
