"""What posteriors are held against: reference draws or exact moments, and the distance to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pyro_ext.diagnostics._arviz import effective_sizes, tree_name
from pyro_ext.diagnostics._types import Array, DataTree
from pyro_ext.diagnostics.datatree import from_draws, from_mcmc

__all__ = [
    "Distance",
    "Moments",
    "Place",
    "Reference",
    "distance",
    "draws_at",
    "is_markov",
    "moments_of",
    "places_of",
    "to_reference",
]

_MIN_DRAWS = 10

Place = tuple[str, int]
"""A scalar: its variable, and its position there in C order."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of one variable, and the number of draws that they are worth."""

    mean: Array
    sd: Array
    size: Array


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments by variable, and the draws that they come from, if they do."""

    label: str
    moments: dict[str, Moments]
    tree: DataTree | None


@dataclass(frozen=True, eq=False)
class Distance:
    """How far a posterior's marginals are from the reference, one entry per scalar.

    Attributes:
        labels: Name of each scalar, such as ``theta[3]``.
        mean_error: (mean - reference mean) / reference sd.
        sd_ratio: sd / reference sd.
        noise: Standard error of ``mean_error``; that of ``log(sd_ratio)`` is smaller by √2 for a
            normal marginal.
    """

    labels: list[str]
    mean_error: Array
    sd_ratio: Array
    noise: Array

    @property
    def worst_mean_error(self) -> float:
        """The standardised mean error that is furthest from 0, with its sign."""
        return float(self.mean_error[np.abs(self.mean_error).argmax()])

    @property
    def worst_sd_ratio(self) -> float:
        """The sd ratio that is furthest from 1, as a factor."""
        with np.errstate(divide="ignore"):
            return float(self.sd_ratio[np.abs(np.log(self.sd_ratio)).argmax()])


def to_reference(reference: Any) -> Reference:
    """Return reference moments from what a user has.

    Args:
        reference: A dict of draws ``(S, *site)``, a DataTree with a group ``posterior``, a
            ``pyro.infer.MCMC``, or exact moments ``{"mu": (mean, sd)}``.

    Raises:
        TypeError: If it is none of these.
    """
    if hasattr(reference, "children") and "posterior" in reference.children:
        return Reference("reference", moments_of(reference), reference)
    if isinstance(reference, Mapping):
        if not reference:
            raise ValueError(
                "compare: expected a reference with at least one variable; got an empty dict. "
                "Write: reference={'mu': (mean, sd)}."
            )
        if all(isinstance(value, tuple) and len(value) == 2 for value in reference.values()):
            moments = {tree_name(n): _exact(n, *pair) for n, pair in reference.items()}
            return Reference("exact", moments, None)
        tree = from_draws(reference)
        count = tree["posterior"].sizes["draw"]
        if count < _MIN_DRAWS:
            name = next(iter(reference))
            raise ValueError(
                f"compare: expected at least {_MIN_DRAWS} reference draws, or moments as tuples; "
                f"got {count} values of '{name}' in a {type(reference[name]).__name__}. Write: "
                f"reference={{'{name}': (mean, sd)}}."
            )
        return Reference("reference", moments_of(tree), tree)
    if hasattr(reference, "get_samples"):
        tree = from_mcmc(reference)
        return Reference(type(reference.kernel).__name__, moments_of(tree), tree)
    raise TypeError(
        "compare: expected reference to be a dict of draws, {'mu': (mean, sd)}, a DataTree with a "
        f"group 'posterior', or a pyro.infer.MCMC; got {type(reference).__name__}. "
        "Write: reference=px.from_draws({'mu': draws}), or px.to_datatree(run) of a run."
    )


def moments_of(tree: DataTree) -> dict[str, Moments]:
    """Return moments of each variable of the group ``posterior``.

    Args:
        tree: The draws.
    """
    found = {}
    for name, variable in tree["posterior"].data_vars.items():
        draws = np.asarray(variable.values, dtype=float)
        sd = draws.std((0, 1), ddof=1 if draws.shape[0] * draws.shape[1] > 1 else 0)
        mean = np.asarray(draws.mean((0, 1)))
        found[str(name)] = Moments(mean, np.asarray(sd), effective_sizes(draws))
    return found


def distance(posterior: DataTree, reference: Reference) -> Distance:
    """Return the distances of the marginals that both have.

    Args:
        posterior: Draws.
        reference: What to hold them against.

    Raises:
        ValueError: If they share no variable that varies, or their shapes differ.
    """
    labels: list[str] = []
    parts: list[tuple[Array, ...]] = []
    group: Any = posterior["posterior"]
    shared = [name for name in group.data_vars if name in reference.moments]
    if not shared:
        raise ValueError(
            f"compare: expected a reference for some of the variables {sorted(group.data_vars)}; "
            f"got {sorted(reference.moments)}. Write: reference={{'{sorted(group.data_vars)[0]}': "
            "(mean, sd)}."
        )
    for name in shared:
        chains = np.asarray(group[name].values, dtype=float)
        draws = chains.reshape(-1, *chains.shape[2:])
        size = effective_sizes(chains) if is_markov(posterior) else len(draws)
        right = reference.moments[name]
        if draws.shape[1:] != right.mean.shape:
            raise ValueError(
                f"compare: expected reference '{name}' of shape {draws.shape[1:]}; got "
                f"{right.mean.shape}. Write: reference={{'{name}': (mean, sd)}}, each of the "
                "site's shape."
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            error = (draws.mean(0) - right.mean) / right.sd
            ratio = draws.std(0, ddof=1) / right.sd
        noise = np.sqrt(ratio**2 / size + 1 / right.size)
        varies = (right.sd > 0).reshape(-1)
        labels += [
            label for label, keep in zip(_labels_of(group[name]), varies, strict=True) if keep
        ]
        parts.append(tuple(part.reshape(-1)[varies] for part in (error, ratio, noise)))
    if not labels:
        raise ValueError(
            f"compare: expected a reference that varies; got one with sd 0 in all of {shared}. "
            f"Write: reference={{'{shared[0]}': (mean, sd)}} with sd > 0."
        )
    errors, ratios, noises = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Distance(labels, errors, ratios, noises)


def places_of(tree: DataTree) -> list[tuple[str, Place]]:
    """Return name and place of each scalar of the group ``posterior``.

    Two may have one name, where values along a dim repeat.

    Args:
        tree: The draws.
    """
    return [
        (label, (str(name), index))
        for name, variable in tree["posterior"].data_vars.items()
        for index, label in enumerate(_labels_of(variable))
    ]


def is_markov(tree: DataTree) -> bool:
    """Tell whether draws come from Markov chains, and not independently from a guide.

    Args:
        tree: The draws.
    """
    chains = int(tree["posterior"].sizes["chain"])
    return chains > 1 or tree.attrs.get("inference_method") == "MCMC"


def draws_at(tree: DataTree, places: Sequence[Place]) -> Array:
    """Return the draws of some scalars, all chains of them, ``(scalars, draws)``.

    By position, as two trees may name the same dim by other coordinates.

    Args:
        tree: The draws.
        places: The scalars.
    """
    values: dict[str, Array] = {}
    for name in dict.fromkeys(name for name, _ in places):
        draws = np.asarray(tree["posterior"][name].values, dtype=float)
        values[name] = draws.reshape(draws.shape[0] * draws.shape[1], -1)
    return np.stack([values[name][:, index] for name, index in places])


def _labels_of(variable: Any) -> list[str]:
    """Return the name of each scalar of a variable, such as ``theta[3]``, in C order.

    Args:
        variable: A DataArray with dims chain, draw and others.
    """
    dims = variable.dims[2:]
    if not dims:
        return [str(variable.name)]
    shape = tuple(variable.sizes[dim] for dim in dims)
    values = [variable[dim].values for dim in dims]
    return [
        f"{variable.name}[{', '.join(str(v[i]) for v, i in zip(values, index, strict=True))}]"
        for index in np.ndindex(shape)
    ]


def _exact(name: str, mean: Any, sd: Any) -> Moments:
    means, sds = (
        np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v, dtype=float)
        for v in (mean, sd)
    )
    if means.shape != sds.shape or not (sds >= 0).all():
        raise ValueError(
            f"compare: expected reference '{name}' to be (mean, sd) of one shape with sd >= 0; "
            f"got shapes {means.shape} and {sds.shape}. Write: reference={{'{name}': "
            "(draws.mean(0), draws.std(0))}."
        )
    return Moments(means, sds, np.full(means.shape, np.inf))
