"""Fits without settings from mini-batches: globals together, locals of one data plate apart."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from pyro_ext.autoguide import AutoJoint, AutoPerDatapoint
from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.families import FullCovariance
from pyro_ext.losses import ELBO
from pyro_ext.structure import plate_frames, sample_sites
from pyro_ext.training.auto.density import support_centre
from pyro_ext.training.auto.judge import right_as_drawn, small_errors
from pyro_ext.training.auto.nested import NestedPool, nested_pool
from pyro_ext.training.auto.run import LocalRun
from pyro_ext.training.auto.verdict import LIMIT, Attempt, Finding, Verdict
from pyro_ext.training.run import Run

__all__ = ["default_guide", "fit_local"]

_RATES = (0.05, 0.01)
_CHUNK, _MAX_CHUNKS, _LAST = 500, 12, 4000
_PARTICLES, _REPEATS = 8, 8
_WORTH = 0.05  # nats for which another chunk is worth its cost
_SIGMAS = 2.0
_DRAWS, _INNER, _MOST = 4000, 16, 4e8


def default_guide(
    model: Callable[..., Any], args: tuple[Any, ...], plate: str | None
) -> PackedGuide:
    """Return the guide for mini-batches: structured where there are locals and globals.

    Args:
        model: The model.
        args: Its arguments.
        plate: Name of the data plate.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        traced = poutine.trace(InitMessenger(support_centre)(model))
        trace = poutine.block(traced.get_trace)(*args)
    latents = [site for _, site in sample_sites(trace) if not site["is_observed"]]
    named = [{frame.name for frame in plate_frames(site)} for site in latents]
    inside = [plate in names if plate is not None else bool(names) for names in named]
    if not any(inside):
        return AutoJoint(model, family=FullCovariance())
    if all(inside):
        return AutoPerDatapoint(model, plate=plate)
    return AutoPerDatapoint(
        model, plate=plate, global_family=FullCovariance(), condition_on_globals=True
    )


def fit_local(
    fit: Callable[..., Run],
    model: Callable[..., Any],
    guide: PackedGuide,
    args: tuple[Any, ...],
    *,
    batch_size: int | None,
    plate: str | None,
    seed: int,
) -> LocalRun:
    """Fit a guide with steps and a length that are found, and say whether it can be used.

    Steps of one size are taken in chunks until the bound of all rows no longer rises by more than
    noise; then steps of a fifth, and at last a cosine to zero, with the gradient that sticks to
    the path. Globals are weighed with the locals integrated.

    Args:
        fit: The plain fit.
        model: A Pyro model.
        guide: Its guide.
        args: Its arguments, with all rows.
        batch_size: Rows of a mini-batch; None for all.
        plate: Name of the data plate.
        seed: Seed.

    References:
        Robust, Accurate Stochastic Optimization for Variational Inference (Dhaka et al., 2020) | https://arxiv.org/abs/2009.00666
        Sticking the Landing (Roeder et al., 2017) | https://arxiv.org/abs/1703.09194
    """
    begin, history, losses = time.perf_counter(), list[Attempt](), []
    settled, count = True, 0

    def steps(rate: float, num: int, loss: ELBO, schedule: Any = None) -> Run:
        nonlocal count
        count += 1
        with warnings.catch_warnings():
            # Nobody chose the rates, with which a rare draw may overflow; many in a row raise.
            warnings.filterwarnings("ignore", message=".*The step is left out")
            run = fit(
                model,
                guide,
                loss,
                args,
                partial(torch.optim.Adam, lr=rate),
                schedule=schedule,
                num_steps=num,
                batch_size=batch_size,
                plate=plate,
                nonfinite="skip",
                seed=seed + count,
                progress=False,
            )
        losses.append(run.losses)
        return run

    bounds = _bounds(model, guide, args, seed)
    for rate in _RATES:
        start, taken, rising = time.perf_counter(), 0, True
        while rising and taken < _MAX_CHUNKS * _CHUNK:
            steps(rate, _CHUNK, ELBO())
            taken += _CHUNK
            before, bounds = bounds, _bounds(model, guide, args, seed)
            rising = _higher(bounds - before)
        settled = settled and not rising
        text = "bound still rises" if rising else "bound is level"
        spent = time.perf_counter() - start
        history.append(Attempt(f"Adam {rate}", float(bounds.mean()), taken, 0, spent, text))
    start = time.perf_counter()
    scored = all(group.family.density == "any" for group in guide.groups)
    last = ELBO(num_particles=2, estimator="stl" if scored else "reparam")

    def cosine(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return CosineAnnealingLR(optimizer, _LAST)

    run = steps(_RATES[-1], _LAST, last, cosine)
    bound = float(_bounds(model, guide, args, seed).mean())
    spent = time.perf_counter() - start
    history.append(Attempt("cosine to 0", bound, 2 * _LAST, 0, spent, last.estimator))
    start = time.perf_counter()
    pool, verdict = _judge(model, guide, run, settled=settled, seed=seed)
    spent = time.perf_counter() - start
    history.append(Attempt("nested correction", bound, 0, _DRAWS, spent))
    return LocalRun(
        model=model,
        guide=guide,
        loss=last,
        args=run.args,
        losses=np.concatenate(losses),
        seconds=time.perf_counter() - begin,
        seed=seed,
        stopped="the bound no longer rises" if settled else "num_steps reached",
        elbo_per_datum=run.elbo_per_datum,
        elbo_steps=run.elbo_steps,
        num_data=run.num_data,
        verdict=verdict,
        history=tuple(history),
        pool=pool,
    )


def _judge(
    model: Callable[..., Any], guide: PackedGuide, run: Run, *, settled: bool, seed: int
) -> tuple[NestedPool | None, Verdict]:
    checks = [Finding(settled, "the bound is level" if settled else "the bound still rises")]
    unknown = Finding(passed=False, text="uncorrected draws were not compared")
    if _DRAWS * _INNER * run.num_data > _MOST:
        text = f"{run.num_data} data are too many for {_DRAWS} x {_INNER} weighted draws"
        checks.append(Finding(passed=False, text=text))
        return None, Verdict(tuple(checks), unknown, float("nan"), float("nan"), float("nan"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nested = nested_pool(
            model,
            guide,
            run.args,
            num=_DRAWS,
            inner=_INNER,
            num_data=run.num_data,
            limit=LIMIT / 2,
        )
    pool = nested.pool
    mean, sd, by_mean, by_sd = pool.moments(pool.z)
    mean_error, sd_error = float(by_mean.max()), float(by_sd.max())
    checks += [
        Finding(
            pool.usable, f"k-hat {pool.k_hat:.2f} of the globals (limit {pool.threshold:.2f})"
        ),
        small_errors(pool, mean_error, sd_error, LIMIT / 2),
    ]
    raw = right_as_drawn(nested.own, mean, sd, "means of globals")
    return nested, Verdict(tuple(checks), raw, pool.k_hat, mean_error, sd_error)


def _bounds(
    model: Callable[..., Any], guide: PackedGuide, args: tuple[Any, ...], seed: int
) -> Tensor:
    """Return estimates of the bound from all rows, with the same random numbers each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = ELBO(num_particles=_PARTICLES)
        return torch.tensor([-float(loss.loss(model, guide, *args)) for _ in range(_REPEATS)])


def _higher(gains: Tensor) -> bool:
    error = float(gains.std()) / len(gains) ** 0.5
    return float(gains.mean()) > max(_SIGMAS * error, _WORTH)
