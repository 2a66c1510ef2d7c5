"""A table with one row per datapoint."""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from pyro_ext.autoguide.plates import Batch

__all__ = ["read_rows"]


def read_rows(
    table: Tensor, batch: Batch, *, sparse: bool, plate: str | None, owner: str
) -> Tensor:
    """Return the rows of a table that a call is about.

    Args:
        table: One row per datapoint, shape ``(N, columns)``.
        batch: The rows of the call.
        sparse: Whether the gradient of the table holds these rows alone.
        plate: Name of the data plate, for the message.
        owner: Class name of the guide, for the message.

    Raises:
        ValueError: If the plate has another size than the table.
    """
    if batch.full_size != len(table):
        raise ValueError(
            f"{owner}: expected plate '{plate}' to have the {len(table)} "
            f"datapoints that this guide holds parameters for; got {batch.full_size}. Write: "
            f"pyro.plate('{plate}', {len(table)}, subsample=rows) in the model for mini-batches; "
            "for other data a new guide, or px.AutoAmortized(model, encoder)."
        )
    if batch.rows is None and batch.size < len(table):
        raise ValueError(
            f"{owner}: expected to know which of the {len(table)} rows of plate '{plate}' a batch "
            "has, as each has parameters of its own; got a DataLoader, which does not tell. "
            "Write: px.fit(model, guide, loss, x, batch_size=...), or px.AutoAmortized(model, "
            "encoder)."
        )
    if sparse:
        rows = torch.arange(len(table), device=table.device) if batch.rows is None else batch.rows
        return embedding(rows.to(table.device), table, sparse=True)
    return table if batch.rows is None else table.index_select(0, batch.rows.to(table.device))
