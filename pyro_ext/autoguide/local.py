"""What the guides with one π per datapoint share: the data plate, and globals with a shared π."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, cast

from pyro.infer.autoguide import init_to_median
from torch import Tensor, nn

from pyro_ext._cited import references_of
from pyro_ext.autoguide.guide import Group, PackedGuide
from pyro_ext.autoguide.packing import Frame, Latent, Packing
from pyro_ext.autoguide.plates import Batch, batch_of, find_batch
from pyro_ext.families import Diagonal, Family
from pyro_ext.families.family import check_family
from pyro_ext.structure import is_subsampled

__all__ = ["LocalGuide"]


class LocalGuide(PackedGuide):
    """Base of the guides with one π per datapoint.

    ``sparse`` is for those that hold a table of rows.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        family: Family | None = None,
        plate: str | None = None,
        global_family: Family | None = None,
        init_loc_fn: Callable[[Any], Tensor] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        condition_on_globals: bool = False,
        sparse: bool = False,
    ) -> None:
        super().__init__(
            model, init_loc_fn=init_loc_fn, init_scale=init_scale, create_plates=create_plates
        )
        self.family = Diagonal() if family is None else family
        self.global_family = Diagonal() if global_family is None else global_family
        for option in ("family", "global_family"):
            check_family(type(self).__name__, option, getattr(self, option))
        self.plate = plate
        self.condition_on_globals = condition_on_globals
        self.sparse = sparse
        self._subsampled: dict[str, tuple[int, int]] = {}

    def _latent(self, name: str, site: Any) -> Latent:
        for frame in site["cond_indep_stack"]:
            if is_subsampled(frame):
                self._subsampled[frame.name] = (frame.size, frame.full_size)
        return super()._latent(name, site)

    def _group(self, latents: tuple[Latent, ...]) -> tuple[Group, ...]:
        frame = self._data_plate(latents)
        self.plate = frame.name
        for site in latents:
            for other in site.frames:
                if other.name != frame.name and other.name in self._subsampled:
                    size, full = self._subsampled[other.name]
                    raise ValueError(
                        f"{type(self).__name__}: expected only the data plate '{frame.name}' to "
                        f"be subsampled; got site '{site.name}' in plate '{other.name}' too, "
                        f"which shows {size} of {full} elements. Write: "
                        f"pyro.plate('{other.name}', {full}), without a subsample."
                    )
        local = tuple(site for site in latents if frame in site.frames)
        shared = tuple(site for site in latents if frame not in site.frames)
        groups = [Group("local", self.family, Packing(local, frame))]
        if shared:
            groups.insert(0, Group("global", self.global_family, Packing(shared, None)))
        elif self.condition_on_globals:
            raise ValueError(
                f"{type(self).__name__}: expected latents outside plate '{frame.name}' with "
                f"condition_on_globals=True; got sites {[site.name for site in local]}, which are "
                "all inside. Write: condition_on_globals=False."
            )
        return tuple(groups)

    def _data_plate(self, latents: tuple[Latent, ...]) -> Frame:
        """Return the plate that is named, or the only one, or the only subsampled one."""
        frames = {frame.name: frame for site in latents for frame in site.frames}
        owner = type(self).__name__
        if self.plate is not None:
            if self.plate in frames:
                return frames[self.plate]
            raise ValueError(
                f"{owner}: expected a plate named '{self.plate}' around a latent site; got "
                f"latents in the plates {sorted(frames)}. Write: plate=... with one of them."
            )
        if not frames:
            names = [site.name for site in latents]
            raise ValueError(
                f"{owner}: expected latents inside a data plate; got sites {names} in none. "
                "Write: px.AutoJoint(model)."
            )
        if len(frames) == 1:
            return next(iter(frames.values()))
        subsampled = [name for name in frames if name in self._subsampled]
        if len(subsampled) == 1:
            return frames[subsampled[0]]
        raise ValueError(
            f"{owner}: expected one data plate; got latents in the plates {sorted(frames)}. "
            f"Write: {owner}(model, ..., plate='{sorted(frames)[0]}')."
        )

    def _create_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        if group.name == "global":
            self.global_params = nn.Parameter(initial[0])
        else:
            self._create_local_source(group, initial, batch)

    @abstractmethod
    def _create_local_source(self, group: Group, initial: Tensor, batch: Batch | None) -> None:
        """Create what the local π come from."""

    def _params(self, group: Group, batch: Batch | None, args: Any, kwargs: Any) -> Tensor:
        if group.name == "global" or batch is None:
            shared: Tensor = self.global_params
            return shared
        return self._local_params(batch, args, kwargs)

    @abstractmethod
    def _local_params(self, batch: Batch, args: Any, kwargs: Any) -> Tensor:
        """Return π of each row, followed by its context if the globals condition it."""

    def _conditions_others(self, group: Group) -> bool:
        return self.condition_on_globals and group.name == "global"

    def _params_given(self, group: Group, params: Tensor, given: Tensor) -> Tensor:
        size = group.num_params
        params, context = params.split([size, params.shape[-1] - size], dim=-1)
        response: Tensor = self.response(context, given)
        return params + response

    @property
    def _num_globals(self) -> int:
        """Dimension of the vector of globals that conditions the local latents, or 0."""
        return self.groups[0].packing.dim if self.condition_on_globals else 0

    def _batch(self, args: Any, kwargs: Any, *, draw: bool) -> Batch | None:
        frame = self._data_frame
        if self.create_plates is not None or self.master is not None:
            batch = batch_of(
                self._create_plates(*args, **kwargs)[frame.name],
                draw=draw,
                owner=type(self).__name__,
            )
        else:
            batch = find_batch(
                self.model,
                frame,
                self._prototype_values,
                args,
                kwargs,
                draw=draw,
                owner=type(self).__name__,
            )
        for site in self.groups[-1].packing.sites if batch.rows is not None else ():
            if site.support_varies(frame):
                raise ValueError(
                    f"{type(self).__name__}: expected every element of plate '{frame.name}' to "
                    f"have the same support where its rows come in batches; got site "
                    f"'{site.name}' with bounds of its own in each row. Write: "
                    f"pyro.deterministic('{site.name}', low + (high - low) * u) of a u in the "
                    "unit interval, or use all rows at once."
                )
        return batch

    @property
    def _data_frame(self) -> Frame:
        return cast(Frame, self.groups[-1].packing.plate)

    def _papers_in_use(self) -> Iterable[str]:
        return references_of(self.family, *(group.family for group in self.groups))
