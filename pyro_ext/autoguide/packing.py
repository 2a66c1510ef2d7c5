"""Several latent sites in one unconstrained vector, and back."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import (
    ComposeTransform,
    IndependentTransform,
    Transform,
    biject_to,
    constraints,
)

__all__ = ["Frame", "Latent", "Packing"]


@dataclass(frozen=True)
class Frame:
    """A vectorized plate: its name, its dim (negative, counted from the right) and its size."""

    name: str
    dim: int
    size: int


@dataclass(frozen=True)
class Latent:
    """A latent site of the model.

    Args:
        name: Name of the site.
        support: Constraint on its values.
        event_shape: Shape of one value.
        frames: Plates that it is in, the data plate included, by rising dim.
    """

    name: str
    support: constraints.Constraint
    event_shape: Size
    frames: tuple[Frame, ...]

    @property
    def nesting(self) -> int:
        """Number of batch dims of the site."""
        return max((-frame.dim for frame in self.frames), default=0)

    @cached_property
    def transform(self) -> Transform:
        """Bijection from unconstrained values to the support."""
        return biject_to(self.support)

    @property
    def _base(self) -> Any:
        """That bijection without the dims that it only takes along."""
        base: Any = self.transform
        while isinstance(base, IndependentTransform):
            base = base.base_transform
        return base

    @cached_property
    def unbounded(self) -> bool:
        """Whether that bijection is the identity."""
        return isinstance(self._base, ComposeTransform) and not self._base.parts

    @cached_property
    def increasing(self) -> bool:
        """Whether that bijection is increasing, entry by entry, so that it keeps quantiles."""
        base = self._base
        return base.domain.event_dim == 0 and bool((torch.as_tensor(base.sign) > 0).all())

    @cached_property
    def unconstrained_shape(self) -> Size:
        """Shape of one unconstrained value. The bounds of a support may have batch dims."""
        shape = [1] * self.nesting
        for frame in self.frames:
            shape[frame.dim] = frame.size
        return Size(self.transform.inverse_shape((*shape, *self.event_shape))[self.nesting :])

    def support_varies(self, frame: Frame) -> bool:
        """Tell whether the support changes along one of the site's plates."""
        ones = (1,) * self.nesting
        shape = self.transform.forward_shape((*ones, *self.unconstrained_shape))
        return shape[self.nesting + frame.dim] > 1


