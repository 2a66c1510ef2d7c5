"""From a trace with a particle dim to named arrays, one draw a row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_ext._checks import Pair
from pyro_ext._run import replayed_model
from pyro_ext._site_log_prob import site_log_prob
from pyro_ext.structure import ParticlePlate, is_delta, plate_frames
from pyro_ext.weights import LogWeights

__all__ = ["FreeData", "Record", "aligned", "is_fixed", "predict", "record", "value_sites"]


class FreeData(Messenger):
    """Handler that samples observed sites; unlike Pyro's, it leaves deterministic ones alone."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not is_fixed(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@dataclass
class Record:
    """Named arrays of some draws, with the names of their dims.

    Attributes:
        groups: Group → variable → values, ``(draws, *dims)``; without draws in ``observed_data``.
        plates: Variable → names of its plate dims.
        events: Variable → number of its event dims.
    """

    groups: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)
    plates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)

    def add(self, group: str, name: str, values: Tensor) -> None:
        """Append the draws of a chunk."""
        self.groups.setdefault(group, {}).setdefault(name, []).append(values.detach().cpu())

    def arrays(self) -> dict[str, dict[str, Tensor]]:
        """Return all chunks put together."""
        return {
            group: {n: torch.cat(p) if len(p) > 1 else p[0] for n, p in variables.items()}
            for group, variables in self.groups.items()
        }


def record(
    into: Record,
    trace: Trace,
    nesting: int,
    count: int,
    *,
    latents: Iterable[str] | None = None,
    log_likelihood: bool = True,
) -> None:
    """Add latents, deterministic sites, log likelihoods and data of a trace.

    Args:
        into: What to add to.
        trace: Trace of the model; particles are the batch dim left of the plates.
        nesting: Number of plate dims.
        count: Number of particles.
        latents: Names of the latents; by default the sites that are not observed. Others that are
            not observed, which Pyro's kernels sum out, are left alone.
        log_likelihood: Whether to add log likelihoods.
    """
    names = None if latents is None else set(latents)
    first = "observed_data" not in into.groups
    for name, site in value_sites(trace):
        fixed = is_fixed(site)
        latent = not site["is_observed"] if names is None else name in names
        if not (fixed or latent or site["is_observed"]):
            continue
        event_dim = _event_dim(site, nesting, count)
        values, plates = aligned(site, site["value"], event_dim, nesting, count)
        into.plates[name], into.events[name] = plates, event_dim
        if fixed or latent:
            into.add("posterior", name, values)
            continue
        if log_likelihood:
            into.add(
                "log_likelihood", name, aligned(site, site_log_prob(site), 0, nesting, count)[0]
            )
        if first:
            into.add("observed_data", name, values[0])


def predict(into: Record, pair: Pair, weights: LogWeights, count: int) -> None:
    """Add posterior predictive draws of the observed sites.

    Args:
        into: What to add to.
        pair: Model, guide and arguments.
        weights: What is known of the draws.
        count: Number of particles.
    """
    observed = into.groups.get("observed_data", {})
    nesting = weights.max_plate_nesting
    free = replace(pair, model=FreeData()(pair.model))
    with ParticlePlate("inner", count, -nesting - 1, None):
        trace = replayed_model(free, weights.guide_trace, weights.runs)
    for name, site in value_sites(trace):
        if name in observed:
            values, _ = aligned(site, site["value"], into.events[name], nesting, count)
            into.add("posterior_predictive", name, values)


def is_fixed(site: Any) -> bool:
    """Tell whether a site is a function of others: deterministic, or what a reparam leaves."""
    return bool(site["infer"].get("_deterministic")) or (site["is_observed"] and is_delta(site))


def value_sites(trace: Trace) -> Iterable[tuple[str, Any]]:
    """Yield sample sites that hold values: no subsampling, no ``pyro.factor``."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if isinstance(site["value"], Tensor) and site["value"].numel() > 0:
            yield name, site


def aligned(
    site: Any, value: Tensor, event_dim: int, nesting: int, count: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Return values of shape ``(count, *plates, *event)`` and the names of the plates.

    Args:
        site: The site.
        value: One value for each particle and element, or fewer that are alike.
        event_dim: Number of its event dims.
        nesting: Number of plate dims.
        count: Number of particles.
    """
    event = value.shape[value.dim() - event_dim :]
    batch = value.shape[: value.dim() - event_dim]
    batch = torch.Size((1,) * (nesting + 1 - len(batch))) + batch
    names = {frame.dim: frame.name for frame in plate_frames(site)}
    sizes = {frame.dim: frame.size for frame in plate_frames(site)}
    kept = [dim for dim in range(-nesting, 0) if dim in names or batch[dim] > 1]
    value = value.reshape(batch + event)
    shape = [sizes.get(dim, batch[dim]) for dim in range(-nesting, 0)]
    value = value.expand(count, *shape, *event)
    value = value.reshape(count, *(shape[nesting + dim] for dim in kept), *event)
    plates = tuple(names.get(dim, f"{site['name']}_batch_{nesting + dim}") for dim in kept)
    return value, plates


def _event_dim(site: Any, nesting: int, count: int) -> int:
    """Return the event dims of a value; those of a deterministic site follow from its plates."""
    value, event_dim = site["value"], site["fn"].event_dim
    if not site["infer"].get("_deterministic", False) or event_dim < value.dim():
        return int(event_dim)
    fits = (
        e for e in range(value.dim() + 1) if _fits(tuple(value.shape), e, site, nesting + 1, count)
    )
    return next(fits, max(value.dim() - nesting - 1, 0))


def _fits(shape: tuple[int, ...], event_dim: int, site: Any, batch: int, count: int) -> bool:
    if len(shape) > batch + event_dim:
        return False
    if len(shape) == batch + event_dim and shape[0] not in (1, count):
        return False
    sizes: Mapping[int, int] = {frame.dim: frame.size for frame in plate_frames(site)}
    for dim in range(1 - batch, 0):
        axis = len(shape) - event_dim + dim
        if 0 <= axis < len(shape) - event_dim and shape[axis] not in (1, sizes.get(dim, 1)):
            return False
    return True
