"""Log weights in chunks of particles and of rows, all of them, in bounded memory."""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from tqdm.auto import tqdm

from pyro_ext._progress import hidden
from pyro_ext._whole import whole
from pyro_ext.diagnostics._target import Target, WholePlates
from pyro_ext.minibatch import MiniBatch, has_rows, rows_of
from pyro_ext.structure import is_delta, sample_sites
from pyro_ext.weights import LogWeights, log_weights

__all__ = [
    "Layout",
    "check_draws",
    "inspect",
    "joint_weights",
    "local_weights",
    "only_rows",
    "pairs_per_pass",
    "particles_per_pass",
    "points_of",
    "progress",
    "sizes_of_passes",
    "wholes",
]

_SCALARS = 2**22
_MIN_ROWS = 16


@dataclass(frozen=True)
class Layout:
    """Shape of a target, as far as chunks are concerned.

    Args:
        names: Plates of the datapoints' weights; several independent sets are one, flattened.
        axis: Which of them holds the rows.
        size: Number of rows; 1 if there is no data plate.
        rows: How a chunk of rows is shown: ``"sliced"`` arguments, ``"indexed"`` plate, or None.
        width: Scalars of the largest site per particle and row.
        plates: The plates that the model subsamples.
        has_globals: Whether there are latents outside the data plates.
        has_locals: Whether each datapoint has a weight of its own.
        sets: The plates of each independent set of datapoints.
    """

    names: tuple[str, ...]
    axis: int
    size: int
    rows: str | None
    width: int
    plates: WholePlates
    has_globals: bool
    has_locals: bool = True
    sets: tuple[tuple[str, ...], ...] = ()

    @property
    def only_locals(self) -> bool:
        """Whether all latents are those of datapoints."""
        return self.has_locals and not self.has_globals

    @property
    def each_alone(self) -> bool:
        """Whether all latents lie in one set of plates: a datum's are independent of the rest."""
        return self.only_locals and "+" not in self.names[0]


def inspect(target: Target, plates: WholePlates) -> Layout:
    """Run the target once, on all its data, and return its layout.

    Args:
        target: What will be run.
        plates: What ``undisturbed`` yields.
    """
    weights = log_weights(target.model, target.guide, *target.args, **target.kwargs)
    if points := points_of(target, weights.guide_trace):
        warnings.warn(
            f"the guide has {points} at a point: k-hat, ELBO and evidence are those of the others "
            "given that point, times its prior density, and say nothing about its posterior. "
            "Write: px.AutoJoint(model), for a distribution.",
            stacklevel=1,  # said once, wherever it comes from
        )
    traces = (weights.model_trace, weights.guide_trace)
    largest = max(site["value"].numel() for trace in traces for _, site in sample_sites(trace))
    local = [term for term in weights.terms if term.plates]
    has_globals = len(local) < len(weights.terms)
    sets = tuple(term.plates for term in local)
    if not local:
        return Layout((), 0, 1, None, largest, plates, has_globals=has_globals, has_locals=False)
    if len(local) > 1:
        size = sum(term.log_p[0].numel() for term in local)
        name = "+".join(",".join(term.plates) for term in local)
        width = math.ceil(largest / size)
        return Layout((name,), 0, size, None, width, plates, has_globals=has_globals, sets=sets)
    names, shape = local[0].plates, local[0].log_p.shape[1:]
    axis = _row_axis(target, names, tuple(shape))
    size, rows = shape[axis], None
    if names[axis] in plates.subsampled:
        rows = "indexed"
    elif any(has_rows(value, size) for value in (*target.args, *target.kwargs.values())):
        rows = "sliced"
    width = math.ceil(largest / size)
    layout = Layout(names, axis, size, rows, width, plates, has_globals=has_globals, sets=sets)
    if rows is not None and not _rows_can_be_cut(target, layout, weights):
        return replace(layout, rows=None)
    return layout


