"""Which rows of the data are not finite."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["nonfinite_rows"]

_SHOWN = 10


def nonfinite_rows(args: tuple[Any, ...], rows: Tensor | None) -> str:
    """Say which rows of the data are not finite; an empty text if all are finite.

    Args:
        args: Arguments of the model.
        rows: Rows of the mini-batch, or None.
    """
    for position, value in enumerate(args):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() == 0:
            continue
        bad = (
            ~torch.isfinite(value.flatten(1)).all(1) if value.dim() > 1 else ~torch.isfinite(value)
        )
        if bad.any():
            where = bad.nonzero().flatten()
            if rows is not None and len(rows) == len(value):
                where = rows[where]
            more = " ..." if len(where) > _SHOWN else ""
            return (
                f"Argument {position} of the model is not finite in rows "
                f"{where[:_SHOWN].tolist()}{more}: drop or mask them. "
            )
    return ""
