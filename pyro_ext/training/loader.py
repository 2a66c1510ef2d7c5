"""Batches that a torch ``DataLoader`` deals out, in its own order."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from pyro_ext.minibatch import MiniBatch, has_rows
from pyro_ext.training.batches import Batches, Step, check_plate, dealt, plates_of
from pyro_ext.training.compiled.walk import in_sight
from pyro_ext.training.ranks import Ranks
from pyro_ext.training.snapshot import digest

__all__ = ["LoaderBatches", "loader_in", "told_of"]


def loader_in(args: tuple[Any, ...]) -> DataLoader[Any] | None:
    """Return the loader that was given for data, if that is what was given.

    Args:
        args: What was given.
    """
    return args[0] if len(args) == 1 and isinstance(args[0], DataLoader) else None


def told_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return what is known of a loader's batches without going through them, for checkpoints.

    Args:
        loader: The loader.
    """
    data = loader.dataset
    return {
        "number of rows": _num_rows(loader),
        "batch_size of the loader": loader.batch_size,
        "data of the loader": digest(data.tensors) if isinstance(data, TensorDataset) else "",
    }


class LoaderBatches(Batches):
    """The batches of a loader: a tensor, a tuple of arguments, or a map of keyword arguments.

    They go to the device of the parameters. Where the model has a plate with one element per row
    of the batch, it is scaled by N/B, with N the length of the loader's data, or of the part of
    them that its ``SubsetRandomSampler`` draws.

    Args:
        model: The model.
        guide: Its guide.
        loader: The loader.
        plate: Name of the data plate, or None to find it.
        ranks: The processes.

    Attributes:
        first: A step like those to come.
        num_data: Number N of rows, 1 if the loader does not tell.

    Raises:
        ValueError: If the data plate, or its size, cannot be told, or each of several processes
            would get the same rows.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        loader: DataLoader[Any],
        plate: str | None,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self._loader, self._ranks, self._epochs = loader, ranks, 0
        if ranks.size > 1 and isinstance(loader.sampler, RandomSampler | SequentialSampler):
            raise ValueError(
                f"fit: expected a loader that gives each of the {ranks.size} processes rows of "
                "its own; got one that gives all of them the same. Write: DataLoader(data, "
                "sampler=torch.utils.data.DistributedSampler(data))."
            )
        params = (p for module in in_sight(model, guide) for p in module.parameters())
        self._device = next((param.device for param in params), torch.device("cpu"))
        self._minibatch: Callable[..., MiniBatch] | None = None
        self.num_data = _num_rows(loader)
        first = self._step_of(dealt(iter(loader)))
        name = _rows_plate(model, first, plate)
        if name is not None:
            if self.num_data == 1:
                raise ValueError(
                    f"fit: expected a loader that knows how many rows there are, to scale plate "
                    f"'{name}'; got one that does not tell. Write: pyro.plate('{name}', size, "
                    "subsample=rows) in the model, with the rows that the loader gives."
                )
            self._minibatch = partial(MiniBatch, name, self.num_data, sliced=True)
        self.first = replace(first, minibatch=self._minibatch)

    def _begin(self) -> Iterator[Step]:
        set_epoch = getattr(self._loader.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self._epochs)
        self._epochs += 1
        return map(self._step_of, self._loader)

    def _step_of(self, batch: Any) -> Step:
        share = 1 / self._ranks.size
        if isinstance(batch, Mapping):
            kwargs = {name: self._placed(value) for name, value in batch.items()}
            return Step((), None, self._minibatch, share, kwargs)
        parts = batch if isinstance(batch, tuple | list) else (batch,)
        return Step(tuple(map(self._placed, parts)), None, self._minibatch, share)

    def _placed(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value

    def _random_state(self) -> dict[str, Tensor]:
        own = self._loader.generator
        state = {"torch": torch.get_rng_state(), "epochs": torch.tensor(self._epochs)}
        return state if own is None else state | {"loader": own.get_state()}

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["torch"])
        self._epochs = int(state["epochs"])
        if self._loader.generator is not None:
            self._loader.generator.set_state(state["loader"])


def _num_rows(loader: DataLoader[Any]) -> int:
    """Return the number of rows that a loader draws from, 1 if it does not tell."""
    drawn = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    sampler = getattr(drawn, "sampler", drawn)
    if isinstance(sampler, SubsetRandomSampler):
        return len(sampler.indices)
    if loader.batch_sampler is None and not isinstance(drawn, BatchSampler):
        return 1  # the data are batches, as many as there are
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        return 1


def _rows_plate(model: Callable[..., Any], step: Step, plate: str | None) -> str | None:
    """Return the plate with one element per row of the batch; None if the model subsamples."""
    frames = plates_of(model, *step.args, **step.kwargs)
    check_plate(plate, list(frames))
    given = (*step.args, *step.kwargs.values())
    whole = [f for f in frames.values() if f.full_size is None or f.full_size == f.size]
    fitting = [f.name for f in whole if any(has_rows(value, f.size) for value in given)]
    if len(fitting) > 1 and plate not in fitting:
        raise ValueError(
            f"fit: expected one plate with as many elements as the batch has rows; got {fitting}. "
            f"Write: px.fit(..., plate='{fitting[0]}')."
        )
    return plate if plate in fitting else next(iter(fitting), None)
