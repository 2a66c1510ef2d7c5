"""Mini-batches whose rows the trainer owns, so that model and guide always see the same ones."""

from contextvars import ContextVar, Token
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["MiniBatch", "current_minibatch", "has_rows", "rows_of"]

_ACTIVE: ContextVar["MiniBatch | None"] = ContextVar("pyro_ext_minibatch", default=None)


def current_minibatch(plate: str) -> "MiniBatch | None":
    """Return the active mini-batch of the plate whose data arrive as rows, if there is one."""
    active = _ACTIVE.get()
    return active if active is not None and active.plate == plate and active.sliced else None


class MiniBatch(Messenger):
    r"""Handler that makes model and guide see the given rows of a data plate.

    With ``sliced=True`` model and guide are called with the rows of the batch and write
    ``pyro.plate("data", len(x))``: every site in the plate is scaled by N/B. With ``sliced=False``
    they are called with all N rows, and the plate's own ``subsample_size`` draw is replaced.

    Args:
        plate: Name of the data plate.
        size: Number N of rows of the whole data set.
        indices: Rows of the batch, shape ``(B,)``; None where they are not known, and model and
            guide have no need to.
        sliced: Whether the data that model and guide get are the rows of the batch alone.

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> with MiniBatch("data", 100, torch.tensor([3, 7]), sliced=True):
        ...     trace = pyro.poutine.trace(model).get_trace(torch.zeros(2))
        >>> trace.nodes["x"]["scale"]
        50.0
    """

    def __init__(self, plate: str, size: int, indices: Tensor | None, *, sliced: bool) -> None:
        super().__init__()
        self.plate, self.size, self.indices, self.sliced = plate, size, indices, sliced
        self._token: Token[MiniBatch | None] | None = None

    def __enter__(self) -> "MiniBatch":
        """Activate the batch."""
        self._token = _ACTIVE.set(self)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        """Deactivate the batch."""
        if self._token is not None:
            _ACTIVE.reset(self._token)
        super().__exit__(*exc)

    def rows_in(self, size: int, *, site: str) -> int:
        """Return the number of rows of the batch, which a plate over it has to have.

        Args:
            size: Number of elements of the plate.
            site: Where the plate was met, for messages.

        Raises:
            ValueError: If the plate has another size.
        """
        rows = size if self.indices is None else len(self.indices)
        if size != rows:
            raise ValueError(
                f"site '{site}': expected plate '{self.plate}' to have the {rows} rows of the "
                f"mini-batch; got {size}. Write: pyro.plate('{self.plate}', len(x)) with the x "
                "that the model is called with, or give the plate a subsample_size."
            )
        return rows

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if not self.sliced and msg["name"] == self.plate and msg["value"] is None:
                msg["value"] = self.indices
            return
        if not self.sliced:
            return
        for position, frame in enumerate(msg["cond_indep_stack"]):
            if frame.name != self.plate:
                continue
            rows = self.rows_in(frame.size, site=msg["name"])
            stack = list(msg["cond_indep_stack"])
            stack[position] = frame._replace(full_size=self.size)
            msg["cond_indep_stack"] = tuple(stack)
            msg["scale"] = msg["scale"] * (self.size / rows)


def rows_of(data: tuple[Any, ...], indices: Tensor, size: int) -> tuple[Any, ...]:
    """Return ``data`` with every tensor that has ``size`` rows cut to the given ones."""
    return tuple(
        value.index_select(0, indices.to(value.device)) if has_rows(value, size) else value
        for value in data
    )


def has_rows(value: Any, size: int) -> bool:
    """Tell whether ``value`` is a tensor with one row per element of a plate of that size."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size
