"""Simulation-based calibration: are a guide's intervals right on data from the model itself?"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_ext.autoguide import AutoAmortized, AutoJoint, AutoPerDatapoint, AutoSemiAmortized
from pyro_ext.diagnostics._arviz import build_tree
from pyro_ext.diagnostics._passes import inspect, progress, wholes
from pyro_ext.diagnostics._refined import refined
from pyro_ext.diagnostics._simulate import simulate
from pyro_ext.diagnostics._target import Fitted, resolve, undisturbed
from pyro_ext.diagnostics._types import Array, DataFrame, DataTree
from pyro_ext.structure import plate_frames
from pyro_ext.weights import log_weights

__all__ = ["Calibration", "sbc"]

_LEVEL = 0.01
_PROBS = (0.5, 0.8, 0.95)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of true latents among a guide's draws.

    Args:
        pit: By site, the share of draws below the truth, uniform if the guide is calibrated:
            shape ``(num_simulations, *event)``. Draws that equal it count in part, at random.
        scores: By site, (truth - mean) / sd, same shape.
        num_draws: Number of draws behind each rank.
        refits: Number of fits that were made.

    Example:
        >>> from pyro_ext.testing import NormalLocal
        >>> exact = NormalLocal(torch.zeros(200))
        >>> found = px.sbc(exact.model, exact.guide, exact.x, num_draws=99, seed=0)
        >>> found.pit["z"].shape, found.refits
        ((200,), 0)
    """

    pit: dict[str, Array]
    scores: dict[str, Array]
    num_draws: int
    refits: int

    @property
    def tree(self) -> DataTree:
        """The shares in a group ``prior_sbc``, as ``arviz_plots.plot_ecdf_pit`` reads them."""
        groups = {"prior_sbc": {name: values[None] for name, values in self.pit.items()}}
        dims = {
            name: [f"{name}_dim_{i}" for i in range(values.ndim - 1)]
            for name, values in self.pit.items()
        }
        return build_tree(groups, dims=dims, coords={}, attrs={"num_draws": self.num_draws})

    def coverage(self, prob: float) -> dict[str, Array]:
        """Return the share of truths inside the central interval of a probability.

        Args:
            prob: Probability of the interval.

        Returns:
            By site, of shape ``event``.
        """
        return {n: np.asarray((np.abs(2 * p - 1) <= prob).mean(0)) for n, p in self.pit.items()}

    @property
    def table(self) -> DataFrame:
        """One row a scalar: p-values of uniformity and symmetry, coverage, and what is wrong.

        A fault is named where its p-value, times the number of scalars, is at most 0.01.
        """
        from pandas import DataFrame as Frame

        rows = {}
        level = _LEVEL / sum(values[0].size for values in self.pit.values())
        for name, values in self.pit.items():
            flat = values.reshape(len(values), -1)
            scores = self.scores[name].reshape(len(values), -1)
            for column, place in enumerate(np.ndindex(values.shape[1:])):
                label = f"{name}{list(place)}" if place else name
                rows[label] = _row(flat[:, column], scores[:, column], level)
        return Frame.from_dict(rows, orient="index")

    @property
    def p_value(self) -> float:
        """Smallest p-value of uniformity of all scalars, corrected for their number."""
        values = self.table["p-value"]
        return min(1.0, float(values.min()) * len(values))

    @property
    def verdict(self) -> str:
        """What the ranks say, in plain words."""
        table = self.table
        if self.p_value > _LEVEL:
            return f"no fault found in {min(map(len, self.pit.values()))} simulations"
        worst = table["p-value"].astype(float).idxmin()
        return f"not calibrated: {worst} is {table.loc[worst, 'fault']}"

    def __str__(self) -> str:
        """The table and the verdict."""
        return f"{self.table.to_string(float_format='%.3f')}\n{self.verdict}"

    __repr__ = __str__  # as a console and a notebook show it


