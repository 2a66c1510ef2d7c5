"""The route of an automatic fit: start, climb through the families, correct, judge."""

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_ext._progress import hidden
from pyro_ext.families import Diagonal, Family, Flow, FullCovariance, LowRank
from pyro_ext.losses import ELBO
from pyro_ext.training.auto.affine import Affine, Map, elbo, fixed_draws, log_ratios
from pyro_ext.training.auto.ascend import WORTH, ascend
from pyro_ext.training.auto.bent import Bent, unbent
from pyro_ext.training.auto.climb import climb
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.judge import Judgement, judge
from pyro_ext.training.auto.modes import other_modes
from pyro_ext.training.auto.rounding import resolved, rounded
from pyro_ext.training.auto.run import AutoRun
from pyro_ext.training.auto.settle import settled
from pyro_ext.training.auto.start import MAX_DENSE, Candidate, paths, starting_points
from pyro_ext.training.auto.verdict import LIMIT, Attempt
from pyro_ext.training.auto.widen import widen

__all__ = ["fit_auto", "ladder"]

_FRESH = 2048
_SIGMAS = 3.0
_RANK = 10
_RATE = 3e-3
_ROUNDS = 4
_ROUGH = 1e-3
"""Nats that are worth a step where the draws themselves err by more, or another family follows."""
_MOST, _WIDE = 3_000_000, 1024  # numbers in one set of fixed draws, and draws above 300 dimensions


def ladder(dim: int) -> tuple[Family, ...]:
    """Return the families that are tried in D dimensions, from small to large.

    Args:
        dim: D.
    """
    if dim == 1:
        return (Diagonal(),)
    if dim > MAX_DENSE:
        return (Diagonal(), LowRank(rank=_RANK))
    base = FullCovariance()
    flow = Flow("realnvp", base=base, num_transforms=6, hidden=(32, 32), averaged=False)
    return (Diagonal(), FullCovariance(), flow)


def fit_auto(
    density: Density,
    args: tuple[Any, ...],
    family: Family | None = None,
    *,
    seed: int,
    progress: bool = True,
) -> AutoRun:
    """Fit a posterior without settings, and say whether it can be used.

    Args:
        density: The log density of a model.
        args: The model's arguments, with all rows.
        family: The only family to fit; by default they are climbed from small to large.
        seed: Seed.
        progress: Whether to show a progress bar.

    References:
        Pathfinder: Parallel Quasi-Newton Variational Inference (Zhang et al., 2022) | https://arxiv.org/abs/2108.03782
        Robust, Accurate Stochastic Optimization for Variational Inference (Dhaka et al., 2020) | https://arxiv.org/abs/2009.00666
    """
    search = _Search(density, args, seed=seed, progress=progress)
    try:
        return search.run(family)
    finally:
        search.bar.close()


