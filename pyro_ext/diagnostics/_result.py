"""What a comparison finds about one guide."""

from dataclasses import dataclass

from pyro_ext.diagnostics._reference import Distance
from pyro_ext.diagnostics._types import DataTree
from pyro_ext.diagnostics.calibration import Calibration
from pyro_ext.diagnostics.distances import Distances
from pyro_ext.diagnostics.evidence import Evidence
from pyro_ext.diagnostics.gaps import Gaps

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
        distances: All distances to the reference, if there is one.
        gaps: Approximation and amortization gap, if asked for.
        calibration: Ranks of simulated truths, if asked for.
        points: Latents that the guide has at a point, so that it has no posterior of them.
        posterior: Of which model and data, so that guides of one posterior are known.
    """

    evidence: Evidence
    tree: DataTree
    distance: Distance | None
    held_out: Evidence | None
    seconds: float | None
    num_params: int | None
    distances: Distances | None = None
    gaps: Gaps | None = None
    calibration: Calibration | None = None
    points: tuple[str, ...] = ()
    posterior: tuple[int, int, str] | None = None
