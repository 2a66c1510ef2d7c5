"""The door of ``fit`` to automatic fits: what they take, and what they refuse."""

from collections.abc import Callable
from typing import Any, Literal

import torch

from pyro_ext.families import Diagonal, Family, FullCovariance
from pyro_ext.training.auto.run import AutoRun
from pyro_ext.training.auto.search import FAMILIES, fit_auto

__all__ = ["fit_without_settings"]


def fit_without_settings(
    model: Callable[..., Any],
    data: Any,
    family: Family | Literal["auto"] | None,
    options: dict[str, Any],
    *,
    seed: int | None,
    progress: bool,
) -> AutoRun:
    """Fit without settings.

    Args:
        model: A Pyro model.
        data: Its argument, or a tuple of its arguments.
        family: The family, or ``"auto"``.
        options: Options of ``fit`` that leave nothing to find, which must all be None.
        seed: Seed.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If an option is given, or the family is none that it can climb.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"fit: expected no {given[0]} with optim='auto', which finds it; got one. Write: "
            "px.fit(model, data=data, optim='auto'), or leave out optim='auto'."
        )
    if not (family in (None, "auto") or isinstance(family, (Diagonal, FullCovariance))):
        raise ValueError(
            f"fit: expected family='auto', px.Diagonal() or px.FullCovariance() with "
            f"optim='auto'; got {family!r}. Write: family='auto'."
        )
    families = (family,) if isinstance(family, Family) else FAMILIES
    args = () if data is None else tuple(data) if isinstance(data, (tuple, list)) else (data,)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    return fit_auto(model, args, families, seed=seed, progress=progress)
