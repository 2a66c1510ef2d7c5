"""What the model says about its data plate in this very call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext.autoguide.packing import Frame
from pyro_ext.minibatch import current_minibatch
from pyro_ext.structure import is_subsampled

__all__ = ["Batch", "batch_of", "find_batch"]


@dataclass(frozen=True)
class Batch:
    """The rows of the data plate that this call is about.

    Args:
        size: Number B of elements of the plate in this call.
        full_size: Number N of elements of the whole plate.
        rows: Which of the N they are, shape ``(B,)``, or None if they are all of them in order.
        full_data: Whether the model's arguments hold all N rows and ``rows`` are to be cut from
            them (None: not known).
        plate: The guide's own plate over these rows.
    """

    size: int
    full_size: int
    rows: Tensor | None
    full_data: bool | None
    plate: pyro.plate


class _PlateFound(BaseException):
    """Ends the model's run; not an Exception, so that no ``except`` in a model can catch it."""

    def __init__(self, size: int, shown: int, device: Any, subsample: Tensor | None) -> None:
        self.size, self.shown, self.device, self.subsample = size, shown, device, subsample


class _FindPlate(Messenger):
    """Runs a model up to the named plate, with prototype values for the latents on the way.

    No handler outside sees this run.
    """

    def __init__(self, name: str, values: dict[str, Tensor], owner: str) -> None:
        super().__init__()
        self.name, self.values, self.owner = name, values, owner

    def _process_message(self, msg: Any) -> None:
        msg["stop"] = True
        if msg["type"] == "sample":
            self._look_at(msg)

    def _look_at(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["name"] == self.name:
                fn = msg["fn"]
                raise _PlateFound(fn.size, fn.subsample_size or fn.size, fn.device, msg["value"])
            return
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.name:
                self._found_by_site(frame)
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _found_by_site(self, frame: Any) -> None:
        """Stop at a site in the plate, whose own site ``poutine.block`` has hidden."""
        if is_subsampled(frame):
            raise ValueError(
                f"{self.owner}: expected to see which elements plate '{self.name}' shows; got a "
                "model whose poutine.block hides them. Write: poutine.block(model, hide=[...]) "
                f"with the sites to leave out, or add '{self.name}' to expose=[...]."
            )
        raise _PlateFound(frame.size, frame.size, None, None)


def batch_of(plate: pyro.plate, *, draw: bool, owner: str) -> Batch:
    """Return the rows of a data plate that ``create_plates`` made.

    Args:
        plate: The data plate.
        draw: Whether its subsample counts; otherwise all rows are meant.
        owner: Class name of the guide, for messages.
    """
    active = current_minibatch(plate.name)
    if active is not None:
        if active.indices is not None and plate.subsample_size != len(active.indices):
            raise ValueError(
                f"{owner}: expected plate '{plate.name}' of create_plates to have "
                f"{len(active.indices)} elements, the rows of the mini-batch; got "
                f"{plate.subsample_size}. Write: "
                f"create_plates=lambda x: pyro.plate('{plate.name}', len(x), dim={plate.dim}), "
                "for an AutoGuideList too."
            )
        return Batch(
            plate.subsample_size, active.size, active.indices, full_data=False, plate=plate
        )
    if not draw:
        return Batch(plate.size, plate.size, None, full_data=None, plate=plate)
    rows = plate.indices
    whole = torch.equal(rows, torch.arange(plate.size, device=rows.device))
    return Batch(len(rows), plate.size, None if whole else rows, full_data=None, plate=plate)


def find_batch(
    model: Callable[..., Any],
    frame: Frame,
    values: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    draw: bool,
    owner: str,
) -> Batch:
    """Run the model up to its data plate and make the guide's plate over the same rows.

    Args:
        model: The model.
        frame: The data plate, as it was when the guide was set up.
        values: Prototype values of latents, so that none is drawn on the way.
        args: The model's arguments.
        kwargs: The model's keyword arguments.
        draw: Whether a random subsample is drawn; otherwise all rows are meant.
        owner: Class name of the guide, for messages.

    Raises:
        RuntimeError: If the model does not enter the plate.
    """
    try:
        with torch.no_grad(), _FindPlate(frame.name, values, owner):
            model(*args, **kwargs)
    except _PlateFound as plate_found:
        # Without its frames, which would keep all that a step holds until the next collection.
        found = plate_found.with_traceback(None)
    else:
        raise RuntimeError(
            f"{owner}: expected the model to enter plate '{frame.name}' as it did when the guide "
            f"was set up; got a model that does not. Write: {owner}(model, ...), a new guide for "
            "this structure."
        )
    size, device = found.size, found.device
    active = current_minibatch(frame.name)
    if active is not None:
        active.rows_in(size, site=frame.name)
        plate = pyro.plate(frame.name, size, dim=frame.dim, device=device)
        return Batch(size, active.size, active.indices, full_data=False, plate=plate)
    if found.subsample is not None:
        given = torch.as_tensor(found.subsample, device=device)
        plate = pyro.plate(frame.name, size, subsample=given, dim=frame.dim)
        return Batch(len(given), size, given, full_data=None, plate=plate)
    number = found.shown if draw else size
    plate = pyro.plate(frame.name, size, subsample_size=number, dim=frame.dim, device=device)
    drawn = plate.indices if number < size else None
    return Batch(number, size, drawn, full_data=drawn is not None, plate=plate)
