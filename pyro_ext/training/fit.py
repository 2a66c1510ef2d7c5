"""Fit a guide: one torch optimizer over all parameters, and mini-batches of its own."""

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from tqdm.auto import tqdm

from pyro_ext._checks import Pair
from pyro_ext.autoguide import AutoJoint
from pyro_ext.families import Family
from pyro_ext.losses import ELBO, Annealed
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.auto.entry import fit_without_settings
from pyro_ext.training.batches import Step, count_rows, steps
from pyro_ext.training.history import RECORD_EVERY, History
from pyro_ext.training.nonfinite import explain_nonfinite
from pyro_ext.training.optimizers import Optimizers
from pyro_ext.training.parameters import find_parameters, held
from pyro_ext.training.run import Run

__all__ = ["Run", "arguments", "fit"]


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    loss: BoundLoss | None = None,
    data: Any = None,
    optim: Callable[[list[Tensor]], torch.optim.Optimizer] | Literal["auto"] | None = None,
    *,
    family: Family | Literal["auto"] | None = None,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    num_steps: int = 2000,
    batch_size: int | None = None,
    plate: str | None = None,
    train: str = "both",
    seed: int | None = None,
    progress: bool = True,
) -> Run:
    r"""Fit a guide, and the model's own parameters with it.

    With ``batch_size`` the trainer shuffles the rows and shows the same ones to model and guide:
    the model is written for the rows that it is called with, ``pyro.plate("data", len(x))``, and
    its likelihood is scaled by N/B; a model that subsamples inside, ``subsample_size=batch_size``,
    gets all rows and its indices from the trainer.

    Variational EM alternates two fits: ``train="guide"`` is the E-step, with the model as it is;
    ``train="model"`` with ``px.ELBO()`` is the M-step, which climbs the expected complete log
    likelihood with q as it is. What stays still gets no gradient.

    .. math:: \text{E: } \max_\phi \mathcal{L}(\theta, \phi), \qquad
        \text{M: } \max_\theta \mathbb{E}_{q_\phi(z)} \log p_\theta(x, z)

    Args:
        model: A Pyro model.
        guide: Its guide; by default ``AutoJoint(model, family=family)``.
        loss: What to minimize; by default ``ELBO()``.
        data: The model's argument, or a tuple of its arguments; None if it takes none.
        optim: From a list of parameters to a torch optimizer; by default Adam, from 0.02 down to
            0 on a cosine. Beside Adam, parameters with sparse gradients get a ``SparseAdam`` of
            the same options. With ``"auto"`` start, scale, step size and length of the fit are
            found, the draws are importance-corrected, and the run has a verdict (``AutoRun``;
            with a guide or ``batch_size`` ``LocalRun``).
        family: Family of the default guide; with ``"auto"`` it is found too.
        schedule: From that optimizer to a torch learning-rate scheduler, stepped at every step.
        num_steps: Number of steps.
        batch_size: Rows of a mini-batch; by default all.
        plate: Name of the data plate, where more than one plate has the data's size.
        train: What to train: ``"both"``, ``"model"`` or ``"guide"``.
        seed: Seed of the fit; the caller's random state stays as it was.
        progress: Whether to show a progress bar (never if the output is no terminal).

    Returns:
        The fitted guide with its history.

    Raises:
        ValueError: If a loss is not finite; the message names step, site and rows. If there is
            nothing to train, or the schedule of ``px.Annealed`` does not reach its end.

    References:
        A View of the EM Algorithm that Justifies Incremental, Sparse, and Other Variants
        (Neal and Hinton, 1998) | https://doi.org/10.1007/978-94-011-5014-9_12

    Example:
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> run = fit(model, data=torch.full((100,), 3.0), seed=0)
        >>> round(run.guide.median()["mu"].item(), 1)
        3.0
    """
    if optim == "auto" or family == "auto":
        given = None if optim == "auto" else optim
        options = {"loss": loss, "optim": given, "schedule": schedule}
        rows: Any = {"batch_size": batch_size, "plate": plate}
        rest: Any = {"seed": seed, "progress": progress}
        return fit_without_settings(fit, model, guide, data, family, options, **rows, **rest)
    if guide is not None and family is not None:
        raise ValueError(
            "fit: expected a guide or a family; got both. Write: guide=px.AutoJoint(model, "
            "family=family)."
        )
    guide = AutoJoint(model, family=family) if guide is None else guide
    loss = ELBO() if loss is None else loss
    if optim is None:
        optim = partial(torch.optim.Adam, lr=0.02)
        schedule = partial(CosineAnnealingLR, T_max=num_steps) if schedule is None else schedule
    args = arguments(data)
    if num_steps < 1:
        raise ValueError(f"fit: expected num_steps >= 1; got {num_steps}. Write: num_steps=2000.")
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    devices = sorted({a.device.index or 0 for a in args if isinstance(a, Tensor) and a.is_cuda})
    before = set(pyro.get_param_store().keys())
    start = time.perf_counter()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            if isinstance(loss, Annealed):
                loss.start(num_steps)
            pair = Pair(model, guide, args, {})
            params = find_parameters(pair, loss, train)
            plate = plate or getattr(guide, "plate", None)
            history = History(loss, count_rows(pair, plate), num_steps, devices)
            batches = steps(model, args, batch_size, plate)
            make_optimizers = partial(Optimizers, optim, schedule, params.trained)
            bar = tqdm(
                islice(batches, num_steps),
                total=num_steps,
                desc="fit",
                leave=False,
                disable=None if progress else True,
            )
            with held(params.held):
                _train(model, guide, loss, params.trained, make_optimizers, bar, history)
        finally:
            _leave_store(before, model, guide)
    seconds = time.perf_counter() - start
    return Run(
        model,
        guide,
        loss,
        args,
        torch.stack(history.losses).cpu().double().numpy(),
        seconds,
        seed,
        f"num_steps={num_steps} reached",
        np.array(history.elbos) / history.num_data,
        np.array(history.elbo_steps, dtype=np.int64),
        history.num_data,
    )


