"""What all automatic guides share: groups of latents, each with one family and a source of π."""

import math
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyro_ext._cited import Cited
from pyro_ext._precision import in_full_precision
from pyro_ext._replay import computed_once
from pyro_ext._sitewise import asked_sitewise
from pyro_ext.autoguide.fixed import fixed_values
from pyro_ext.autoguide.group import Group, Image, draw_apart
from pyro_ext.autoguide.packing import Latent
from pyro_ext.autoguide.plates import Batch
from pyro_ext.autoguide.prototype import check_continuous, check_start, latent_of, prototype_of
from pyro_ext.autoguide.summaries import SummarizedGuide
from pyro_ext.families import Family

__all__ = ["Group", "PackedGuide"]


class PackedGuide(Cited, SummarizedGuide):
    """Base of the automatic guides: packs latents, draws, scores, summarizes.

    A concrete guide says how the latents fall into groups (``_group``), creates its parameters
    (``_create_source``) and returns π for a group in this call (``_params``).
    """

    family: Family

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init_loc_fn: Callable[[Any], Tensor],
        init_scale: float,
        create_plates: Callable[..., Any] | None,
    ) -> None:
        if not 0 < init_scale < math.inf:
            raise ValueError(
                f"{type(self).__name__}: expected a finite init_scale > 0; got {init_scale}. "
                "Write: init_scale=0.1."
            )
        super().__init__(model, create_plates=create_plates)
        self.init_loc_fn, self.init_scale = init_loc_fn, init_scale
        self.groups = ()

    @property
    def num_strata(self) -> int:
        """What the number of particles is a multiple of, so that mixtures can share them out."""
        return math.lcm(*(getattr(group.family, "num_components", 1) for group in self.groups))

    def extra_repr(self) -> str:
        """Return the family, for the text of the module."""
        return f"family={self.family}"

    @abstractmethod
    def _group(self, latents: tuple[Latent, ...]) -> tuple[Group, ...]:
        """Split the latents into groups."""

    @abstractmethod
    def _create_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        """Create the parameters behind one group's π from the initial one, shape ``(rows, P)``."""

    def _params_given(self, group: Group, params: Tensor, given: Tensor) -> Tensor:
        """Return π given the unconstrained draw of the group that conditions others.

        Args:
            group: The group.
            params: What ``_params`` returned, with batch dims.
            given: The draw; its batch dims are particles to the left of the plates.
        """
        return params

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        trace = prototype_of(self.model, self.init_loc_fn, args, kwargs, owner=owner)
        sites: dict[str, Any] = dict(trace.iter_stochastic_nodes())
        check_continuous(sites, owner=owner)
        latents = tuple(self._latent(name, site) for name, site in sites.items())
        if not latents:
            raise ValueError(
                f"{owner}: expected a model with a latent site; got one whose sample sites are "
                "all observed. Write: pyro.sample('z', dist.Normal(0, 1)), without obs=."
            )
        groups = self._group(latents)
        self._prototype_frames = {
            frame.name: frame for site in sites.values() for frame in site["cond_indep_stack"]
        }
        values = {name: _start(site) for name, site in sites.items()}
        for latent in latents:
            check_start(latent, values[latent.name], owner=owner)
        self._prototype_values = values
        self.groups = groups
        with poutine.block():
            batch = self._batch(args, kwargs, draw=True)
        for group in groups:
            loc, _ = group.packing.pack(values)
            loc = loc.reshape(math.prod(loc.shape[:-1]), group.packing.dim)
            initial = group.family.initial_params(loc, torch.full_like(loc, self.init_scale))
            with torch.device("cpu"):  # a seed then means the same on each device
                network = group.family.network(group.packing.dim)
            if network is not None:
                setattr(self, f"{group.name}_network", network.to(loc))
            self._create_source(group, initial, batch)
        if self.master is not None:
            self.master()._check_prototype(trace)
        self.prototype_trace = trace

    def _latent(self, name: str, site: Any) -> Latent:
        return latent_of(name, site, owner=type(self).__name__)

    @in_full_precision
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents, or take those that ``poutine.condition`` or ``replay`` fixes.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained value of each latent site.

        Raises:
            ValueError: If some sites of a group are fixed and others are not.
        """
        self.setup(*args, **kwargs)
        self._meet_store()
        batch = self._batch(args, kwargs, draw=True)
        plates = self._guide_plates(batch, args, kwargs)
        result: dict[str, Tensor] = {}
        given: Tensor | None = None
        for group in self.groups:
            source = partial(self._params, group, batch, args, kwargs)
            params = computed_once((id(self), group.name), source)
            posterior: Any = self._posterior(group, params, given)
            apart = asked_sitewise() and not self._conditions_others(group)
            marginals = group.marginals(posterior) if apart else None
            if marginals is not None:
                result |= draw_apart(group, marginals, plates)
                continue
            z, drawn = self._draw_together(group, posterior, plates)
            given = z if self._conditions_others(group) else given
            result |= drawn
        return result

    def _draw_together(
        self, group: Group, posterior: Any, plates: dict[str, pyro.plate]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sample a group's vector, and its sites as functions of it."""
        auxiliary = self._auxiliary_name(group)
        plate = None if group.packing.plate is None else plates[group.packing.plate.name]
        fixed = fixed_values(group, auxiliary, owner=type(self).__name__)
        at: Tensor | None = None
        if fixed is not None:
            size = None if plate is None else plate.subsample_size
            fixed, at = group.packing.take(fixed, size, len(posterior.batch_shape))
        with ExitStack() as stack:
            if plate is not None:
                stack.enter_context(plate)
            z = pyro.sample(auxiliary, posterior, obs=at, infer={"is_auxiliary": True})
        unpacked = group.packing.unpack(z)
        scored = poutine.get_mask() is not False
        drawn: dict[str, Tensor] = {}
        for site in group.packing.sites:
            value, log_det = unpacked[site.name]
            # A fixed value is kept: the bijection and its inverse would round it.
            value = value if fixed is None else fixed[site.name]
            log_density = -log_det if scored else 0.0
            with ExitStack() as stack:
                for frame in site.frames:
                    stack.enter_context(plates[frame.name])
                image = Image(value, log_density, event_dim=len(site.event_shape))
                drawn[site.name] = pyro.sample(site.name, image)
        return z, drawn

    def auxiliary(
        self, latents: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the values of the auxiliary sites, the vectors that are drawn, at given latents.

        Args:
            latents: Constrained value of each latent site.
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.
        """
        self.setup(*args, **kwargs)
        self._check_sites(latents)
        return {self._auxiliary_name(g): g.packing.pack(latents)[0] for g in self.groups}

    def _auxiliary_name(self, group: Group) -> str:
        return f"_{self._pyro_name}_{group.name}"

    def _posterior(
        self, group: Group, params: Tensor, given: Tensor | None = None
    ) -> Distribution:
        if group.packing.plate is not None:
            ones = (1,) * (-group.packing.plate.dim - 1)
            params = params.reshape(params.shape[:1] + ones + params.shape[1:])
        if given is not None:
            params = self._params_given(group, params, given)
        return group.posterior(params, getattr(self, f"{group.name}_network", None))

    def _guide_plates(self, batch: Batch | None, args: Any, kwargs: Any) -> dict[str, pyro.plate]:
        if self.create_plates is not None or self.master is not None:
            if batch is None:
                self._create_plates(*args, **kwargs)
            plates: dict[str, pyro.plate] = self.plates
            return plates
        made = {} if batch is None else {batch.plate.name: batch.plate}
        for group in self.groups:
            for site in group.packing.sites:
                for frame in site.frames:
                    if frame.name not in made:
                        made[frame.name] = pyro.plate(frame.name, frame.size, dim=frame.dim)
        return made


def _start(site: Any) -> Tensor:
    """Return where a latent starts, a real number for each element."""
    value: Tensor = site["value"].detach()
    if not value.is_floating_point():  # such as torch.tensor(1)
        value = value.to(torch.get_default_dtype())
    # A reparameterizer inside a plate asks for a start before the plate is known.
    return value.expand(site["fn"].batch_shape + site["fn"].event_shape)
