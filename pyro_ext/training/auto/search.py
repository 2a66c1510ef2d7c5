"""The route of an automatic fit: start, climb through the families, correct, judge."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_ext.families import Diagonal, Family, FullCovariance
from pyro_ext.losses import ELBO
from pyro_ext.training.auto.adapt import adapted_pool
from pyro_ext.training.auto.affine import Affine, climb, elbo, fixed_draws
from pyro_ext.training.auto.correct import Pool, flat_latents
from pyro_ext.training.auto.density import Density
from pyro_ext.training.auto.drift import drift
from pyro_ext.training.auto.modes import other_modes
from pyro_ext.training.auto.run import AutoRun
from pyro_ext.training.auto.start import Candidate, paths, starting_points
from pyro_ext.training.auto.verdict import LIMIT, Attempt, Finding, Verdict

__all__ = ["FAMILIES", "fit_auto"]

FAMILIES: tuple[Family, ...] = (Diagonal(), FullCovariance())
_CHAINS = 600
_FRESH = 2048
_SIGMAS = 3.0
_POOL = 20_000


def fit_auto(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    families: tuple[Family, ...] = FAMILIES,
    *,
    seed: int,
    progress: bool = True,
) -> AutoRun:
    """Fit a posterior without settings, and say whether it can be used.

    Args:
        model: A Pyro model with continuous latents.
        args: Its arguments, with all rows.
        families: Families to climb through, from small to large.
        seed: Seed.
        progress: Whether to show a progress bar.

    References:
        Pathfinder: Parallel Quasi-Newton Variational Inference (Zhang et al., 2022) | https://arxiv.org/abs/2108.03782
        Robust, Accurate Stochastic Optimization for Variational Inference (Dhaka et al., 2020) | https://arxiv.org/abs/2009.00666
    """
    search = _Search(model, args, seed=seed, progress=progress)
    try:
        return search.run(families)
    finally:
        search.bar.close()


class _Search:
    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], *, seed: int, progress: bool
    ) -> None:
        self.model, self.args, self.seed = model, args, seed
        self.begin = time.perf_counter()
        self.density = Density(model, args)
        self.generator = torch.Generator().manual_seed(seed)
        self.history: list[Attempt] = []
        self.mark = (0, 0, time.perf_counter())
        self.bar = tqdm(desc="fit", leave=False, disable=None if progress else True, unit="stage")

    def run(self, families: tuple[Family, ...]) -> AutoRun:
        candidates = self.start()
        best: tuple[Family, Affine] | None = None
        for family in families:
            q = self.climb(family, candidates, None if best is None else best[1])
            if best is None or self.gains(q, best[1]):
                best = (family, q)
        if best is None:
            raise ValueError("fit: expected at least one family; got none. Write: family='auto'.")
        family, q = best
        bound = self.bound(q)
        pool, verdict = self.judge(q, bound, candidates)
        seconds = time.perf_counter() - self.begin
        guide = self.density.guide(family, self.args)
        scale = q.factor
        with torch.no_grad():
            guide.params.copy_(family.initial_params(q.loc, scale).to(guide.params))
        return AutoRun(
            model=self.model,
            guide=guide,
            loss=ELBO(),
            args=self.args,
            losses=np.array([-attempt.elbo for attempt in self.history]),
            seconds=seconds,
            seed=self.seed,
            stopped=f"{family} climbed to its top",
            elbo_per_datum=np.array([bound]),
            elbo_steps=np.array([len(self.history) - 1]),
            num_data=1,
            verdict=verdict,
            history=tuple(self.history),
            pool=pool,
            density=self.density,
        )

    # ------------------------------------------------------------------ stages

    def start(self) -> list[Candidate]:
        dim = self.density.dim
        num = 8 if dim <= 50 else 4 if dim <= 300 else 2
        candidates = paths(self.density, starting_points(self.density, num, self.seed), self.seed)
        if not candidates:
            raise ValueError(
                "fit: expected a start from which the log density rises; found none in "
                f"{num}. Give the latents proper priors, or data that they explain."
            )
        best = max(c.elbo for c in candidates)
        self.note(f"{num} Newton paths", best)
        return candidates

    def climb(
        self,
        family: Family,
        candidates: list[Candidate],
        smaller: Affine | None,
    ) -> Affine:
        dim, density = self.density.dim, self.density
        diagonal = isinstance(family, Diagonal)
        num = max(128, 4 * dim)
        num = 2 ** math.ceil(math.log2(num))
        noise = fixed_draws(num, dim, self.seed).to(density.dtype)
        starts = [c.q for c in candidates]
        if smaller is not None:
            starts.append(smaller)
        starts = [_as(q, diagonal=diagonal) for q in starts]
        q = max(starts, key=lambda q: elbo(density, q, noise))
        change = math.inf
        for round_ in range(4):
            q, before = climb(density, q, noise), q
            if round_ > 0:
                change = max(
                    float(((q.loc - before.loc) / q.sd).abs().max()),
                    float((q.sd / before.sd).log().abs().max()),
                )
                if change < LIMIT / 3:
                    break
            num *= 4
            noise = fixed_draws(num, dim, self.seed + round_ + 1).to(density.dtype)
        text = f"last change {change:.3f} sd with {len(noise)} draws"
        self.note(repr(family), self.bound(q), text)
        return q

    def fresh(self) -> Tensor:
        """Return draws that nothing was fitted to."""
        return fixed_draws(_FRESH, self.density.dim, self.seed + 100).to(self.density.dtype)

    def bound(self, q: Affine) -> float:
        return elbo(self.density, q, self.fresh())

    def gains(self, q: Affine, smaller: Affine) -> bool:
        """Tell whether the bound is higher by more than the error of the difference."""
        noise = self.fresh()
        gap = self.density.value(q.push(noise)) - self.density.value(smaller.push(noise))
        gap = gap + q.log_det() - smaller.log_det()
        return float(gap.mean()) > _SIGMAS * float(gap.std()) / len(noise) ** 0.5

    def judge(self, q: Affine, bound: float, candidates: list[Candidate]) -> tuple[Pool, Verdict]:
        density = self.density
        num = int(max(4000, min(_POOL, 4e6 / density.dim)))
        limit = LIMIT / _SIGMAS
        pool = adapted_pool(density, q, num, 4 * num, limit, self.generator)
        mean, sd, mean_error, sd_error = pool.moments(flat_latents(density, pool.z))
        worst_mean, worst_sd = float(mean_error.max()), float(sd_error.max())
        checks = [
            Finding(pool.usable, f"k-hat {pool.k_hat:.2f} (limit {pool.threshold:.2f})"),
            Finding(
                max(worst_mean, worst_sd) <= limit,
                f"standard errors of at most {worst_mean:.3f} sd (means) and {worst_sd:.1%} (sds) "
                f"from {pool.effective:.0f} effective draws",
            ),
        ]
        self.note("importance correction", bound, f"k-hat {pool.k_hat:.2f}")
        if pool.usable:
            moved = drift(
                density,
                _as(q, diagonal=q.diagonal),
                pool.resample(_CHAINS, self.generator),
                self.generator,
            )
            text = f"mean {moved.mean:.2f}, mean square {moved.spread:.2f} sd"
            checks.append(
                Finding(
                    not moved.found,
                    f"draws {'leave' if moved.found else 'stay in'} their "
                    f"place under Hamiltonian moves (shifts: {text})",
                )
            )
            self.note("Hamiltonian moves", bound, f"acceptance {moved.acceptance:.2f}")
        checks.append(other_modes(density, q, candidates, self.seed + 200))
        self.note("other modes", bound)
        raw = self.compare_raw(q, mean, sd)
        return pool, Verdict(tuple(checks), raw, pool.k_hat, worst_mean, worst_sd)

    def compare_raw(self, q: Affine, mean: Tensor, sd: Tensor) -> Finding:
        noise = torch.randn(
            (20_000, self.density.dim), generator=self.generator, dtype=q.loc.dtype
        )
        values = flat_latents(self.density, q.push(noise))
        off = float(((values.mean(0) - mean) / sd).abs().max())
        ratio = values.std(0) / sd
        low, high = float(ratio.min()), float(ratio.max())
        right = off <= LIMIT and 1 - LIMIT <= low and high <= 1 + LIMIT
        return Finding(
            right,
            f"uncorrected means are within {off:.2f} sd, sd ratios in {low:.2f} to {high:.2f}",
        )

    def note(self, name: str, bound: float, text: str = "") -> None:
        now = (self.density.num_gradients, self.density.num_values, time.perf_counter())
        cost = [b - a for a, b in zip(self.mark, now, strict=True)]
        self.history.append(Attempt(name, bound, int(cost[0]), int(cost[1]), cost[2], text))
        self.mark = now
        self.bar.set_postfix_str(f"{name}, ELBO {bound:.2f}")
        self.bar.update()


def _as(q: Affine, *, diagonal: bool) -> Affine:
    if not diagonal:
        return q.full()
    if q.diagonal:
        return q
    # Of all diagonal normals the one nearest to q has its conditional standard deviations.
    eye = torch.eye(len(q.loc), dtype=q.loc.dtype)
    inverse = torch.linalg.solve_triangular(q.factor, eye, upper=False)
    return Affine(q.loc, inverse.square().sum(0).rsqrt())
