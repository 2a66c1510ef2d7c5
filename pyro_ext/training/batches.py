"""Where the rows of each step come from, in an order that can be taken up again."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._run import traces
from pyro_ext.minibatch import MiniBatch, has_rows, rows_of
from pyro_ext.structure import plate_frames, sample_sites
from pyro_ext.training.ranks import Ranks

__all__ = [
    "Batches",
    "FullBatch",
    "RowBatches",
    "Step",
    "arguments",
    "batches_of",
    "check_call",
    "check_plate",
    "dealt",
    "plates_of",
    "told_rows",
]

Dealt = TypeVar("Dealt")


def arguments(data: Any) -> tuple[Any, ...]:
    """Return the model's arguments: none, one, or those of a tuple.

    Args:
        data: What a user gave for data.
    """
    return () if data is None else tuple(data) if isinstance(data, (tuple, list)) else (data,)


def check_call(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: TypeError
) -> None:
    """Raise if a model failed because it cannot be called with so many arguments.

    Args:
        model: The model.
        args: Its arguments.
        kwargs: Its keyword arguments.
        error: How it failed.

    Raises:
        TypeError: If it does.
    """
    called = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        signature = inspect.signature(called)
        signature.bind(*args, **kwargs)
    except TypeError as misfit:
        name = getattr(model, "__name__", type(model).__name__)
        raise TypeError(
            f"fit: expected data that {name}{signature} can be called with; got {len(args)} "
            f"arguments: {misfit}. Write: data=x for one argument, data=(x, y) for two, "
            "data=torch.tensor(numbers) for a list of numbers."
        ) from error
    except ValueError:
        return  # nobody knows what it can be called with


@dataclass(frozen=True)
class Step:
    """The arguments of one step, and the rows that they are.

    Args:
        args: Arguments of model and guide.
        rows: Rows of the mini-batch, or None.
        minibatch: From rows to the handler that makes model and guide see them, or None.
        share: Share of these rows in the batch of all processes.
        kwargs: Keyword arguments of model and guide.
    """

    args: tuple[Any, ...]
    rows: Tensor | None = None
    minibatch: Callable[..., MiniBatch] | None = None
    share: float = 1.0
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> AbstractContextManager[Any]:
        """What model and guide run in."""
        return nullcontext() if self.minibatch is None else self.minibatch(self.rows)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What changes from step to step: the rows, if they are known, and the arguments."""
        return self.args if self.rows is None else (self.rows, *self.args)

    def entered(
        self, inputs: tuple[Any, ...]
    ) -> tuple[AbstractContextManager[Any], tuple[Any, ...]]:
        """Return context and arguments of another step like this one.

        Args:
            inputs: Its inputs.
        """
        rows, args = (None, inputs) if self.rows is None else (inputs[0], inputs[1:])
        return replace(self, rows=rows).context, args