def sbc(
    model: Callable[..., Any] | Fitted,
    guide: Callable[..., Any] | None = None,
    *args: Any,
    num_simulations: int = 200,
    num_draws: int = 99,
    refit: Callable[..., Callable[..., Any]] | None = None,
    num_steps: int = 300,
    seed: int | None = None,
    **kwargs: Any,
) -> Calibration:
    r"""Check a guide by simulation: latents from the prior, data from them, and their rank.

    .. math:: \theta \sim p(\theta), \quad x \sim p(x \mid \theta), \quad
        \theta_1..\theta_L \sim q(\theta \mid x) \quad \Rightarrow \quad
        \#\{\theta_l < \theta\} \text{ uniform on } 0..L \text{ if } q = p(\theta \mid x)

    An amortized guide, or any function of the data, is called with the simulated data as it is;
    with latents of datapoints only, every datapoint is a simulation of its own, so that one fit is
    checked on thousands. The free parameters of the other automatic guides are fitted anew to each
    data set, from where the guide is. ``AutoAmortized`` with global latents, whose parameters are
    of the data that it was fitted to, wants a ``refit``: a warning says so.

    Args:
        model: A model, or what ``px.fit`` returned.
        guide: Its guide; left out with a run.
        *args: Arguments of both, which give the shapes; by default the run's.
        num_simulations: Number of simulated truths, at least.
        num_draws: Number L of draws from the guide.
        refit: From the simulated arguments to a fitted guide, to replace the above.
        num_steps: Steps of a fit.
        seed: Seed; the caller's random state stays as it was.
        **kwargs: Keyword arguments of both.

    Raises:
        ValueError: If an observed site's values are no argument of the model.

    References:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al.,
        2018) | https://arxiv.org/abs/1804.06788
        Yes, but Did It Work?: Evaluating Variational Inference (Yao et al., 2018) |
        https://arxiv.org/abs/1802.02538

    Example:
        >>> from pyro_ext.testing.conjugate import NormalLocal
        >>> exact = NormalLocal(torch.zeros(200))
        >>> sbc(exact.model, exact.guide, exact.x, seed=0).verdict
        'no fault found in 200 simulations'
    """
    num_simulations, num_draws = wholes(
        "sbc", num_simulations=num_simulations, num_draws=num_draws
    )
    if num_simulations < 2 or num_draws < 2:
        raise ValueError(
            f"sbc: expected num_simulations >= 2 and num_draws >= 2; got {num_simulations} and "
            f"{num_draws}. Write: num_simulations=200, num_draws=99."
        )
    target = resolve("sbc", model, guide, args, kwargs)
    free = isinstance(target.guide, AutoJoint | AutoPerDatapoint | AutoSemiAmortized)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with undisturbed(target, seed) as plates:
        layout = inspect(target, plates)
        if refit is None:
            _warn_of_globals(target.guide)
        of_rows = layout.sets if layout.only_locals else None
        sets, done = 0, 0
        with progress(num_simulations, "calibration") as bar:
            while done < num_simulations:
                drawn = simulate("sbc", target)
                fitted = target.guide
                if refit is not None:
                    with torch.enable_grad():
                        fitted = refit(*drawn.args, **drawn.kwargs)
                elif free:
                    with torch.enable_grad():
                        again = replace(target, args=drawn.args, kwargs=drawn.kwargs)
                        fitted, _ = refined("sbc", again, num_steps, with_encoder=True)
                weights = log_weights(
                    target.model,
                    fitted,
                    *drawn.args,
                    num_particles=num_draws,
                    joint=True,
                    **drawn.kwargs,
                )
                for name, truth in drawn.latents.items():
                    site = weights.model_trace.nodes[name]
                    ranks = _rank(weights.latents[name], truth, _row_axes(site, of_rows))
                    parts.setdefault(name, []).append(ranks)
                before, sets = done, sets + 1
                done = min(sum(len(pit) for pit, _ in found) for found in parts.values())
                bar.update(min(done, num_simulations) - before)
    pit = {name: torch.cat([p for p, _ in found]).numpy() for name, found in parts.items()}
    scores = {name: torch.cat([s for _, s in found]).numpy() for name, found in parts.items()}
    return Calibration(pit, scores, num_draws, sets if free or refit is not None else 0)


def _warn_of_globals(guide: Any) -> None:
    if isinstance(guide, AutoAmortized) and len(guide.groups) > 1:
        names = [site.name for site in guide.groups[0].packing.sites]
        warnings.warn(
            f"sbc: expected a guide that is a function of the data; got AutoAmortized with global "
            f"latents {names}, whose parameters are of the data that it was fitted to: of others "
            "its ranks are off. Write: refit=lambda *data: px.fit(model, guide_of(), loss, data, "
            "optim, num_steps=1000).guide, with a new guide for each.",
            stacklevel=3,
        )


def _row_axes(site: Any, sets: tuple[tuple[str, ...], ...] | None) -> list[int] | None:
    """Return the axes of a site's value along which datapoints lie; None if all are one."""
    if sets is None:
        return None
    dims = {frame.name: frame.dim for frame in plate_frames(site)}
    (own,) = (plates for plates in sets if dims.keys() & set(plates))
    return [dims[plate] - min(dims.values()) for plate in own]


def _rank(draws: Tensor, truth: Tensor, axes: list[int] | None) -> tuple[Tensor, Tensor]:
    """Return the randomized share of draws below the truth, and its standard score, by row."""
    truth = truth.reshape(draws.shape[1:])
    rank, ties = (draws < truth).sum(0).double(), (draws == truth).sum(0)
    pit = (rank + torch.rand_like(rank) * (ties + 1)) / (len(draws) + 1)
    draws, truth = draws.double(), truth.double()
    score = (truth - draws.mean(0)) / draws.std(0)
    score = score.nan_to_num(0.0, math.inf, -math.inf)  # 0 / 0 where all are alike
    return _by_row(pit.cpu(), axes), _by_row(score.cpu(), axes)


def _by_row(values: Tensor, axes: list[int] | None) -> Tensor:
    if axes is None:
        return values.unsqueeze(0)
    return values.movedim(axes, list(range(len(axes)))).flatten(0, len(axes) - 1)


def _row(pit: Array, scores: Array, level: float) -> dict[str, Any]:
    from scipy.stats import kstest, norm, wilcoxon

    place, width = kstest(pit, "uniform"), kstest(np.abs(2 * pit - 1), "uniform")
    p_value = min(1.0, 2 * min(place.pvalue, width.pvalue))
    symmetry = wilcoxon(norm.cdf(scores) - 0.5).pvalue if scores.any() else math.nan
    found: dict[str, Any] = {"p-value": p_value, "symmetry": float(symmetry)}
    found |= {f"coverage {prob:.0%}": (np.abs(2 * pit - 1) <= prob).mean() for prob in _PROBS}
    found["fault"] = ""
    if p_value <= level:
        faults = []
        if place.pvalue <= _LEVEL and abs(pit.mean() - 0.5) > 2 * (len(pit) * 12) ** -0.5:
            faults.append("too low" if pit.mean() > 0.5 else "too high")
        # A guide at a point is surer than any other.
        spread = np.log(scores.std()) if np.isfinite(scores).all() else math.inf
        if width.pvalue <= _LEVEL and abs(spread) > 3 * (2 * len(scores)) ** -0.5:
            faults.append("too narrow" if spread > 0 else "too wide")
        found["fault"] = " and ".join(faults) or "of the wrong shape"
    return found
