"""Leave-one-out cross-validation and prediction, corrected for what q is not."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext._psis import k_hat, smooth
from pyro_ext._site_log_prob import site_log_prob
from pyro_ext.bounds import iwae
from pyro_ext.diagnostics._arviz import build_tree, tree_dim, tree_name
from pyro_ext.diagnostics._passes import (
    Layout,
    check_draws,
    inspect,
    pairs_per_pass,
    progress,
    sizes_of_passes,
    wholes,
)
from pyro_ext.diagnostics._record import aligned, is_fixed
from pyro_ext.diagnostics._target import Fitted, Target, resolve, undisturbed
from pyro_ext.diagnostics._types import Array, DataTree
from pyro_ext.diagnostics.datatree import to_datatree
from pyro_ext.structure import plate_frames, sample_sites
from pyro_ext.weights import LogWeights, log_weights

__all__ = ["importance_resample", "loo", "marginal_log_likelihood"]


def loo(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_samples: int = 4000,
    num_inner: int = 100,
    var_name: str | None = None,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    r"""Estimate how well new data are predicted, by leave-one-out cross-validation.

    .. math:: \log p(x_i \mid x_{-i}) \approx \log \frac{\sum_s r_s\, p(x_i \mid \theta_s)}
        {\sum_s r_s}, \qquad r_s = \frac{p(x, \theta_s)}{q(\theta_s)\, p(x_i \mid \theta_s)}

    ``arviz_stats.loo`` would take the guide's draws for draws of the posterior; here their
    importance weights go with them. Latents of datapoints are integrated out, and what
    ``poutine.mask`` hides is no datum.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both; by default the run's.
        num_samples: Number S of draws of the global latents.
        num_inner: Number of draws of each datapoint's latents, given one of the global ones.
        var_name: Observed site, where there are several.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Returns:
        ArviZ's ``ELPDData``, with ``elpd``, ``se``, ``elpd_i`` and ``pareto_k`` per datapoint.

    Raises:
        ValueError: If there are no global latents: then leaving a datapoint out changes nothing
            for the others; if there are several observed sites, or none of that name.

    References:
        Bayesian leave-one-out cross-validation for large data (Magnusson et al., 2019) |
        https://arxiv.org/abs/1904.10679

    Example:
        >>> from pyro_ext.testing.conjugate import NormalGlobal
        >>> exact = NormalGlobal(torch.tensor([0.0, 2.0, 1.0]))
        >>> found = loo(exact.model, exact.guide, exact.x, num_samples=1000, seed=0)
        >>> int(found.n_data_points)
        3
    """
    from arviz_stats.loo import loo_approximate_posterior

    target = resolve("loo", model, guide, args, kwargs)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        masks = _masks(target)
    if layout.only_locals:
        raise ValueError(
            "loo: expected global latents; got latents of datapoints only, where leaving one out "
            "changes nothing for the others. Write: px.evidence(model, guide, *args).per_datum."
        )
    options: dict[str, Any] = {"num_samples": num_samples, "chunk_size": chunk_size, "seed": seed}
    if layout.has_locals:
        tree = marginal_log_likelihood(
            target.model, target.guide, *target.args, num_inner=num_inner, **options, **kwargs
        )
    else:
        tree = to_datatree(
            target.model, target.guide, *target.args, predictive=False, **options, **kwargs
        )
    tree = _shown(tree, masks)
    var_name = None if var_name is None else tree_name(var_name)
    _check_var_name(tree, var_name)
    stats = tree["sample_stats"]
    joint = k_hat(torch.as_tensor((stats["log_p"] - stats["log_q"]).values).flatten())
    if joint.values == math.inf:
        warnings.warn(
            "loo: not to be trusted, whatever pareto_k says: beside the largest weight of the "
            f"guide's draws the others vanish ({joint}). Look whether the fit has converged.",
            stacklevel=2,
        )
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # pareto_k of a tail that underflows
            return loo_approximate_posterior(
                tree, stats["log_p"], stats["log_q"], pointwise=True, var_name=var_name
            )
    except ValueError as error:
        if "tail values" not in str(error):
            raise
        raise ValueError(
            "loo: expected draws whose largest weights differ, for a tail to be fitted to them; "
            "got ties, as of discrete latents with few values. Write: px.evidence(run), without "
            "a row and with it, for log p(x_i | x_-i)."
        ) from error


def marginal_log_likelihood(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_samples: int = 1000,
    num_inner: int = 100,
    chunk_size: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> DataTree:
    r"""Integrate the latents of the datapoints out of the likelihood, by importance sampling.

    .. math:: p(x_i \mid \theta_s) \approx \frac1K \sum_k
        \frac{p(x_i, z_{ik} \mid \theta_s)}{q(z_{ik} \mid \theta_s)}

    What ArviZ's functions on ``log_likelihood`` want where a datum has latents of its own: given
    those, every datum looks as if the model had seen it.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: A guide with global latents and latents in a data plate; left out with a run.
        *args: Arguments of both; by default the run's.
        num_samples: Number S of draws of the global latents.
        num_inner: Number K of draws of each datapoint's latents.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Returns:
        A tree with the groups ``log_likelihood`` (by the observed sites of a plate) and
        ``sample_stats`` (``log_p``, ``log_q`` of the global latents, the others integrated out).

    Raises:
        ValueError: If there are no global latents, or no others.

    Example:
        >>> from pyro_ext.testing.conjugate import NormalHierarchy
        >>> exact = NormalHierarchy(torch.tensor([0.0, 2.0, 1.0]))
        >>> tree = marginal_log_likelihood(exact.model, exact.guide, exact.x, num_samples=10)
        >>> dict(tree["log_likelihood"]["x"].sizes)
        {'chain': 1, 'draw': 10, 'data': 3}
    """
    target = resolve("marginal_log_likelihood", model, guide, args, kwargs)
    num_samples, num_inner = wholes(
        "marginal_log_likelihood", num_samples=num_samples, num_inner=num_inner
    )
    if num_inner < 2:
        raise ValueError(
            f"marginal_log_likelihood: expected num_inner >= 2; got {num_inner}. Write: "
            "num_inner=100."
        )
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        if not (layout.has_locals and layout.has_globals):
            raise ValueError(
                "marginal_log_likelihood: expected a guide with global latents and latents in a "
                f"data plate; got one with {'local' if layout.has_locals else 'global'} latents "
                "only. Write: px.to_datatree(run)."
            )
        found, plates_of = _integrate(target, layout, num_samples, num_inner, chunk_size)
    stats = {name: found.pop(name).numpy()[None] for name in ("log_p", "log_q")}
    values = {name: value.numpy()[None] for name, value in found.items()}
    return build_tree(
        {"log_likelihood": values, "sample_stats": stats, "posterior": {"log_p": stats["log_p"]}},
        dims=plates_of,
        coords={},
        attrs={"num_inner": num_inner, "seed": seed},
    )


def importance_resample(
    tree: DataTree, num_samples: int | None = None, *, seed: int = 0
) -> DataTree:
    """Return draws in proportion to their Pareto-smoothed importance weights.

    Draws of a guide become draws of the posterior, as far as k-hat says that they can; those of
    ``posterior_predictive`` go with them.

    Args:
        tree: What ``px.to_datatree`` returned.
        num_samples: Number of draws to return; by default as many as there are.
        seed: Seed.

    Returns:
        The tree with the same groups, and the attribute ``k_hat``.

    Raises:
        TypeError: If it is no tree.
        ValueError: If the tree holds no ``log_p`` and ``log_q``.

    Example:
        >>> from pyro_ext.testing.conjugate import NormalGlobal
        >>> exact = NormalGlobal(torch.tensor([0.0, 2.0]))
        >>> tree = px.to_datatree(exact.model, exact.guide, exact.x, num_samples=200)
        >>> importance_resample(tree).attrs["k_hat"]
        0.0
    """
    if not hasattr(tree, "children"):
        raise TypeError(
            f"importance_resample: expected a DataTree; got {type(tree).__name__}. Write: "
            "px.importance_resample(px.to_datatree(run))."
        )
    stats: Any = tree["sample_stats"] if "sample_stats" in tree.children else {}
    if "log_p" not in stats or "log_q" not in stats:
        raise ValueError(
            "importance_resample: expected a tree with log_p and log_q in sample_stats; got "
            f"{sorted(stats)} there. Write: px.importance_resample(px.to_datatree(run))."
        )
    log_w = (stats["log_p"].values - stats["log_q"].values)[0]
    shape, smoothed = smooth(torch.from_numpy(log_w))  # in its own dtype, which knows its rounding
    if shape.values > shape.threshold:
        warnings.warn(
            f"importance_resample: {shape}. The draws are few of the guide's, again and again. "
            "Fit for longer, or write: family=px.Flow().",
            stacklevel=2,
        )
    count = len(log_w)
    if num_samples is not None:
        count = check_draws("importance_resample", num_samples, 1)
    generator = torch.Generator().manual_seed(seed)
    # Systematic: one uniform number places all of them, with little noise of its own.
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(count, dtype=torch.float64) + shift) / count
    levels = smoothed.exp().cumsum(0)
    chosen = torch.searchsorted(levels / levels[-1], points).clamp(max=len(log_w) - 1)
    chosen = chosen[torch.randperm(count, generator=generator)]
    resampled = tree.copy()
    for name, group in tree.children.items():
        if "draw" in group.dims:
            part = group.to_dataset().isel(draw=chosen.numpy())
            resampled[name] = type(tree)(part.assign_coords(draw=np.arange(count)))
    resampled.attrs["k_hat"] = shape.values.item()
    return resampled


def _integrate(
    target: Target, layout: Layout, num: int, num_inner: int, chunk_size: int | None
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    step = max(2, pairs_per_pass(layout, chunk_size) // (layout.size * num_inner))
    parts: dict[str, list[Tensor]] = {}
    plates_of: dict[str, list[str]] = {}
    with progress(num, "marginal log likelihood") as bar:
        for count in sizes_of_passes(num, step):
            weights = log_weights(
                target.model,
                target.guide,
                *target.args,
                num_particles=num_inner,
                num_outer=count,
                **target.kwargs,
            )
            for name, values, plates in _outside(weights, count):
                parts.setdefault(name, []).append(values)
                plates_of[name] = plates
            shared = total = log_q = torch.zeros(count, device="cpu")
            for term in weights.terms:
                if not term.plates:
                    shared, log_q = (
                        term.log_p.reshape(count).cpu(),
                        term.log_q.reshape(count).cpu(),
                    )
                    continue
                marginal = iwae(term.log_w).cpu()
                total = total + marginal.reshape(count, -1).sum(1)
                name = _observed_in(weights, term.plates)
                parts.setdefault(name, []).append(marginal.double())
                plates_of[name] = list(term.plates)
            parts.setdefault("log_p", []).append((shared + total).double())
            parts.setdefault("log_q", []).append(log_q.double())
            bar.update(count)
    return {name: torch.cat(found) for name, found in parts.items()}, plates_of


def _outside(weights: LogWeights, count: int) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Yield the log likelihoods of data that have no latents of their own, and their plates."""
    local = {plate for term in weights.terms for plate in term.plates}
    nesting = weights.max_plate_nesting
    for name, site in sample_sites(weights.model_trace):
        if not site["is_observed"] or is_fixed(site):
            continue
        if local.isdisjoint(frame.name for frame in plate_frames(site)):
            log_prob = site_log_prob(site)
            if log_prob.dim() == nesting + 2:  # the inner particles' dim, of size 1
                log_prob = log_prob.squeeze(1)
            values, plates = aligned(site, log_prob, 0, nesting, count)
            yield name, values.cpu().double(), list(plates)