class Packing:
    """The layout of one group of sites: (batch, D) ↔ a dict of constrained values.

    Sites in a data plate get one vector per element of the plate. All their other plates are part
    of the vector.

    Args:
        sites: Sites of the group, in the order of the model.
        plate: The data plate, or None if the group has one vector for all.
    """

    def __init__(self, sites: tuple[Latent, ...], plate: Frame | None) -> None:
        self.sites, self.plate = sites, plate
        self.nesting = max(site.nesting for site in sites)
        self.sizes = tuple(self._size(site) for site in sites)
        self.dim = sum(self.sizes)

    def unpack(self, z: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return value and log |det dvalue/dz| of each site.

        Args:
            z: Unconstrained vectors, shape ``(*batch, dim)``.
        """
        unconstrained = self.arrange(z)
        return {site.name: self._constrain(site, unconstrained[site.name]) for site in self.sites}

    def arrange(self, z: Tensor) -> dict[str, Tensor]:
        """Return what z holds for each site, with the site's batch dims, not constrained yet.

        Args:
            z: Unconstrained vectors, shape ``(*batch, dim)``.
        """
        return {
            site.name: self._arrange_site(site, part)
            for site, part in zip(self.sites, z.split(self.sizes, dim=-1), strict=True)
        }

    def pack(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return z and the sum of log |det dvalue/dz|, the inverse of ``unpack``.

        Args:
            values: Constrained values, each of shape ``(*sample, *batch dims of the site,
                *event)``.

        Returns:
            z, shape ``(*sample, *batch, dim)``, and the log determinant, shape ``(*sample,
            *batch)``, where batch has ``nesting`` dims, of size 1 except for the data plate.
        """
        parts, log_dets = zip(
            *(self._pack_site(site, values[site.name]) for site in self.sites), strict=True
        )
        return torch.cat(parts, dim=-1), torch.stack(log_dets).sum(0)

    def check(self, values: dict[str, Tensor], size: int | None) -> None:
        """Raise if values do not have the shapes of their sites, after sample dims of one shape.

        Args:
            values: Constrained value of each site.
            size: Number of elements of the data plate, or None if there is none.

        Raises:
            ValueError: If they do not; the message names the site.
        """
        samples = set()
        for site in self.sites:
            value: Any = values[site.name]
            own = tuple(self._batch_shape(site, size)[self.nesting - site.nesting :])
            own += tuple(site.event_shape)
            got = tuple(value.shape) if isinstance(value, Tensor) else ()
            samples.add(got[: len(got) - len(own)])
            if not isinstance(value, Tensor) or got[len(got) - len(own) :] != own:
                samples.clear()
            if len(samples) != 1:
                sizes = ", ".join(["*sample", *map(str, own)])
                what = got if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"log_prob: expected site '{site.name}' to have a tensor of shape ({sizes}), "
                    f"with the sample dims of the other sites; got {what}. Write: guide.log_prob("
                    f"{{'{site.name}': value, ...}}, *args) with one value for each element of "
                    "the site's plates."
                )

    def align(self, values: dict[str, Tensor], leading: int) -> dict[str, Tensor]:
        """Drop the batch dims that a site does not have, after ``leading`` sample dims.

        Args:
            values: Values with ``nesting`` batch dims each.
            leading: Number of sample dims.
        """
        out = {}
        for site in self.sites:
            value = values[site.name]
            kept = value.shape[:leading] + value.shape[leading + self.nesting - site.nesting :]
            out[site.name] = value.reshape(kept)
        return out

    def take(
        self, values: dict[str, Tensor], size: int | None, batch_dims: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Pack values as a trace has them: particles to the left of all plates, or broadcast.

        Args:
            values: Constrained value of each site.
            size: Number of elements of the data plate, or None if there is none.
            batch_dims: Number of batch dims of one vector in a trace without particles.

        Returns:
            The values, and z, with the batch dims that ``unpack`` gives and takes in a trace.

        Raises:
            ValueError: If a value does not have the shape of its site.
        """
        particles = max(
            values[site.name].dim() - len(site.event_shape) - self.nesting for site in self.sites
        )
        leading = max(particles, 0)
        padded = {site.name: self._pad(site, values[site.name], leading) for site in self.sites}
        sample = torch.broadcast_shapes(*(value.shape[:leading] for value in padded.values()))
        for site in self.sites:
            shape = self._batch_shape(site, size) + site.event_shape
            try:
                padded[site.name] = padded[site.name].expand(sample + shape)
            except RuntimeError as error:
                raise ValueError(
                    f"site '{site.name}': expected a value of shape {tuple(shape)}, with "
                    f"particles to the left of it; got {tuple(values[site.name].shape)}. Write: "
                    f"poutine.condition(guide, data={{'{site.name}': value}}) with one value for "
                    "each element of the site's plates in this call."
                ) from error
        aligned = self.align(padded, leading)
        z, _ = self.pack(aligned)
        if leading:
            return padded, z
        return aligned, z.reshape(z.shape[self.nesting - batch_dims :])

    def _pad(self, site: Latent, value: Tensor, leading: int) -> Tensor:
        missing = leading + self.nesting + len(site.event_shape) - value.dim()
        return value.reshape((1,) * missing + value.shape)

    def _batch_shape(self, site: Latent, size: int | None) -> Size:
        shape = [1] * self.nesting
        for frame in site.frames:
            data = self.plate is not None and frame.name == self.plate.name
            shape[frame.dim] = size if data and size is not None else frame.size
        return Size(shape)

    def lower(self, z: Tensor) -> Tensor:
        """Drop the batch dims of a vector that is one for all plates.

        Args:
            z: Vectors, shape ``(*sample, *batch, dim)`` with ``nesting`` batch dims of size 1.
        """
        return z.reshape(*z.shape[: z.dim() - 1 - self.nesting], z.shape[-1])

    def lift(self, given: Tensor | None) -> Tensor | None:
        """Give what ``lower`` of another packing returned this one's number of batch dims.

        Args:
            given: Vectors, shape ``(*sample, dim)``, or None.
        """
        if given is None:
            return None
        return given.reshape(*given.shape[:-1], *(1,) * self.nesting, given.shape[-1])

    def _inner(self, site: Latent) -> tuple[Frame, ...]:
        return tuple(f for f in site.frames if self.plate is None or f.name != self.plate.name)

    def _size(self, site: Latent) -> int:
        inner = math.prod(frame.size for frame in self._inner(site))
        return inner * math.prod(site.unconstrained_shape)

    def _arrange_site(self, site: Latent, part: Tensor) -> Tensor:
        inner, event = self._inner(site), site.unconstrained_shape
        batch = (1,) * (site.nesting - part.dim() + 1) + part.shape[:-1]
        shape = list(batch)
        axis_of = {len(batch) + frame.dim: axis for axis, frame in enumerate(inner)}
        for position, axis in axis_of.items():
            shape[position] = inner[axis].size
        if all(size == 1 for size in batch[min(axis_of, default=len(batch)) :]):
            return part.reshape((*shape, *event))
        part = part.reshape((*batch, *(frame.size for frame in inner), *event))
        # Each inner axis goes beside the batch dim of size 1 whose place it takes.
        order = []
        for position in range(len(batch)):
            order.append(position)
            if position in axis_of:
                order.append(len(batch) + axis_of[position])
        order += range(len(batch) + len(inner), part.dim())
        return part.permute(order).reshape((*shape, *event))

    def _pack_site(self, site: Latent, value: Tensor) -> tuple[Tensor, Tensor]:
        inner = self._inner(site)
        event_dim = len(site.event_shape)
        sample = value.shape[: value.dim() - site.nesting - event_dim]
        batch = (1,) * (self.nesting - site.nesting) + value.shape[
            len(sample) : value.dim() - event_dim
        ]
        unconstrained = site.transform.inv(value.reshape((*sample, *batch, *site.event_shape)))
        _, log_det = self._constrain(site, unconstrained)
        first = len(sample) + self.nesting
        axes = [first + frame.dim for frame in inner]
        event = site.unconstrained_shape
        order = [*(i for i in range(first) if i not in axes), *axes]
        order += range(first, first + len(event))
        shape = [1 if i in axes else n for i, n in enumerate(unconstrained.shape[:first])]
        part = unconstrained.permute(order).reshape((*shape, -1))
        return part, log_det.sum(axes, keepdim=True) if axes else log_det

    def _constrain(self, site: Latent, unconstrained: Tensor) -> tuple[Tensor, Tensor]:
        batch_dim = unconstrained.dim() - len(site.unconstrained_shape)
        if site.unbounded:
            return unconstrained, unconstrained.new_zeros(()).expand(
                unconstrained.shape[:batch_dim]
            )
        transform = site.transform
        value = transform(unconstrained)
        log_det = transform.log_abs_det_jacobian(unconstrained, value)
        if log_det.dim() > batch_dim:
            log_det = log_det.reshape((*log_det.shape[:batch_dim], -1)).sum(-1)
        return value, log_det
