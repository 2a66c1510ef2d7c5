"""Where the rows of each step come from."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_ext.minibatch import MiniBatch, has_rows, rows_of
from pyro_ext.structure import plate_frames, sample_sites

__all__ = ["Step", "steps"]


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


def _data_plate(
    model: Callable[..., Any], data: tuple[Any, ...], plate: str | None
) -> tuple[str, int, int, torch.device]:
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(*data)
    frames = {f.name: f for _, site in sample_sites(trace) for f in plate_frames(site)}
    fitting = [
        name
        for name, frame in frames.items()
        if any(has_rows(value, frame.full_size or frame.size) for value in data)
    ]
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