def joint_weights(
    target: Target, layout: Layout, num: int, chunk_size: int | None
) -> Iterator[LogWeights]:
    """Yield joint weights of all data, ``num`` particles in all.

    Args:
        target: What to run.
        layout: Its layout.
        num: Number of particles.
        chunk_size: Largest number of (particle, row) pairs at a time; None for four million
            scalars in the largest site.
    """
    step = particles_per_pass(layout, chunk_size)
    for start in range(0, num, step):
        count = min(step, num - start)
        weights = log_weights(
            target.model,
            target.guide,
            *target.args,
            num_particles=count,
            joint=True,
            **target.kwargs,
        )
        if start == 0 and (plate := weights.terms[0].subsampled) is not None:
            warnings.warn(
                f"the model shows a part of plate '{plate}' by its own subsample=. What is shown "
                "counts for all: log p(x, z) is neither that of the part nor that of the data. "
                f"Write: subsample=None in plate '{plate}', and all its data, or "
                "subsample_size=B, which draws B of them.",
                stacklevel=3,
            )
        yield weights


def particles_per_pass(layout: Layout, chunk_size: int | None) -> int:
    """Return how many particles of all rows go into one pass.

    Args:
        layout: Layout of the target.
        chunk_size: Largest number of (particle, row) pairs; None for the default.
    """
    return max(1, pairs_per_pass(layout, chunk_size) // layout.size)


def local_weights(
    target: Target, layout: Layout, num: int, chunk_size: int | None
) -> Iterator[Tensor]:
    """Yield log weights of the datapoints, a chunk of rows at a time, ``(num, *plates)``.

    Given global latents, all weights of a chunk are those given one draw of them.

    Args:
        target: What to run.
        layout: Its layout.
        num: Number of particles.
        chunk_size: Largest number of (particle, row) pairs at a time.
    """
    pairs = pairs_per_pass(layout, chunk_size)
    rows = layout.size
    if layout.rows is not None:
        rows = min(layout.size, max(pairs // num, 1 if layout.has_globals else _MIN_ROWS))
    step = num if layout.has_globals else max(1, pairs // rows)
    for chunk in torch.arange(layout.size, device="cpu").split(rows):
        parts = [
            _local_pass(target, layout, chunk, min(step, num - start))
            for start in range(0, num, step)
        ]
        yield torch.cat(parts)


def sizes_of_passes(num: int, largest: int) -> list[int]:
    """Return the sizes of passes of at least two, as one particle alone has no dim.

    Args:
        num: Number of particles in all.
        largest: Number of particles in a pass, but for the last one.
    """
    sizes = [len(part) for part in torch.arange(num, device="cpu").split(largest)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def progress(total: int, what: str) -> "tqdm[Any]":
    """Return a bar that shows after two seconds, and never if the output is no terminal.

    Args:
        total: Units of work.
        what: What is being done.
    """
    return tqdm(total=total, desc=what, delay=2, disable=hidden(), leave=False, unit_scale=True)


def points_of(target: Target, trace: Trace | None = None) -> list[str]:
    """Return the latents that the guide has at one point, where there is no posterior to judge.

    Args:
        target: Whose guide to look at.
        trace: A trace of the guide, if there is one.
    """

    def deltas(found: Trace) -> dict[str, Any]:
        sites = [(name, site) for name, site in sample_sites(found) if not site["is_observed"]]
        return {n: site["value"] for n, site in sites if is_delta(site) and site["value"].numel()}

    def run() -> Trace:
        return poutine.trace(target.guide).get_trace(*target.args, **target.kwargs)

    first = deltas(run() if trace is None else trace)
    if not first:
        return []
    # Functions of draws, as the sites of an automatic guide are, have another value now.
    with torch.random.fork_rng(devices=target.devices()):
        again = deltas(run())
    return [name for name, value in first.items() if torch.equal(value, again[name])]


def _local_pass(target: Target, layout: Layout, chunk: Tensor, count: int) -> Tensor:
    with only_rows(target, layout, chunk) as part:
        weights = log_weights(
            part.model, part.guide, *part.args, num_particles=count, **part.kwargs
        )
    local = [term.log_w for term in weights.terms if term.plates]
    if len(local) > 1:
        return torch.cat([log_w.reshape(count, -1) for log_w in local], 1).cpu()
    return local[0].cpu()


@contextmanager
def only_rows(target: Target, layout: Layout, chunk: Tensor) -> Iterator[Target]:
    """Yield the target with the arguments with which model and guide see the rows of a chunk.

    Args:
        target: What will be run.
        layout: Its layout.
        chunk: The rows.
    """
    args, kwargs = target.args, target.kwargs
    with ExitStack() as stack:
        if len(chunk) < layout.size:
            sliced, name = layout.rows == "sliced", layout.names[layout.axis]
            if sliced:
                args = rows_of(args, chunk, layout.size)
                cut = rows_of(tuple(kwargs.values()), chunk, layout.size)
                kwargs = dict(zip(kwargs, cut, strict=True))
            else:
                layout.plates.shown[name] = len(chunk)
                stack.callback(layout.plates.shown.clear)
            stack.enter_context(MiniBatch(name, layout.size, chunk, sliced=sliced))
        yield replace(target, args=args, kwargs=kwargs)


def _rows_can_be_cut(target: Target, layout: Layout, whole: LogWeights) -> bool:
    """Tell whether the last rows alone have the weights that they have among all rows.

    They have not where model or guide hold a table of all rows that they index by position.
    """
    if layout.size < 2:
        return False
    plate = layout.names[layout.axis]
    chunk = torch.arange(layout.size, device="cpu")[-min(_MIN_ROWS, layout.size // 2) :]
    drawn = Trace()
    for name, site in sample_sites(whole.guide_trace):
        node = dict(site)
        for frame in site["cond_indep_stack"]:
            axis = frame.dim - site["fn"].event_dim if frame.name == plate else 0
            if axis and site["value"].shape[axis] == layout.size:
                node["value"] = node["value"].index_select(axis, chunk.to(node["value"].device))
        drawn.add_node(name, **node)
    replayed = replace(target, guide=poutine.replay(target.guide, trace=drawn))
    try:
        with only_rows(replayed, layout, chunk) as part:
            alone = log_weights(part.model, part.guide, *part.args, **part.kwargs)
    except Exception:
        return False
    pairs = [
        next(term.log_w for term in weights.terms if term.plates) for weights in (alone, whole)
    ]
    expected = pairs[1].index_select(1 + layout.axis, chunk.to(pairs[1].device))
    return pairs[0].shape == expected.shape and torch.allclose(
        pairs[0], expected, rtol=1e-3, atol=1e-3
    )


def wholes(owner: str, **numbers: Any) -> list[int]:
    """Return numbers of draws, chains or the like as ints, ``1e4`` and NumPy's, too.

    Args:
        owner: Name of the diagnostic, for messages.
        **numbers: The numbers by name.

    Raises:
        TypeError: If one is no whole number.
    """
    return [whole(n, name, write=f"{name}=100", owner=owner) for name, n in numbers.items()]


def check_draws(owner: str, num_samples: int, least: int) -> int:
    """Return the number of draws as an int.

    Args:
        owner: Name of the diagnostic, for messages.
        num_samples: Number of draws.
        least: How few will do.

    Raises:
        ValueError: If they are fewer.
    """
    (num_samples,) = wholes(owner, num_samples=num_samples)
    if num_samples < least:
        raise ValueError(
            f"{owner}: expected num_samples >= {least}; got {num_samples}. Write: "
            "num_samples=1000."
        )
    return num_samples


def pairs_per_pass(layout: Layout, chunk_size: int | None) -> int:
    """Return how many (particle, row) pairs go into one pass.

    Args:
        layout: Layout of the target.
        chunk_size: What the caller asked for; None for four million scalars in the largest site.

    Raises:
        ValueError: If it is less than 1.
    """
    if chunk_size is None:
        return max(1, _SCALARS // layout.width)
    (chunk_size,) = wholes("diagnostics", chunk_size=chunk_size)
    if chunk_size < 1:
        raise ValueError(
            "diagnostics: expected chunk_size >= 1, the (draw, row) pairs at a time; got "
            f"{chunk_size}. Write: chunk_size=None, for a size that fits in memory."
        )
    return chunk_size


def _row_axis(target: Target, names: tuple[str, ...], shape: tuple[int, ...]) -> int:
    """Return which plate holds the rows: the guide's, else the one of the data's size."""
    plate = getattr(target.guide, "plate", None)
    if plate in names:
        return names.index(plate)
    for axis, size in enumerate(shape):
        if any(has_rows(value, size) for value in target.args):
            return axis
    return 0
