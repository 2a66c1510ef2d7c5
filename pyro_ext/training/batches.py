"""Where the rows of each step come from."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._run import traces
from pyro_ext.minibatch import MiniBatch, has_rows, rows_of
from pyro_ext.structure import plate_frames, sample_sites

__all__ = ["Step", "count_rows", "steps"]


@dataclass(frozen=True)
class Step:
    """The arguments of one step, and the context that model and guide run in."""

    args: tuple[Any, ...]
    rows: Tensor | None
    context: AbstractContextManager[Any]


def steps(
    model: Callable[..., Any],
    data: tuple[Any, ...],
    batch_size: int | None,
    plate: str | None,
) -> Iterator[Step]:
    """Yield steps without end: the full batch, or shuffled mini-batches epoch by epoch.

    Args:
        model: The model.
        data: Its arguments, with all rows.
        batch_size: Number of rows of a mini-batch; None for the full batch.
        plate: Name of the data plate, or None to find it.

    Raises:
        ValueError: If the data plate cannot be told, or the batch size does not fit it.
    """
    if batch_size is None:
        while True:
            yield Step(data, None, nullcontext())
    name, size, subsample_size, device = _data_plate(model, data, plate)
    sliced = subsample_size == size
    if not 1 <= batch_size <= size or not (sliced or subsample_size == batch_size):
        expected = f"between 1 and {size}" if sliced else f"{subsample_size}, the model's own"
        raise ValueError(
            f"fit: expected batch_size {expected} for plate '{name}'; got {batch_size}. "
            f"Write: px.fit(..., batch_size={min(size, 100) if sliced else subsample_size})."
        )
    while True:
        order = torch.randperm(size, device=device)
        for rows in order.split(batch_size):
            if not sliced and len(rows) < batch_size:
                continue
            args = rows_of(data, rows, size) if sliced else data
            yield Step(args, rows, MiniBatch(name, size, rows, sliced=sliced))


def count_rows(pair: Pair, plate: str | None) -> int:
    """Return the number of rows of the data plate, or 1 if it cannot be told.

    Args:
        pair: Model, guide and the model's arguments, with all rows.
        plate: Name of the data plate, or None to find it.
    """
    with torch.no_grad(), poutine.block(), torch.random.fork_rng(devices=()):
        trace, _ = traces(pair)
    sizes = _fitting(_frames(trace), pair.args)
    if plate in sizes:
        return sizes[plate]
    return next(iter(sizes.values())) if len(sizes) == 1 else 1


def _frames(trace: Trace) -> dict[str, Any]:
    return {f.name: f for _, site in sample_sites(trace) for f in plate_frames(site)}


def _fitting(frames: dict[str, Any], data: tuple[Any, ...]) -> dict[str, int]:
    """Return the full size of each plate that has one element per row of a tensor."""
    sizes = {name: frame.full_size or frame.size for name, frame in frames.items()}
    return {
        name: size for name, size in sizes.items() if any(has_rows(value, size) for value in data)
    }


def _data_plate(
    model: Callable[..., Any], data: tuple[Any, ...], plate: str | None
) -> tuple[str, int, int, torch.device]:
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(*data)
    frames = _frames(trace)
    fitting = list(_fitting(frames, data))
    if plate is None and len(fitting) == 1:
        plate = fitting[0]
    if plate is None or plate not in fitting:
        sizes = {name: frame.full_size or frame.size for name, frame in frames.items()}
        raise ValueError(
            "fit: expected a data plate with one element per row of the data; got "
            f"plate={plate!r}, and of the plates {sizes} those that fit a tensor of the data are "
            f"{fitting}. Write: px.fit(..., plate='data') with one of them, or no batch_size."
        )
    frame = frames[plate]
    size = frame.full_size or frame.size
    device = next(value.device for value in data if has_rows(value, size))
    return plate, size, frame.size, device
