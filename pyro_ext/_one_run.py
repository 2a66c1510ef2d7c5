"""What is read off the runs of a model for one particle, by torch.func.vmap or one by one."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_ext._site_log_prob import site_log_prob
from pyro_ext._supports import bounds
from pyro_ext._unchecked import is_unchecked
from pyro_ext.structure import sample_sites

__all__ = ["Run", "Unrecorded", "alike", "mapped", "read", "subsamples"]

_Entries = dict[tuple[str, str], Tensor]


class Unrecorded(RuntimeError):
    """A graph is to be made of runs that are put together by looking at their values."""


@dataclass(frozen=True)
class Run:
    """What is known of the sites of one run, or of all runs, with a row for each.

    Args:
        names: Names of the sites.
        entries: By site, its ``"log_prob"``; where it is not 1 or None its ``"scale"`` and
            ``"mask"``; the ``"value"`` of a deterministic site, of data that are not those of the
            first run, and of draws; and ``"bound 0"`` and so on, of the support.
    """

    names: frozenset[str]
    entries: _Entries

    def get(self, name: str, what: str, missing: Any = None) -> Any:
        """Return an entry.

        Args:
            name: The site.
            what: Which of its entries.
            missing: What to return if there is none.
        """
        return self.entries.get((name, what), missing)

    @staticmethod
    def stacked(runs: list["Run"], first: Trace) -> "Run":
        """Return all runs as one.

        Args:
            runs: The runs.
            first: Trace of the first of them.

        Raises:
            ValueError: If their sites are not the same.
        """
        names = runs[0].names
        for run in runs:
            for other in sorted(names ^ run.names):
                raise ValueError(
                    f"site '{other}': expected the same sites in each draw; got it in some alone. "
                    "Write: the site in each, with poutine.mask(mask=...) where it does not count."
                )
        nodes: dict[str, Any] = first.nodes
        entries: _Entries = {}
        for key in set().union(*(run.entries for run in runs)):
            name, what = key
            one = next(run.entries[key] for run in runs if key in run.entries)
            default = nodes[name]["value"] if what == "value" else torch.ones_like(one)
            entries[key] = torch.stack([run.entries.get(key, default) for run in runs])
        return Run(names, entries)


def subsamples(trace: Trace) -> list[str]:
    """Return the names of the sites by which plates choose their elements.

    Args:
        trace: A trace.
    """
    nodes: dict[str, Any] = trace.nodes
    return [n for n, s in nodes.items() if s["type"] == "sample" and site_is_subsample(s)]


def alike(rows: Any) -> bool:
    """Tell whether all rows are equal; what has none, as it is known of all runs, is.

    Args:
        rows: A tensor with a row for each run, or anything else.

    Raises:
        Unrecorded: If a graph is made, and values would have to be looked at.
    """
    if not isinstance(rows, Tensor) or not rows.dim() or rows.stride(0) == 0:
        return True
    if is_unchecked():
        raise Unrecorded
    first = rows[:1]
    return bool(((rows == first) | ((rows != rows) & (first != first))).all())


def read(trace: Trace, first: Trace, given: Container[str]) -> Run:
    """Return what is known of a run.

    Args:
        trace: Its trace.
        first: Trace of the first run.
        given: Names of the sites whose values are known anyway.
    """
    nodes: dict[str, Any] = trace.nodes
    scored = {name for name, _ in sample_sites(trace)}
    skipped = set(subsamples(trace))
    names = {n for n, s in nodes.items() if s["type"] == "sample"} - skipped
    entries: _Entries = {}
    for name in names:
        site, value = nodes[name], nodes[name]["value"]
        known = first.nodes[name]["value"] if name in first.nodes else None
        if name not in scored or (
            value is not known if site["is_observed"] else name not in given
        ):
            entries[name, "value"] = value
        if name not in scored:
            continue
        entries[name, "log_prob"] = site_log_prob(site)
        if site["mask"] is not None:
            entries[name, "mask"] = torch.as_tensor(site["mask"])
        if isinstance(site["scale"], Tensor) or site["scale"] != 1.0:
            entries[name, "scale"] = torch.as_tensor(site["scale"])
        if not site["is_observed"]:
            for index, bound in enumerate(bounds(site["fn"].support)):
                if isinstance(bound, Tensor):
                    entries[name, f"bound {index}"] = bound
    return Run(frozenset(names), entries)


def mapped(
    run: Callable[[dict[str, Tensor]], Trace], values: dict[str, Tensor], first: Trace
) -> Run | None:
    """Run a model for all particles by ``torch.func.vmap``; None if that is not what each says.

    Args:
        run: From the values of one particle to a trace.
        values: The values of all, with a row for each.
        first: Trace of the first particle.
    """
    expected = read(first, first, values)

    def single(own: dict[str, Tensor]) -> tuple[_Entries, Tensor]:
        with _Noted() as noted:
            found = read(run(own), first, values)
        if found.names != expected.names:
            raise ValueError  # another branch
        return found.entries, noted.valid()

    try:
        entries, valid = torch.func.vmap(single)(values)
    except Exception:
        return None
    if is_unchecked():  # whoever makes a graph proves it
        return Run(expected.names, entries) if entries.keys() >= expected.entries.keys() else None
    sound = bool(valid.all()) and all(
        bool(rows.isfinite().all()) for (_, what), rows in entries.items() if what == "log_prob"
    )
    for key, value in expected.entries.items():
        sound = sound and key in entries and _close(entries[key][0], value)
    return Run(expected.names, entries) if sound else None


def _close(found: Tensor, value: Tensor) -> bool:
    if found.shape != value.shape or found.dtype != value.dtype:
        return False
    if not value.is_floating_point():
        return torch.equal(found, value)
    tol = 1e-8 if value.dtype == torch.float64 else 1e-4
    return torch.allclose(found, value, rtol=tol, atol=tol)


class _Noted(TorchFunctionMode):
    """Notes what distributions find of their parameters and values, where they cannot branch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._is_all_true:
            self.found.append(args[0].all())
            return True
        return func(*args, **(kwargs or {}))

    def valid(self) -> Tensor:
        """Tell whether all is as it must be."""
        return torch.stack(self.found).all() if self.found else torch.ones((), dtype=torch.bool)