class _Search:
    def __init__(
        self, density: Density, args: tuple[Any, ...], *, seed: int, progress: bool
    ) -> None:
        self.density, self.args, self.seed = density, args, seed
        self.begin = time.perf_counter()
        self.generator = torch.Generator().manual_seed(seed)
        self.history: list[Attempt] = []
        self.mark = (0, 0, time.perf_counter())
        self.bar = tqdm(desc="fit", leave=False, disable=hidden(wanted=progress), unit="stage")

    def run(self, only: Family | None) -> AutoRun:
        families = ladder(self.density.dim) if only is None else (only,)
        candidates = self.start()
        best, normal, why = self.normals(families, candidates)
        q: Map = normal
        found = self.judge(q)
        for family in families:
            asked = only is not None
            if isinstance(family, Flow) and (asked or found.leaves(self.bound(q))):
                bent, other, text = self.bend(normal, family)
                if asked or (self.gains(bent, q) and other.order <= found.order):
                    best, q, found = family, bent, other
                    why = f"{family}, {text}"
        modes = other_modes(self.density, normal, candidates, self.seed + 200)
        self.note("other modes", self.bound(q), modes.text)
        guide = settled(self.density, self.args, best, q)
        return AutoRun(
            model=self.density.model,
            guide=guide,
            loss=ELBO(),
            args=self.args,
            losses=np.array([-attempt.elbo for attempt in self.history]),
            seconds=time.perf_counter() - self.begin,
            seed=self.seed,
            stopped=why,
            elbo_per_datum=np.array([self.bound(q)]),
            elbo_steps=np.array([len(self.history) - 1]),
            num_data=1,
            verdict=found.verdict(
                modes, *rounded(self.density, found.pool), *resolved(q, guide.params)
            ),
            history=tuple(self.history),
            pool=found.pool,
            density=self.density,
        )

    # ------------------------------------------------------------------ stages

    def start(self) -> list[Candidate]:
        dim = self.density.dim
        num = 8 if dim <= 50 else 4 if dim <= MAX_DENSE else 2
        candidates = paths(self.density, starting_points(self.density, num, self.seed), self.seed)
        if not candidates:
            raise ValueError(
                f"fit: expected a start from which the log density rises; got none in {num}. "
                "Write: proper priors of the latents, or data that they explain."
            )
        best = max(c.elbo for c in candidates)
        self.note(f"{num} Newton paths" if dim <= MAX_DENSE else f"{num} L-BFGS paths", best)
        return candidates

    def normals(
        self, families: tuple[Family, ...], candidates: list[Candidate]
    ) -> tuple[Family, Affine, str]:
        """Climb through the normal families while the bound gains.

        Where a full covariance follows, a diagonal normal is a rung: it is climbed on few draws,
        and to its top only if the full one gains nothing on it.
        """
        shapes = [family.base if isinstance(family, Flow) else family for family in families]
        shapes = [shape for at, shape in enumerate(shapes) if shape not in shapes[:at]]
        shape, rung = shapes[0], FullCovariance() in shapes[1:]
        best, why = self.climb_to(shape, candidates, rung=rung)
        for larger in shapes[1:]:
            q, text = self.climb_to(larger, candidates, best)
            if self.gains(q, best):
                shape, best, why, rung = larger, q, text, False
        if rung:
            best, why = self.climb_to(shape, candidates, best)
        return shape, best, f"{shape} climbed to its top, {why}"

    def bend(self, normal: Affine, family: Flow) -> tuple[Bent, Judgement, str]:
        """Fit a flow, round by round while one gains much or the answer fails a check."""
        q, found, text = unbent(normal, family, self.seed), None, "no round gained"
        for round_, gain in enumerate(ascend(self.density, q, rate=_RATE, seed=self.seed)):
            text = f"round {round_ + 1} gained {gain:.3f} nats"
            self.note(repr(family), self.bound(q), text)
            found = self.judge(q) if gain < WORTH else None
            if found is not None and found.passed:
                break
        return q, found or self.judge(q), text

    def climb_to(
        self,
        family: Family,
        candidates: list[Candidate],
        smaller: Affine | None = None,
        *,
        rung: bool = False,
    ) -> tuple[Affine, str]:
        """Climb one family, from the paths or a smaller normal."""
        if isinstance(family, LowRank):
            own = max(candidates, key=lambda c: c.elbo).q if smaller is None else smaller
            q = widen(self.density, own.independent(), family.rank, self.seed)
            text = "fresh draws"
        else:
            q, text = self.climb(family, candidates, smaller, rounds=1 if rung else _ROUNDS)
        self.note(repr(family), self.bound(q), text)
        return q, text

    def climb(
        self, family: Family, candidates: list[Candidate], smaller: Affine | None, rounds: int
    ) -> tuple[Affine, str]:
        """Climb on more and more fixed draws, until they move it no more."""
        dim, density = self.density.dim, self.density
        num = max(128, 4 * dim) if isinstance(family, FullCovariance) else 256
        num = 2 ** math.ceil(math.log2(num))
        starts = [*(c.q for c in candidates), *([] if smaller is None else [smaller])]
        starts = [q.independent() if family == Diagonal() else q.full() for q in starts]
        noise = fixed_draws(num, dim, self.seed).to(density.dtype)
        q = max(starts, key=lambda q: elbo(density, q, noise))
        worth = _ROUGH if rounds == 1 or dim > MAX_DENSE else 0.0
        text = ""
        for round_ in range(rounds):
            noise = fixed_draws(num, dim, self.seed + round_).to(density.dtype)
            q, before = climb(density, q, noise, worth), q
            if round_ > 0:
                change = max(
                    float(((q.loc - before.loc) / q.sd).abs().max()),
                    float((q.sd / before.sd).log().abs().max()),
                )
                text = f"last change {change:.3f} sd with "
                if change < LIMIT / 3:
                    break
            if dim > MAX_DENSE and num == _WIDE:
                break
            num *= 4 if num * 4 <= max(_MOST // dim, _WIDE) else 1
        return q, f"{text}{len(noise)} draws"

    def fresh(self) -> Tensor:
        """Return draws that nothing was fitted to."""
        return fixed_draws(_FRESH, self.density.dim, self.seed + 100).to(self.density.dtype)

    def bound(self, q: Map) -> float:
        return elbo(self.density, q, self.fresh())

    def gains(self, q: Map, smaller: Map) -> bool:
        """Tell whether the bound is higher by more than the error of the difference."""
        noise = self.fresh()
        gap = log_ratios(self.density, q, noise) - log_ratios(self.density, smaller, noise)
        return float(gap.mean()) > _SIGMAS * float(gap.std()) / len(noise) ** 0.5

    def judge(self, q: Map) -> Judgement:
        found = judge(self.density, q, self.generator)
        self.note("correction and moves", self.bound(q), found.note)
        return found

    def note(self, name: str, bound: float, text: str = "") -> None:
        now = (self.density.num_gradients, self.density.num_values, time.perf_counter())
        cost = [b - a for a, b in zip(self.mark, now, strict=True)]
        self.history.append(Attempt(name, bound, int(cost[0]), int(cost[1]), cost[2], text))
        self.mark = now
        self.bar.set_postfix_str(f"{name}, ELBO {bound:.2f}")
        self.bar.update()
