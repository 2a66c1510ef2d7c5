"""Guides side by side: one table, one verdict each, and figures."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyro_ext.autoguide import AutoJoint, AutoPerDatapoint, AutoSemiAmortized
from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.diagnostics._passes import inspect, points_of, progress, wholes
from pyro_ext.diagnostics._reference import distance, to_reference
from pyro_ext.diagnostics._result import Result
from pyro_ext.diagnostics._target import Fitted, resolve, undisturbed
from pyro_ext.diagnostics._types import DataTree
from pyro_ext.diagnostics.calibration import sbc
from pyro_ext.diagnostics.comparison import Comparison
from pyro_ext.diagnostics.datatree import to_datatree
from pyro_ext.diagnostics.distances import measure
from pyro_ext.diagnostics.evidence import Evidence, bounds_of
from pyro_ext.diagnostics.gaps import Gaps
from pyro_ext.diagnostics.gaps import gaps as split_gaps
from pyro_ext.structure import identity
from pyro_ext.training.batches import arguments
from pyro_ext.training.snapshot import digest

__all__ = ["compare"]

_KEPT_SCALARS = 2**22
_KEPT_SCALARS_FOR_MOMENTS = 2**25
_MIN_KEPT = 50
_JOINT_PARTICLES = 10


def compare(
    runs: Mapping[str, Fitted],
    reference: Any = None,
    *,
    exact_evidence: float | Tensor | None = None,
    held_out: Any = None,
    gaps: bool = False,
    num_simulations: int = 0,
    num_samples: int = 4000,
    num_particles: int | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Hold fitted guides against each other, and against a reference.

    All guides are evaluated on the same random numbers. Where the runs learned a model as well,
    each bound is that of its own model.

    Args:
        runs: What ``px.fit`` returned, by name.
        reference: Draws ``{"mu": (S, ...)}``, a DataTree, a ``pyro.infer.MCMC``, or exact moments
            ``{"mu": (mean, sd)}``.
        exact_evidence: Exact log evidence, for the figure of bounds.
        held_out: Held-out data (the model's argument, or a tuple of them) for the guides that can
            be used on them as they are; or runs that were fitted to them, by name.
        gaps: Whether to split each gap into approximation and amortization, by fitting the family
            to each datum (automatic guides only).
        num_simulations: Number of simulations that calibration is checked with; 0 for none.
        num_samples: Number of draws.
        num_particles: K of the IWAE bound; by default 10, or ``num_samples`` if each datapoint has
            weights of its own.
        chunk_size: Largest number of (draw, row of the data) pairs computed at a time.
        seed: Seed; the caller's random state stays as it was.

    Raises:
        ValueError: If there are no runs, or the reference does not fit.

    Example:
        >>> from pyro_ext.testing.conjugate import NormalGlobal
        >>> exact = NormalGlobal(torch.tensor([0.0, 2.0]))
        >>> guide = px.AutoJoint(exact.model)
        >>> run = px.fit(exact.model, guide, data=exact.x, num_steps=1500, seed=0)
        >>> comparison = compare({"mean field": run}, exact_evidence=exact.log_evidence())
        >>> list(comparison.figures)
        ['bounds', 'ladder', 'k_hat', 'marginals']
    """
    if not isinstance(runs, Mapping) or not runs:
        raise ValueError(
            f"compare: expected a dict of runs by name; got {type(runs).__name__}"
            f"{' without entries' if isinstance(runs, Mapping) else ''}. "
            "Write: px.compare({'mean field': run})."
        )
    for name, run in runs.items():
        if not isinstance(name, str):
            raise TypeError(
                f"compare: expected names of runs to be texts; got {name!r}. Write: "
                f"px.compare({{'{name}': run}})."
            )
        if not isinstance(run, Fitted):
            raise TypeError(
                f"compare: expected '{name}' to be a run, what px.fit returns; got "
                f"{type(run).__name__}. Write: px.compare({{'{name}': px.fit(...)}})."
            )
    num_samples, num_simulations = wholes(
        "compare", num_samples=num_samples, num_simulations=num_simulations
    )
    found = None if reference is None else to_reference(reference)
    if num_particles is None:
        local = any(_is_local(run, seed) for run in runs.values())
        num_particles = num_samples if local else min(_JOINT_PARTICLES, num_samples)
    (num_particles,) = wholes("compare", num_particles=num_particles)
    if not 1 <= num_particles <= num_samples:
        raise ValueError(
            f"compare: expected 1 <= num_particles <= num_samples; got {num_particles} and "
            f"{num_samples}. Write: num_samples={10 * num_particles}."
        )
    settings: dict[str, Any] = {
        "num_particles": num_particles,
        "num_repeats": num_samples // num_particles,
        "chunk_size": chunk_size,
        "seed": seed,
    }
    results = {}
    with progress(len(runs), "compare") as bar:
        for name, run in runs.items():
            bar.set_postfix_str(name)
            bounds = bounds_of(resolve("compare", run), **settings)
            tree = _draws(run, num_samples, chunk_size, seed, moments=found is not None)
            results[name] = Result(
                evidence=bounds,
                tree=tree,
                distance=None if found is None else distance(tree, found),
                held_out=_held_out(name, run, held_out, settings),
                seconds=getattr(run, "seconds", None),
                num_params=_num_params(run.guide),
                distances=None if found is None else measure(tree, found, seed),
                gaps=_gaps(run, chunk_size, seed) if gaps else None,
                calibration=sbc(run, num_simulations=num_simulations, seed=seed)
                if num_simulations
                else None,
                points=_points(run, seed),
                posterior=(*identity(run.model), digest(run.args)),
            )
            bar.update()
    return Comparison(results, found, None if exact_evidence is None else float(exact_evidence))


def _is_local(run: Fitted, seed: int) -> bool:
    target = resolve("compare", run)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
    return layout.only_locals


def _draws(
    run: Fitted, num_samples: int, chunk_size: int | None, seed: int, *, moments: bool
) -> DataTree:
    """Draw as many as fit into a file of moderate size."""
    target = resolve("compare", run)
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
    budget = _KEPT_SCALARS_FOR_MOMENTS if moments else _KEPT_SCALARS
    fitting = max(_MIN_KEPT, budget // (layout.width * layout.size))
    return to_datatree(
        run,
        num_samples=min(num_samples, fitting),
        chunk_size=chunk_size,
        seed=seed,
        predictive=fitting >= num_samples,
    )


def _points(run: Fitted, seed: int) -> tuple[str, ...]:
    target = resolve("compare", run)
    with undisturbed(target, seed):
        return tuple(points_of(target))


def _held_out(name: str, run: Fitted, held_out: Any, settings: dict[str, Any]) -> Evidence | None:
    if held_out is None:
        return None
    if isinstance(held_out, Mapping):
        if name not in held_out:
            return None
        return bounds_of(resolve("compare", held_out[name]), **settings)
    if isinstance(run.guide, AutoJoint | AutoPerDatapoint | AutoSemiAmortized):
        return None
    return bounds_of(resolve("compare", run.model, run.guide, arguments(held_out)), **settings)


def _gaps(run: Fitted, chunk_size: int | None, seed: int) -> Gaps | None:
    if not isinstance(run.guide, PackedGuide):
        return None
    return split_gaps(run, chunk_size=chunk_size, seed=seed)


def _num_params(guide: Any) -> int | None:
    if isinstance(getattr(guide, "num_params", None), int):
        return int(guide.num_params)
    if isinstance(guide, nn.Module):
        return sum(p.numel() for p in guide.parameters() if p.requires_grad)
    return None
