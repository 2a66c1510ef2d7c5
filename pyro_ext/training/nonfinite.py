"""A loss that is not finite: which step, which site, which rows."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_ext._terms import site_log_prob
from pyro_ext.structure import sample_sites
from pyro_ext.weights import log_weights

__all__ = ["explain_nonfinite", "nonfinite_rows"]

_SHOWN = 10


def explain_nonfinite(
    step: int,
    loss: float,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    rows: Tensor | None,
    params: Iterable[Tensor],
) -> ValueError:
    """Return an error that says where a non-finite loss comes from.

    Args:
        step: Number of the step.
        loss: Its loss.
        model: The model.
        guide: Its guide.
        args: Arguments of that step.
        rows: Rows of the mini-batch, or None.
        params: All parameters.
    """
    start = f"fit: expected a finite loss; got {loss} at step {step}."
    end = "The step was not applied: the parameters are those of the step before."
    for param in params:
        if not torch.isfinite(param).all():
            return ValueError(
                f"{start} A parameter of shape {tuple(param.shape)} is not finite already: a "
                f"gradient was not. Lower the learning rate, or clip gradients. {end}"
            )
    try:
        with torch.no_grad(), pyro.validation_enabled(is_validate=True):
            pair = log_weights(model, guide, *args, joint=True)
    except ValueError as error:
        where = nonfinite_rows(args, rows)
        return ValueError(f"{start} Run again with validation: {error} {where}{end}")
    for side, trace in (("guide", pair.guide_trace), ("model", pair.model_trace)):
        for name, site in sample_sites(trace):
            log_prob = site_log_prob(site)
            if torch.isfinite(log_prob).all():
                continue
            return ValueError(
                f"{start} Site '{name}' of the {side} has log_prob {log_prob.flatten()[0].item()} "
                f"under {site['fn']}. {nonfinite_rows(args, rows)}{end}"
            )
    return ValueError(
        f"{start} A second draw on the same batch is finite: rare draws overflow. Lower the "
        f"learning rate or init_scale. {nonfinite_rows(args, rows)}{end}"
    )


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
