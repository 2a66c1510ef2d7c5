"""The one place that knows which ArviZ there is, and how it writes what we need.

On Python >= 3.12 that is ``arviz`` 1.x, a thin cover over ``arviz-base`` and ``arviz-stats``; on
Python 3.11 these two are installed by themselves, in version 0.8. Their calls are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_ext.diagnostics._types import Array, DataTree

__all__ = ["build_tree", "effective_sizes", "tree_dim", "tree_name"]

_RESERVED = ("chain", "draw")


def build_tree(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> DataTree:
    """Return a tree of groups; see ``tree_name`` for what sites are called there.

    Args:
        groups: Group → variable → array, ``(chain, draw, *site)``, or ``(*site)`` of data groups.
        dims: Variable → names of its dims after chain and draw.
        coords: Dim → values.
        attrs: Attributes of the root.
    """
    from arviz_base import from_dict

    filled = {
        group: {tree_name(name): values for name, values in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    return from_dict(
        filled,
        dims={tree_name(name): [tree_dim(dim) for dim in names] for name, names in dims.items()},
        coords={tree_dim(dim): values for dim, values in coords.items()},
        attrs={"/": {key: _storable(v) for key, v in attrs.items() if v is not None}},
    )


def tree_name(site: str) -> str:
    """Return what a site is called in a tree.

    A ``/``, as ``pyro.contrib.autoname.scope`` writes and a tree has for its groups, is a ``::``
    there; a site with the name of a dim that every tree has, ``draw``, is ``draw_site``.

    Args:
        site: Its name in the model.
    """
    return f"{site}_site" if site in _RESERVED else site.replace("/", "::")


def tree_dim(plate: str) -> str:
    """Return what the dim of a plate is called in a tree, such as ``draw_plate``.

    Args:
        plate: Its name in the model.
    """
    return f"{plate}_plate" if plate in _RESERVED else plate.replace("/", "::")


def _storable(value: Any) -> Any:
    """Return what NetCDF can hold: numbers and strings, no booleans and no objects."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, int | float | np.number):
        return value
    return str(value)


def effective_sizes(draws: Array) -> Array:
    """Return how many independent draws the mean of a Markov chain is worth.

    Args:
        draws: Shape ``(chain, draw, *site)``.

    Returns:
        Shape ``site``; the number of draws where there are too few to tell.
    """
    from arviz_stats.base.array import array_stats

    count = draws.shape[0] * draws.shape[1]
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], float(count))
    with np.errstate(all="ignore"):
        sizes = array_stats.ess(draws.astype(float), chain_axis=0, draw_axis=1, method="mean")
    return np.asarray(np.nan_to_num(np.asarray(sizes, dtype=float), nan=float(count)))