def arguments(data: Any) -> tuple[Any, ...]:
    """Return the model's arguments: none, one, or those of a tuple."""
    return () if data is None else tuple(data) if isinstance(data, (tuple, list)) else (data,)


def _train(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    loss: BoundLoss,
    params: list[Tensor],
    make_optimizers: Callable[[], Optimizers],
    bar: "tqdm[Step]",
    history: History,
) -> None:
    optimizers: Optimizers | None = None
    for number, step in enumerate(bar):
        if isinstance(loss, Annealed):
            loss.step = number
        for param in params:
            param.grad = None
        with pyro.validation_enabled(number == 0), step.context:
            value = loss.differentiable_loss(model, guide, *step.args)
            if not math.isfinite(value.item()):
                raise explain_nonfinite(
                    number, value.item(), model, guide, step.args, step.rows, params
                )
            if not value.requires_grad:
                raise ValueError(
                    f"fit: expected a loss with a gradient for what is trained; {loss!r} gives "
                    "the model no gradient. Write: train='guide'."
                )
            history.record(number, value, model, guide, step.args)
            value.backward()
        # Only a gradient tells whether it is sparse.
        optimizers = make_optimizers() if optimizers is None else optimizers
        optimizers.step()
        history.losses.append(value.detach())
        if number % RECORD_EVERY == 0:
            bar.set_postfix(loss=f"{value.item():.2f}")


def _leave_store(before: set[str], model: Any, guide: Any) -> None:
    """Take out of Pyro's store what modules own, so that two fits never meet there."""
    store = pyro.get_param_store()
    owned = {
        id(param)
        for module in (model, guide)
        if isinstance(module, torch.nn.Module)
        for param in module.parameters()
    }
    for name in set(store.keys()) - before:
        if id(store._params[name]) in owned:
            del store[name]
