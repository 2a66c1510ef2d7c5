"""To ArviZ: draws, log likelihoods and log densities as an xarray DataTree."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_ext.diagnostics._arviz import build_tree
from pyro_ext.diagnostics._passes import Layout, check_draws, inspect, joint_weights, progress
from pyro_ext.diagnostics._record import Record, predict, record, value_sites
from pyro_ext.diagnostics._target import Fitted, Target, resolve, undisturbed
from pyro_ext.diagnostics._types import Array, DataTree
from pyro_ext.structure import ParticlePlate
from pyro_ext.training.run import offer

__all__ = ["from_draws", "from_mcmc", "to_datatree"]

Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Any]


def to_datatree(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_samples: int = 1000,
    dims: Dims | None = None,
    coords: Coords | None = None,
    seed: int | None = None,
    chunk_size: int | None = None,
    predictive: bool = True,
    log_likelihood: bool = True,
    **kwargs: Any,
) -> DataTree:
    """Draw from the guide and return what ArviZ works on.

    The groups are ``posterior`` (constrained latents and deterministic sites),
    ``posterior_predictive``, ``log_likelihood`` (of each observed site and element, unscaled),
    ``observed_data``, and ``sample_stats`` with ``log_p`` and ``log_q`` of each draw. There is one
    chain of independent draws: r-hat and effective sample size say nothing about them. Plates are
    named dims. Auxiliary sites of the guide stay out. A ``/`` in a name is ``::`` in the tree, and
    what is called ``draw`` or ``chain`` is ``draw_site`` or ``draw_plate`` there.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both; by default the run's.
        num_samples: Number S of draws.
        dims: Names of the dims of a variable that are not plates.
        coords: Values along a named dim.
        seed: Seed; the caller's random state stays as it was.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        predictive: Whether to draw the group ``posterior_predictive``.
        log_likelihood: Whether to compute the group ``log_likelihood``.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If ``dims`` or ``coords`` do not fit the shapes.

    Example:
        >>> from pyro_ext.testing.conjugate import NormalLocal
        >>> exact = NormalLocal(torch.tensor([0.0, 2.0]))
        >>> tree = to_datatree(exact.model, exact.guide, exact.x, num_samples=100)
        >>> dict(tree["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 100, 'data': 2}
    """
    num_samples = check_draws("to_datatree", num_samples, 1)
    target = resolve("to_datatree", model, guide, args, kwargs)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        into, stats = _draw(
            target,
            layout,
            num_samples,
            chunk_size,
            predictive=predictive,
            log_likelihood=log_likelihood,
        )
    groups = {
        group: {name: _with_chain(values, group) for name, values in variables.items()}
        for group, variables in into.arrays().items()
    }
    groups["sample_stats"] = {name: _with_chain(values) for name, values in stats.items()}
    attrs = {**_versions(), **_describe(target, model), "seed": seed}
    return _tree(groups, into, dims or {}, coords or {}, attrs)


def from_draws(
    draws: Mapping[str, Any],
    *,
    dims: Dims | None = None,
    coords: Coords | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> DataTree:
    """Return reference draws as a tree with the group ``posterior``.

    Args:
        draws: Name → draws, shape ``(S, *site)``.
        dims: Names of the dims of a variable.
        coords: Values along a named dim.
        attrs: Attributes of the tree.

    Raises:
        TypeError: If it is no dict.
        ValueError: If the variables differ in their number of draws.

    Example:
        >>> tree = from_draws({"mu": torch.zeros(100)})
        >>> dict(tree["posterior"]["mu"].sizes)
        {'chain': 1, 'draw': 100}
    """
    if not isinstance(draws, Mapping):
        raise TypeError(
            f"from_draws: expected a dict of draws by name; got {type(draws).__name__}. Write: "
            "px.from_draws({'mu': draws})."
        )
    tensors = {
        name: torch.as_tensor(np.asarray(_on_cpu(values))) for name, values in draws.items()
    }
    counts = {name: values.shape[0] if values.dim() else 0 for name, values in tensors.items()}
    if not counts or len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(
            f"from_draws: expected the same number of draws S in the first dim of each variable; "
            f"got {counts}. Write: px.from_draws({{'mu': mu}}) with mu of shape (S, ...)."
        )
    into = Record(
        plates={name: () for name in tensors},
        events={name: values.dim() - 1 for name, values in tensors.items()},
    )
    groups = {"posterior": {name: _with_chain(values) for name, values in tensors.items()}}
    return _tree(groups, into, dims or {}, coords or {}, {**_versions(), **(attrs or {})})


def from_mcmc(mcmc: Any, *, dims: Dims | None = None, coords: Coords | None = None) -> DataTree:
    """Return the draws of a ``pyro.infer.MCMC`` object as a tree.

    If its kernel holds the model, plates are named dims, and deterministic sites, log likelihoods
    and data are there too, as in ``to_datatree``.

    Args:
        mcmc: A ``pyro.infer.MCMC`` that has run.
        dims: Names of the dims of a variable that are not plates.
        coords: Values along a named dim.

    Raises:
        TypeError: If it is no MCMC object.

    Example:
        >>> from pyro.infer import MCMC, NUTS
        >>> def model():
        ...     pyro.sample("mu", dist.Normal(0.0, 1.0))
        >>> mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
        >>> mcmc.run()
        >>> from_mcmc(mcmc).posterior["mu"].shape
        (1, 20)
    """
    if not hasattr(mcmc, "get_samples"):
        raise TypeError(
            f"from_mcmc: expected a pyro.infer.MCMC object; got {type(mcmc).__name__}. "
            "Write: px.from_draws({'mu': draws}) for arrays."
        )
    samples = {k: v.detach().cpu() for k, v in mcmc.get_samples(group_by_chain=True).items()}
    chains, count = next(iter(samples.values())).shape[:2]
    flat = {name: values.flatten(0, 1) for name, values in samples.items()}
    kernel = getattr(mcmc, "kernel", None)
    model = getattr(kernel, "model", None)
    if model is None:
        into = Record(
            plates={name: () for name in flat},
            events={name: values.dim() - 1 for name, values in flat.items()},
        )
        arrays = {"posterior": flat}
    else:
        args, kwargs = getattr(mcmc, "_args", None) or (), getattr(mcmc, "_kwargs", None) or {}
        into = _replayed(Target(model, model, tuple(args), dict(kwargs)), flat)
        arrays = into.arrays()
    groups = {
        group: {
            name: values.numpy()
            if "data" in group
            else values.unflatten(0, (chains, count)).numpy()
            for name, values in variables.items()
        }
        for group, variables in arrays.items()
    }
    attrs = {**_versions(), "inference_method": "MCMC", "kernel": type(kernel).__name__}
    return _tree(groups, into, dims or {}, coords or {}, attrs)


def _draw(
    target: Target,
    layout: Layout,
    num: int,
    chunk_size: int | None,
    *,
    predictive: bool,
    log_likelihood: bool,
) -> tuple[Record, dict[str, Tensor]]:
    into = Record()
    log_p, log_q = [], []
    with progress(num, "draws") as bar:
        for weights in joint_weights(target, layout, num, chunk_size):
            (term,) = weights.terms
            nesting, count = weights.max_plate_nesting, len(term.log_p)
            log_p.append(term.log_p.cpu())
            log_q.append(term.log_q.cpu())
            record(into, weights.model_trace, nesting, count, log_likelihood=log_likelihood)
            if predictive:
                predict(into, target, weights, count)
            bar.update(count)
    return into, {"log_p": torch.cat(log_p), "log_q": torch.cat(log_q)}


def _replayed(target: Target, draws: dict[str, Tensor]) -> Record:
    """Run the model at given draws, all at once if it takes them so, and record its sites."""
    with undisturbed(target, None):
        prototype = _conditioned(target, {name: values[0] for name, values in draws.items()})
        sites: dict[str, Any] = dict(value_sites(prototype))
        nesting = max(
            len(site["fn"].batch_shape)
            for site in sites.values()
            if not site["infer"].get("_deterministic", False)
        )
        summed = [n for n, s in sites.items() if not (s["is_observed"] or n in draws)]
        if summed:
            warnings.warn(
                f"from_mcmc: the kernel sums out {summed}. There are no draws of them, and given "
                "one the likelihood of the data is not that of the model: the group "
                "log_likelihood is left out. Write: pyro.infer.infer_discrete, for their draws.",
                stacklevel=3,
            )
        into = _at_once(target, draws, sites, nesting, log_likelihood=not summed)
        last = _some(target, draws, [-1], nesting, log_likelihood=not summed)
        if into is None or not _ends_with(into, last):
            every = range(len(next(iter(draws.values()))))
            into = _some(target, draws, every, nesting, log_likelihood=not summed)
    return into


def _at_once(
    target: Target,
    draws: dict[str, Tensor],
    sites: dict[str, Any],
    nesting: int,
    *,
    log_likelihood: bool,
) -> Record | None:
    """Run the model at all draws; None if it takes no dim of them left of its plates."""
    count = len(next(iter(draws.values())))
    data = {}
    for name, values in draws.items():
        missing = nesting - len(sites[name]["fn"].batch_shape)
        data[name] = values.reshape(count, *(1,) * missing, *values.shape[1:])
    into = Record()
    try:
        with ParticlePlate("inner", count, -nesting - 1, None):
            trace = _conditioned(target, data)
        record(into, trace, nesting, count, latents=draws, log_likelihood=log_likelihood)
    except (RuntimeError, ValueError, IndexError):
        return None
    return into


def _some(
    target: Target,
    draws: dict[str, Tensor],
    chosen: Sequence[int],
    nesting: int,
    *,
    log_likelihood: bool,
) -> Record:
    """Run the model at some of the draws, one at a time."""
    into = Record()
    with progress(len(chosen), "log likelihoods") as bar:
        for index in chosen:
            trace = _conditioned(target, {name: values[index] for name, values in draws.items()})
            record(into, trace, nesting, 1, latents=draws, log_likelihood=log_likelihood)
            bar.update()
    return into


def _ends_with(whole: Record, last: Record) -> bool:
    """Tell whether the last draw has by itself what it has among all, and they are not mixed."""
    found, expected = whole.arrays(), last.arrays()
    return whole.plates == last.plates and all(
        torch.allclose(found[group][name][-1:], values, rtol=1e-3, atol=1e-3, equal_nan=True)
        for group in ("posterior", "log_likelihood")
        for name, values in expected.get(group, {}).items()
    )


def _conditioned(target: Target, values: dict[str, Tensor]) -> Any:
    model = poutine.condition(target.model, values)
    return poutine.trace(model).get_trace(*target.args, **target.kwargs)


def _tree(
    groups: Mapping[str, Mapping[str, Any]],
    into: Record,
    dims: Dims,
    coords: Coords,
    attrs: Mapping[str, Any],
) -> DataTree:
    unknown = [name for name in dims if name not in into.plates]
    if unknown:
        raise ValueError(
            f"dims: expected names among the variables {sorted(into.plates)}; got {unknown}. "
            f"Write: dims={{'{sorted(into.plates)[0]}': [...]}}."
        )
    named = {name: _dim_names(name, into, dims.get(name)) for name in into.plates}
    for name, own in named.items():
        if taken := [dim for dim in own if dim in into.plates or own.count(dim) > 1]:
            free = [f"{dim}_{i}" for i, dim in enumerate(own)]
            raise ValueError(
                f"dims: expected names for the dims of '{name}' that are no variables, each once; "
                f"got {taken}. Write: dims={{'{name}': {free}}}."
            )
    for group, variables in groups.items():
        lead = 0 if "data" in group else 2
        for name, values in variables.items():
            for dim, size in zip(named.get(name, ()), values.shape[lead:], strict=False):
                if dim in coords and len(coords[dim]) != size:
                    raise ValueError(
                        f"coords: expected {size} values for dim '{dim}' of '{name}'; got "
                        f"{len(coords[dim])}. Write: coords={{'{dim}': range({size})}}."
                    )
    used = {dim for names in named.values() for dim in names}
    unused = [dim for dim in coords if dim not in used]
    if unused:
        raise ValueError(
            f"coords: expected dims among {sorted(used)}; got {unused}. Write: "
            f"dims={{'site': ['{unused[0]}']}}, which names a dim that is no plate."
        )
    return build_tree(groups, dims=named, coords=coords, attrs=attrs)


def _dim_names(name: str, into: Record, given: Sequence[str] | None) -> list[str]:
    plates = [f"{p}_plate" if p in into.plates else p for p in into.plates[name]]
    events = [f"{name}_dim_{i}" for i in range(into.events[name])]
    if given is None:
        return [*plates, *events]
    if len(given) == len(events):
        return [*plates, *given]
    if len(given) == len(plates) + len(events):
        return list(given)
    raise ValueError(
        f"dims: expected {len(events)} names for the dims of '{name}' besides its plates "
        f"{plates}; got {list(given)}. Write: dims={{'{name}': "
        f"{[f'dim_{i}' for i in range(len(events))]}}}."
    )


def _with_chain(values: Tensor, group: str = "") -> Array:
    return (values if "data" in group else values.unsqueeze(0)).numpy()


def _on_cpu(values: Any) -> Any:
    return values.detach().cpu() if isinstance(values, Tensor) else values


def _describe(target: Target, source: Any) -> dict[str, Any]:
    guide = target.guide
    found: dict[str, Any] = {
        "inference_method": "VI",
        "guide": getattr(guide, "__name__", type(guide).__name__),
        "family": getattr(guide, "family", None),
    }
    for name in ("loss", "num_steps", "seconds"):
        if source is not target.model and hasattr(source, name):
            found[name] = getattr(source, name)
    if "loss" in found:
        found["loss"] = type(found["loss"]).__name__
    return found


def _versions() -> dict[str, str]:
    return {
        "pyro_ext_version": getattr(sys.modules["pyro_ext"], "__version__", "unknown"),
        "pyro_version": pyro.__version__,
        "torch_version": torch.__version__,
    }


offer("to_datatree", to_datatree)
