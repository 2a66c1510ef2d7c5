"""What can be wrong with a (model, guide) pair, in words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace

from pyro_ext._errors import of_batch_dims
from pyro_ext._site_log_prob import check_shape, site_log_prob
from pyro_ext.structure import plate_frames, sample_sites

__all__ = ["Pair", "check_pair", "check_shapes", "explain_failure"]


@dataclass(frozen=True)
class Pair:
    """A model, its guide, and the arguments that both are called with."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def check_pair(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise if model and guide do not sample the same latents over the same plates.

    Args:
        model_trace: Trace of the model, replayed against the guide.
        guide_trace: Trace of the guide.

    Raises:
        ValueError: If a latent is missing on one side or observed by the model, or a plate has two
            sizes, or a latent two shapes.
    """
    guide_sites = dict(sample_sites(guide_trace))
    model_sites = dict(sample_sites(model_trace))
    for name, site in model_sites.items():
        if site["is_observed"]:
            continue
        other = guide_sites.get(name)
        if other is None:
            raise ValueError(
                f"site '{name}': expected the guide to sample every latent of the model; got one "
                f"that samples {_names(guide_sites)}. Write: pyro.sample('{name}', ...) in the "
                f"guide, or {_without(site)}; where it is what to predict, "
                "pyro.infer.Predictive(model, guide=guide, num_samples=1000)(*args)."
            )
        _check_sizes(name, site, other)
        _check_values(name, site, other)
    for name, site in guide_sites.items():
        if site["infer"].get("is_auxiliary"):
            continue
        if name not in model_sites:
            latents = _names({n: s for n, s in model_sites.items() if not s["is_observed"]})
            raise ValueError(
                f"site '{name}': expected the guide to sample the model's latents alone, "
                f"{latents}; got this site too. Write: the name of a latent, or a site '{name}' "
                "in the model as well, its distribution given the latents; infer={'is_auxiliary': "
                "True} for a draw that latents are one-to-one functions of."
            )
        if model_sites[name]["is_observed"] and not site["is_observed"]:
            raise ValueError(
                f"site '{name}': expected the guide to sample the model's latents alone; got a "
                "draw of this site, while the model observes it. Write: poutine.condition(guide, "
                f"data={{'{name}': ...}}) with what the model is conditioned on, or "
                f"poutine.block(guide, hide=['{name}'])."
            )


def check_shapes(*traces: Trace) -> None:
    """Raise if a site of a trace without particles has a batch dim that is in no plate.

    Args:
        *traces: Traces that ran with one particle.

    Raises:
        ValueError: If there is such a site, or its value is outside the support.
    """
    for trace in traces:
        for _, site in sample_sites(trace):
            check_shape(site, site_log_prob(site).shape)


def explain_failure(error: Exception, pair: Pair, *, particles: int) -> None:
    """Raise a plainer error if the plates explain why a pair failed; else add a note on particles.

    Args:
        error: What was raised when model and guide were run.
        pair: The pair.
        particles: Number of particles that it ran with.

    Raises:
        ValueError: If a plate has another size in the guide than in the model, or the guide is
            given a value that the model is to draw.
    """
    try:
        with torch.no_grad(), poutine.block():
            guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
            model_trace = poutine.trace(pair.model).get_trace(*pair.args, **pair.kwargs)
    except Exception:
        return
    guide_sites = dict(sample_sites(guide_trace))
    for name, site in sample_sites(model_trace):
        if name in guide_sites and not site["is_observed"]:
            try:
                _check_given(name, guide_sites[name])
                _check_sizes(name, site, guide_sites[name])
                _check_values(name, site, guide_sites[name])
            except ValueError as plain:
                raise plain from error
    if particles > 1 and of_batch_dims(error) and _runs_alone(pair):
        error.add_note(
            f"The model ran with {particles} particles in a batch dim left of its plates. "
            "With num_particles=1 it runs, so a line of it counts dims from the left or drops "
            "one: write (x * w).sum(-1) for x @ w, x.flatten(-2) for x.view(n, -1), "
            "u[..., index] for u[index], dim=-1 for dim=1, z.sum(-1, keepdim=True) for a sum over "
            "a plate. Or run one draw at a time: num_particles=1, and chunk_size=1 in the "
            "diagnostics that take it."
        )


def _runs_alone(pair: Pair) -> bool:
    """Tell whether the pair runs, and can be scored, with one particle."""
    try:
        with torch.no_grad(), poutine.block():
            guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
            replayed = poutine.replay(pair.model, trace=guide_trace)
            check_shapes(poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs))
    except Exception:
        return False
    return True


def _check_sizes(name: str, model_site: Any, guide_site: Any) -> None:
    sizes = {frame.name: frame.full_size or frame.size for frame in plate_frames(guide_site)}
    for frame in plate_frames(model_site):
        full_size = frame.full_size or frame.size
        size = sizes.get(frame.name, full_size)
        if size != full_size:
            raise ValueError(
                f"site '{name}': expected plate '{frame.name}' to have {full_size} elements, as "
                f"in the model; got a guide that was built for {size}. Write: "
                "px.AutoPerDatapoint(model) for mini-batches of the same data, "
                "px.AutoAmortized(model, encoder), which follows the size, or build a new guide."
            )


def _check_given(name: str, guide_site: Any) -> None:
    if guide_site["is_observed"]:
        raise ValueError(
            f"site '{name}': expected the guide to sample what the model does not observe; got a "
            f"value that is given. Write: poutine.condition(model, data={{'{name}': ...}}) with "
            "what the guide is conditioned on."
        )


def _check_values(name: str, model_site: Any, guide_site: Any) -> None:
    """Raise if the guide draws fewer or other values than the model has: they would broadcast."""
    expected, drawn = tuple(model_site["fn"].event_shape), tuple(guide_site["fn"].event_shape)
    if drawn != expected:
        raise ValueError(
            f"site '{name}': expected the guide to draw values of event shape {expected}, as the "
            f"model does; got {drawn}. Write: pyro.sample('{name}', ...) in the guide with a "
            "distribution of that event shape, by .to_event(...); for an automatic guide a new "
            "one, as the model had another shape when it was set up."
        )
    batch = guide_site["fn"].batch_shape
    for frame in plate_frames(model_site):
        size = batch[frame.dim] if len(batch) >= -frame.dim else 1
        if size != frame.size:
            raise ValueError(
                f"site '{name}': expected the guide to draw a value for each of the {frame.size} "
                f"elements of plate '{frame.name}', as the model does; got {size} in dim "
                f"{frame.dim}. Write: with pyro.plate('{frame.name}', ...) around "
                f"pyro.sample('{name}', ...) in the guide, too."
            )


def _without(site: Any) -> str:
    """Return how a model can do without a latent that the guide leaves out."""
    if not site["fn"].has_enumerate_support:
        return "obs= with the data in the model"
    return (
        "sum it out: dist.MixtureSameFamily in the model, for every loss and diagnostic of "
        "pyro_ext, or pyro.infer.SVI with TraceEnum_ELBO(), which alone enumerates"
    )


def _names(sites: dict[str, Any]) -> list[str]:
    return [name for name, site in sites.items() if not site["infer"].get("is_auxiliary")]
