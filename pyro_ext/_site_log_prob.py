"""Log density of a site of a trace, kept where it has to be computed early."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_ext._errors import out_of_memory
from pyro_ext._precision import full_precision, is_half, widened
from pyro_ext._unchecked import is_unchecked, without_checks
from pyro_ext.structure import plate_frames, sample_sites

__all__ = ["check_shape", "score", "set_log_prob", "site_log_prob", "unmask", "unmask_drawn"]

_SCORED = "_pyro_ext_log_prob"


def site_log_prob(site: Any) -> Tensor:
    """Return log p of a site, masked, not scaled, in single precision or better.

    Raises:
        ValueError: If its value is not, or of a kind that its distribution does not take.
    """
    if _SCORED in site:
        known: Tensor = site[_SCORED]
        return known
    name, value = site["name"], site["value"]
    if is_half(value):
        raise ValueError(
            f"site '{name}': expected a value in single precision or better, for its density to "
            f"mean something; got {value.dtype}. Write: network(x).float() for what a network "
            "under torch.autocast returns."
        )
    try:
        with full_precision():
            fn = without_checks(site["fn"])
            log_prob = widened(fn.log_prob(value, *site["args"], **site["kwargs"]))
    except (ValueError, TypeError, RuntimeError) as error:
        if not is_unchecked() and not out_of_memory(error):  # which another try may hide
            _explain_kind(site, error)
        if isinstance(error, ValueError):
            raise ValueError(f"site '{name}': {error}") from error
        raise
    masked: Tensor = scale_and_mask(log_prob, mask=site["mask"])
    return masked


def _explain_kind(site: Any, error: Exception) -> None:
    """Raise if a value is of a kind that its distribution stumbled over.

    Raises:
        ValueError: If it is no tensor, or if it were taken as floating-point numbers.
    """
    name, value = site["name"], site["value"]
    if not isinstance(value, Tensor):
        write = "torch.as_tensor(x)"
        if hasattr(value, "to_numpy"):
            write = "torch.as_tensor(x.to_numpy())"
        elif isinstance(value, Mapping):
            write = "data['x'], one tensor of it"
        raise ValueError(
            f"site '{name}': expected a tensor as its value; got {type(value).__module__}."
            f"{type(value).__qualname__}. Write: {write}, for what the model is called with."
        ) from error
    if value.is_floating_point() or value.is_complex():
        return
    floats = value.to(torch.get_default_dtype())
    try:
        site["fn"].log_prob(floats, *site["args"], **site["kwargs"])
    except Exception:
        return
    else:
        raise ValueError(
            f"site '{name}': expected floating-point numbers as its value; got {value.dtype}, of "
            "which its distribution cannot compute the density. Write: x.float(), for what the "
            "model is called with."
        ) from error


def set_log_prob(site: Any, log_prob: Tensor) -> None:
    """Replace what ``site_log_prob`` returns for a site.

    Args:
        site: The site.
        log_prob: Another quantity of the same expectation, one for each element of its plates; it
            is masked here.
    """
    site[_SCORED] = scale_and_mask(log_prob, mask=site["mask"])


def score(trace: Trace) -> None:
    """Compute every site's log_prob now, for ``site_log_prob`` to return later.

    What is stopped for a while must be scored in that while: a distribution may hold the parameter
    itself.

    Args:
        trace: The trace; its sites keep the result.
    """
    for _, site in sample_sites(trace):
        site[_SCORED] = site_log_prob(site)


def unmask_drawn(model_trace: Trace, guide_trace: Trace) -> None:
    """Let the prior count for the latents whose density in the guide counts, see ``unmask``.

    Args:
        model_trace: Trace of the model.
        guide_trace: Trace of the guide.
    """
    unmask(model_trace, [n for n, site in sample_sites(guide_trace) if not _is_masked(site)])


def unmask(model_trace: Trace, drawn: Iterable[str]) -> None:
    """Let the prior count for latents that a mask of rows hides and that a guide draws.

    Where the guide's density counts and the prior's does not, log p - log q has no upper limit;
    with both a latent that no datum depends on adds nothing. ``mask=False`` on a whole site, which
    asks for a flat prior, is left alone.

    Args:
        model_trace: Trace of the model.
        drawn: Names of the latents whose density in the guide counts.
    """
    nodes: dict[str, Any] = model_trace.nodes
    for name in drawn:
        if name not in nodes:
            continue
        site = nodes[name]
        if isinstance(site["mask"], Tensor):
            site["mask"] = None
        site["fn"] = _without_mask(site["fn"])


def _is_masked(site: Any) -> bool:
    """Tell whether a mask hides some of a site's density, around it or on its distribution."""
    return site["mask"] is not None or _without_mask(site["fn"]) is not site["fn"]


def _without_mask(fn: Any) -> Any:
    if isinstance(fn, dist.Independent):
        base = _without_mask(fn.base_dist)
        same = base is fn.base_dist
        return fn if same else base.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution) and isinstance(fn._mask, Tensor):
        return _without_mask(fn.base_dist)
    return fn


def check_shape(site: Any, shape: Sequence[int], lead: int = 0) -> None:
    """Raise if a site's log_prob has a batch dim that no plate accounts for.

    Args:
        site: A site of a trace.
        shape: Shape of its log_prob.
        lead: Number of particle dims on the left of all plates, which are left alone.

    Raises:
        ValueError: If a dim is too large; the message names the site.
    """
    plates = {frame.dim: frame for frame in plate_frames(site)}
    for dim in range(-len(shape) + lead, 0):
        expected = plates[dim].size if dim in plates else 1
        if shape[dim] not in (1, expected) and expected >= 0:
            sizes = {frame.name: frame.size for frame in plates.values()}
            raise ValueError(
                f"site '{site['name']}': expected one log_prob for each element of its plates "
                f"{sizes}; got shape {tuple(shape)}, with {shape[dim]} elements in dim {dim}. "
                "Write: .to_event(1), which makes the surplus dim part of the event, or a "
                "pyro.plate around it, or data of the shape that the plates say."
            )