def _masks(target: Target) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Return which elements of each observed site count, where some do not, and their dims."""
    weights = log_weights(target.model, target.guide, *target.args, **target.kwargs)
    found = {}
    for name, site in sample_sites(weights.model_trace):
        mask = site["mask"]
        if site["is_observed"] and isinstance(mask, Tensor) and not mask.all():
            values, plates = aligned(site, mask, 0, weights.max_plate_nesting, 1)
            found[tree_name(name)] = values[0].cpu().numpy(), tuple(map(tree_dim, plates))
    return found


def _check_var_name(tree: DataTree, var_name: str | None) -> None:
    group = tree.children.get("log_likelihood")
    names = [] if group is None else [str(name) for name in group.data_vars]
    if not names:
        raise ValueError(
            "loo: expected a model with data; got one that observes nothing. Write: "
            "pyro.sample('x', ..., obs=x) in the model."
        )
    if var_name not in names and (var_name is not None or len(names) > 1):
        raise ValueError(
            f"loo: expected var_name to be one of the observed sites {names}; got {var_name!r}. "
            f"Write: px.loo(run, var_name={names[0]!r})."
        )


def _shown(tree: DataTree, masks: dict[str, tuple[Array, tuple[str, ...]]]) -> DataTree:
    """Return the tree without the log likelihoods of elements that do not count."""
    from xarray import DataArray, Dataset
    from xarray import DataTree as XarrayTree

    if not masks:
        return tree
    kept: dict[str, Any] = {}
    for name, values in tree["log_likelihood"].data_vars.items():
        dims = values.dims[2:]
        sites = [masks.get(s) for s in ([name] if name in masks else str(name).split("+"))]
        if not dims or None in sites:  # one of the data of an element counts in full
            kept[str(name)] = values
            continue
        shown = np.zeros([values.sizes[dim] for dim in dims], dtype=bool)
        for mask, own in filter(None, sites):
            one = DataArray(mask, dims=own)
            shown |= one.any([d for d in own if d not in dims]).transpose(*dims).values
        rows = f"{name}_shown"
        if len(dims) == 1:
            kept[str(name)] = values.isel({dims[0]: shown}).rename({dims[0]: rows})
        else:
            kept[str(name)] = (("chain", "draw", rows), values.values[..., shown])
    result = tree.copy()
    result["log_likelihood"] = XarrayTree(Dataset(kept))
    return result


def _observed_in(weights: LogWeights, plates: tuple[str, ...]) -> str:
    """Return the names of the observed sites in the plates of a term."""
    names = [
        name
        for name, site in sample_sites(weights.model_trace)
        if site["is_observed"] and {frame.name for frame in plate_frames(site)} >= set(plates)
    ]
    return "+".join(names) or "+".join(plates)
