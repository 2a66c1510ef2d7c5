"""What a comparison finds about one guide."""

from dataclasses import dataclass

from pyro_ext.diagnostics._reference import Distance
from pyro_ext.diagnostics._types import DataTree
from pyro_ext.diagnostics.evidence import Evidence

__all__ = ["Result"]


@dataclass(frozen=True, eq=False)
class Result:
    """What was found about one guide.

    Args:
        evidence: Bounds, evidence and k-hat.
        tree: Draws.
        distance: Distance to the reference, if there is one.
        held_out: Bounds on held-out data, if there are such and the guide can be used on them.
        seconds: Seconds of the fit, or None if not known.
        num_params: Number of the guide's parameters, or None if not known.
    """

    evidence: Evidence
    tree: DataTree
    distance: Distance | None
    held_out: Evidence | None
    seconds: float | None
    num_params: int | None