class Batches(ABC):
    """Steps without end, epoch by epoch."""

    def __init__(self) -> None:
        self._epoch: Iterator[Step] | None = None
        self._began: dict[str, Tensor] = {}
        self._taken = 0

    def __next__(self) -> Step:
        """Return the next step."""
        step = None if self._epoch is None else next(self._epoch, None)
        if step is None:
            self._began, self._taken = self._random_state(), 0
            self._epoch = self._begin()
            step = dealt(self._epoch)
        self._taken += 1
        return step

    @abstractmethod
    def _begin(self) -> Iterator[Step]:
        """Draw the order of an epoch, and yield its steps."""

    @abstractmethod
    def _random_state(self) -> dict[str, Tensor]:
        """Return the states that the order of the next epoch is drawn from."""

    @abstractmethod
    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        """Set these states."""

    def state(self) -> dict[str, Any]:
        """Return where in which epoch the next step is."""
        return {"began": self._began, "taken": self._taken, "now": self._random_state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go to where a state was taken.

        Args:
            state: What ``state`` returned.
        """
        self._began, self._taken, self._epoch = state["began"], state["taken"], None
        if self._began:
            self._set_random_state(self._began)
            self._epoch = self._begin()
            for _ in range(self._taken):
                dealt(self._epoch)
        self._set_random_state(state["now"])


def dealt(epoch: Iterator[Dealt]) -> Dealt:
    """Return the next of an epoch.

    Args:
        epoch: The epoch.

    Raises:
        ValueError: If there is none, as in a loader whose data can be gone through once.
    """
    found = next(epoch, None)
    if found is None:
        raise ValueError(
            "fit: expected a DataLoader that has batches in each epoch, as many as in the one "
            "before; got an epoch that ended early. Write: an IterableDataset whose __iter__ "
            "begins anew, or drop_last=False where there are fewer rows than batch_size."
        )
    return found


class FullBatch(Batches):
    """The same arguments at every step.

    Args:
        step: The step.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step

    def __next__(self) -> Step:
        """Return the step."""
        return self._step

    def _begin(self) -> Iterator[Step]:
        return iter((self._step,))

    def _random_state(self) -> dict[str, Tensor]:
        return {}

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        return


class RowBatches(Batches):
    """Shuffled mini-batches, whose order has a random generator of its own.

    Several processes have the same order, and take a part of each batch.

    Args:
        model: The model.
        data: Its arguments, with all rows.
        batch_size: Number of rows of a mini-batch, of all processes together; None for all rows.
        plate: Name of the data plate, or None to find it.
        seed: Seed of the order.
        ranks: The processes.

    Raises:
        ValueError: If the data plate cannot be told, or the batch size does not fit it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        data: tuple[Any, ...],
        batch_size: int | None,
        plate: str | None,
        seed: int,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        name, size, subsample_size, self._device = _data_plate(model, data, plate)
        batch_size = size if batch_size is None else batch_size
        self._sliced, self._ranks = subsample_size == size, ranks
        if ranks.size > 1 and not self._sliced:
            raise ValueError(
                f"fit: expected a model written for the rows that it is called with, of which "
                f"each process has its own; got plate '{name}' with a subsample_size of its own. "
                f"Write: pyro.plate('{name}', len(x))."
            )
        if not 1 <= batch_size <= size or not (self._sliced or subsample_size == batch_size):
            whole = self._sliced
            expected = f"between 1 and {size}" if whole else f"{subsample_size}, the model's own"
            raise ValueError(
                f"fit: expected batch_size {expected} for plate '{name}'; got {batch_size}. "
                f"Write: px.fit(..., batch_size={min(size, 100) if whole else subsample_size})."
            )
        self._data, self._size, self._batch_size = data, size, batch_size
        self._minibatch = partial(MiniBatch, name, size, sliced=self._sliced)
        self._generator = torch.Generator(device="cpu").manual_seed(seed)

    def _begin(self) -> Iterator[Step]:
        order = torch.randperm(self._size, generator=self._generator, device="cpu")
        parts = order.to(self._device).split(self._batch_size)
        if not self._sliced:
            parts = tuple(rows for rows in parts if len(rows) == self._batch_size)
        return map(self.step_of, parts)

    def step_of(self, rows: Tensor) -> Step:
        """Return the step of this process for the rows of all.

        Args:
            rows: The rows.
        """
        mine = rows.tensor_split(self._ranks.size)[self._ranks.rank]
        share = len(mine) / len(rows)
        mine = rows[:1] if share == 0 else mine  # there are fewer rows than processes
        args = rows_of(self._data, mine, self._size) if self._sliced else self._data
        return Step(args, mine, self._minibatch, share)

    @property
    def every_row(self) -> Tensor:
        """All rows in order."""
        return torch.arange(self._size, device=self._device)

    def _random_state(self) -> dict[str, Tensor]:
        return {"order": self._generator.get_state()}

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["order"])


def batches_of(
    model: Callable[..., Any],
    data: tuple[Any, ...],
    batch_size: int | None,
    plate: str | None,
    seed: int,
    ranks: Ranks,
) -> Batches:
    """Return the full batch, or shuffled mini-batches.

    Args:
        model: The model.
        data: Its arguments, with all rows.
        batch_size: Number of rows of a mini-batch; None for the full batch.
        plate: Name of the data plate, or None to find it.
        seed: Seed of the order.
        ranks: The processes.

    Raises:
        ValueError: If the data plate cannot be told, or the batch size does not fit it.
    """
    if batch_size is not None:
        return RowBatches(model, data, batch_size, plate, seed, ranks)
    if ranks.size > 1 and _fitting(plates_of(model, *data), data):
        rows = RowBatches(model, data, None, plate, seed, ranks)
        return FullBatch(rows.step_of(rows.every_row))
    return FullBatch(Step(data, share=1 / ranks.size))


def told_rows(pair: Pair, plate: str | None) -> int | None:
    """Return the number of rows of the data plate, or None if it cannot be told.

    Args:
        pair: Model, guide and the model's arguments, with all rows.
        plate: Name of the data plate, or None to find it.

    Raises:
        ValueError: If the model has no plate of this name.
    """
    with torch.no_grad(), poutine.block(), torch.random.fork_rng(devices=()):
        trace, _ = traces(pair)
    frames = _frames(trace)
    check_plate(plate, list(frames))
    sizes = _fitting(frames, pair.args)
    if plate in sizes:
        return sizes[plate]
    return next(iter(sizes.values())) if len(sizes) == 1 else None


def check_plate(plate: str | None, plates: Sequence[str]) -> None:
    """Raise if a data plate is named that the model does not have.

    Args:
        plate: Its name, or None.
        plates: Names of the model's plates.

    Raises:
        ValueError: If it has none of this name.
    """
    if plate is not None and plate not in plates:
        raise ValueError(
            f"fit: expected plate to be one of the model's, {sorted(plates)}; got {plate!r}. "
            "Write: the name of one of them, or leave it out."
        )


def plates_of(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Run a model, and return its plates by name.

    Args:
        model: The model.
        *args: Its arguments.
        **kwargs: Its keyword arguments.
    """
    with torch.no_grad(), poutine.block():
        return _frames(poutine.trace(model).get_trace(*args, **kwargs))


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
    frames = plates_of(model, *data)
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
