"""What all automatic guides share: groups of latents, each with one family and a source of π."""

import copy
import itertools
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Size, Tensor
from torch.distributions import Distribution, biject_to

from pyro_ext._replay import computed_once
from pyro_ext._sitewise import asked_sitewise
from pyro_ext.autoguide.group import Group, draw_apart
from pyro_ext.autoguide.packing import Frame, Latent
from pyro_ext.autoguide.plates import Batch

__all__ = ["Group", "PackedGuide"]

_COUNT = itertools.count()


class _AbstractGuideMeta(type(AutoGuide), ABCMeta):  # type: ignore[misc]
    """PyroModule's metaclass, with abstract methods."""


class PackedGuide(AutoGuide, metaclass=_AbstractGuideMeta):  # type: ignore[metaclass]
    """Base of the automatic guides: packs latents, draws, scores, summarizes.

    A concrete guide says how the latents fall into groups (``_group``), creates its parameters
    (``_create_source``) and returns π for a group in this call (``_params``).
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        init_loc_fn: Callable[[Any], Tensor],
        init_scale: float,
        create_plates: Callable[..., Any] | None,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(
                f"{type(self).__name__}: expected init_scale > 0; got {init_scale}. "
                "Leave it out for the default of 0.1."
            )
        super().__init__(model, create_plates=create_plates)
        self.init_loc_fn, self.init_scale = init_loc_fn, init_scale
        self.groups: tuple[Group, ...] = ()
        self._prototype_values: dict[str, Tensor] = {}
        self._own_name()

    @abstractmethod
    def _group(self, latents: tuple[Latent, ...]) -> tuple[Group, ...]:
        """Split the latents into groups."""

    @abstractmethod
    def _create_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        """Create the parameters behind one group's π from the initial one, shape ``(rows, P)``."""

    @abstractmethod
    def _params(self, group: Group, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        """Return π of the group in this call, shape ``(P,)`` or ``(B, P)``."""

    @abstractmethod
    def _batch(self, args: Any, kwargs: Any, *, draw: bool) -> Batch | None:
        """Return the rows of the data plate in this call."""

    # ------------------------------------------------------------------ set-up

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Look at the model once and create every parameter.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Raises:
            ValueError: If a latent site cannot be handled; the message names it.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        model = poutine.block(InitMessenger(self.init_loc_fn)(self.model), self._prototype_hide_fn)
        with torch.no_grad():
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
        sites: dict[str, Any] = dict(trace.iter_stochastic_nodes())
        latents = tuple(self._latent(name, site) for name, site in sites.items())
        if not latents:
            raise ValueError(
                f"{type(self).__name__}: expected a model with a latent site; every sample site "
                "is observed. Leave the latent unobserved: pyro.sample('z', dist.Normal(0, 1))."
            )
        groups = self._group(latents)
        self._prototype_frames = {
            frame.name: frame for site in sites.values() for frame in site["cond_indep_stack"]
        }
        values = {name: site["value"].detach() for name, site in sites.items()}
        self._prototype_values = values
        self.groups = groups
        with poutine.block():
            batch = self._batch(args, kwargs, draw=True)
        for group in groups:
            loc, _ = group.packing.pack(values)
            loc = loc.reshape(-1, group.packing.dim)
            initial = group.family.initial_params(loc, torch.full_like(loc, self.init_scale))
            network = group.family.network(group.packing.dim)
            if network is not None:
                setattr(self, f"{group.name}_network", network.to(loc))
            self._create_source(group, initial, batch)
        if self.master is not None:
            self.master()._check_prototype(trace)
        self.prototype_trace = trace

    def _latent(self, name: str, site: Any) -> Latent:
        fn = site["fn"]
        try:
            biject_to(fn.support)
        except NotImplementedError as error:
            raise ValueError(
                f"{type(self).__name__}: expected continuous latent sites; site '{name}' has "
                f"support {fn.support}. Hide it, {type(self).__name__}(pyro.poutine.block(model, "
                f"hide=['{name}']), ...), and enumerate it or give it a guide of its own."
            ) from error
        for frame in site["cond_indep_stack"]:
            if not frame.vectorized:
                raise ValueError(
                    f"{type(self).__name__}: expected vectorized plates; site '{name}' is in the "
                    f"sequential plate '{frame.name}'. Write: with pyro.plate('{frame.name}', "
                    "size):"
                )
        frames = (Frame(f.name, f.dim, f.size) for f in site["cond_indep_stack"])
        ordered = tuple(sorted(frames, key=lambda frame: frame.dim))
        sizes = {frame.dim: frame.size for frame in ordered}
        shape = tuple(fn.batch_shape)
        if any(size != sizes.get(dim - len(shape), 1) for dim, size in enumerate(shape)):
            raise ValueError(
                f"{type(self).__name__}: expected the batch dims of site '{name}' to be those of "
                f"its plates {[(frame.name, frame.dim, frame.size) for frame in ordered]}; got "
                f"batch shape {shape}. Write: dist.Normal(...).to_event(1), or open a plate."
            )
        return Latent(name, fn.support, Size(fn.event_shape), ordered)

    # ------------------------------------------------------------------ sampling

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained value of each latent site.
        """
        self.setup(*args, **kwargs)
        batch = self._batch(args, kwargs, draw=True)
        plates = self._guide_plates(batch, args, kwargs)
        scored = poutine.get_mask() is not False
        result: dict[str, Tensor] = {}
        for group in self.groups:
            source = partial(self._params, group, batch, args, kwargs)
            posterior: Any = self._posterior(group, computed_once((id(self), group.name), source))
            marginals = group.marginals(posterior) if asked_sitewise() else None
            if marginals is not None:
                result |= draw_apart(group, marginals, plates)
                continue
            with ExitStack() as stack:
                if group.packing.plate is not None:
                    stack.enter_context(plates[group.packing.plate.name])
                auxiliary = self._auxiliary_name(group)
                z = pyro.sample(auxiliary, posterior, infer={"is_auxiliary": True})
            unpacked = group.packing.unpack(z)
            for site in group.packing.sites:
                value, log_det = unpacked[site.name]
                log_density = -log_det if scored else 0.0
                with ExitStack() as stack:
                    for frame in site.frames:
                        stack.enter_context(plates[frame.name])
                    result[site.name] = pyro.sample(
                        site.name,
                        dist.Delta(value, log_density, event_dim=len(site.event_shape)),
                    )
        return result

    def auxiliary(
        self, latents: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the values of the auxiliary sites at given latents.

        ``poutine.condition(guide, data=guide.auxiliary(latents, *args))`` scores the latents.

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

    def _posterior(self, group: Group, params: Tensor) -> Distribution:
        """Return q with the batch dims that the data plate's position asks for."""
        if group.packing.plate is not None:
            ones = (1,) * (-group.packing.plate.dim - 1)
            params = params.reshape(params.shape[:1] + ones + params.shape[1:])
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

    # ------------------------------------------------------------------ summaries

    def log_prob(self, latents: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        r"""Return log q of given latents, constrained as the model has them.

        .. math:: \log q(\theta) = \log q(z; \pi) - \log\lvert\det \partial\theta/\partial z\rvert

        Args:
            latents: A value for each latent site, shape ``(*sample, *site)``.
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Log density, summed over plates, shape ``sample``.

        Raises:
            ValueError: If a site is missing.
        """
        self.setup(*args, **kwargs)
        self._check_sites(latents)
        batch = self._batch(args, kwargs, draw=False)
        total: list[Tensor] = []
        for group in self.groups:
            z, log_det = group.packing.pack(latents)
            posterior = self._posterior(group, self._params(group, batch, args, kwargs))
            log_q = posterior.log_prob(z) - log_det
            nesting = group.packing.nesting
            total.append(log_q.flatten(-nesting).sum(-1) if nesting else log_q)
        return torch.stack(torch.broadcast_tensors(*total)).sum(0)

    def sample_posterior(self, num_samples: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw from the guide, all rows of the data plate at once, without gradients.

        Args:
            num_samples: Number of draws S.
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained values, each of shape ``(S, *site)``.
        """
        self.setup(*args, **kwargs)
        return self._summarize(
            lambda group, posterior: posterior.sample((num_samples,)), 1, args, kwargs
        )

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the marginal median of each latent, mapped through its support's bijection.

        Args:
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained medians, each of the site's shape.
        """
        self.setup(*args, **kwargs)
        return self._summarize(
            lambda group, posterior: group.family.quantile(posterior, 0.5), 0, args, kwargs
        )

    def quantiles(
        self, quantiles: Sequence[float], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return marginal quantiles of each latent, mapped through its support's bijection.

        Args:
            quantiles: Probabilities in (0, 1).
            *args: The model's arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            Constrained quantiles, each of shape ``(len(quantiles), *site)``.

        Raises:
            ValueError: If a probability is outside (0, 1).
        """
        outside = [q for q in quantiles if not 0 < q < 1]
        if outside:
            raise ValueError(
                f"quantiles: expected probabilities in (0, 1); got {outside}. "
                "Write: guide.quantiles([0.05, 0.5, 0.95], *args)."
            )
        self.setup(*args, **kwargs)
        return self._summarize(
            lambda group, posterior: torch.stack(
                [group.family.quantile(posterior, q) for q in quantiles]
            ),
            1,
            args,
            kwargs,
        )

    def _summarize(
        self,
        of: Callable[[Group, Distribution], Tensor],
        leading: int,
        args: Any,
        kwargs: Any,
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        with torch.no_grad(), poutine.block():
            batch = self._batch(args, kwargs, draw=False)
            for group in self.groups:
                posterior = self._posterior(group, self._params(group, batch, args, kwargs))
                missing = group.packing.nesting - len(posterior.batch_shape)
                posterior = posterior.expand((1,) * missing + posterior.batch_shape)
                unpacked = group.packing.unpack(of(group, posterior))
                values = {name: value for name, (value, _) in unpacked.items()}
                result.update(group.packing.align(values, leading))
        return result

    # ------------------------------------------------------------------ parameters

    @property
    def num_params(self) -> int:
        """Number of trainable scalars, encoder included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load parameters into a guide that has been set up."""
        if self.prototype_trace is None:
            raise RuntimeError(
                f"{type(self).__name__}: expected a guide with parameters to load into; this one "
                "has not seen the model's data. Write: guide.setup(*args) before "
                "guide.load_state_dict."
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Move and cast the prototype values with the parameters, for ``.to`` and ``.double``."""
        with torch.no_grad():
            self._prototype_values = {k: fn(v) for k, v in self._prototype_values.items()}
        return super()._apply(fn, *args, **kwargs)

    def _check_sites(self, latents: dict[str, Tensor]) -> None:
        names = [site.name for group in self.groups for site in group.packing.sites]
        missing = [name for name in names if name not in latents]
        if missing:
            raise ValueError(
                f"log_prob: expected a value for each of the sites {names}; missing {missing}. "
                f"Write: guide.log_prob({{'{missing[0]}': value, ...}}, *args)."
            )

    def _own_name(self) -> None:
        """Give this guide names in the param store that no other guide of the process has."""
        self._pyro_set_supermodule(f"{type(self).__name__}_{next(_COUNT)}", self._pyro_context)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the model, and leave this guide as it was."""
        for module in (self, self.model):
            for param in module.parameters() if isinstance(module, torch.nn.Module) else ():
                # Pyro's store leaves a weak reference here, which cannot be pickled, and sets it
                # again at every read.
                param.__dict__.pop("unconstrained", None)
        return {**self.__dict__, "master": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state under a name of its own."""
        super().__setstate__(state)
        self._own_name()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedGuide":
        """Copy the guide and its parameters; the model is shared."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        memo[id(self._model)] = self._model
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new
