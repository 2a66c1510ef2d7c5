"""Fit a guide: one torch optimizer over all parameters, and mini-batches of its own."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.optim import PyroOptim
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from pyro_ext._whole import whole
from pyro_ext.autoguide import AutoJoint
from pyro_ext.families import Family
from pyro_ext.losses import ELBO
from pyro_ext.losses.loss import BoundLoss
from pyro_ext.training.auto.entry import fit_bare, fit_without_settings
from pyro_ext.training.batches import arguments
from pyro_ext.training.callbacks import Callback
from pyro_ext.training.checkpoints import Checkpoints
from pyro_ext.training.checks import (
    check_functions,
    check_kind,
    check_loss,
    checked_callbacks,
)
from pyro_ext.training.compiled.optimizer import Factory
from pyro_ext.training.compiled.private import flatten, unflatten
from pyro_ext.training.holdout import Holdout, Plateau
from pyro_ext.training.loader import loader_in
from pyro_ext.training.pyro_optim import as_factories
from pyro_ext.training.ranks import Ranks
from pyro_ext.training.run import Run
from pyro_ext.training.session import Session
from pyro_ext.training.settings import Settings

__all__ = ["fit"]

_NUM_STEPS = 2000
_USUAL = {"train": "both", "nonfinite": "raise", "compile": "auto", "deterministic": False}
"""Options that a fit without settings cannot have otherwise."""


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    loss: BoundLoss | None = None,
    data: Any = None,
    optim: Factory | PyroOptim | Mapping[str, Factory | PyroOptim] | Literal["auto"] | None = None,
    *,
    family: Family | Literal["auto"] | None = None,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    plate: str | None = None,
    train: str = "both",
    clip_norm: float | None = None,
    nonfinite: str = "raise",
    chunk: int | str | None = None,
    compile: str | bool = "auto",
    deterministic: bool = False,
    holdout: Holdout | None = None,
    plateau: Plateau | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int | None = None,
    progress: bool = True,
) -> Run:
    r"""Fit a guide, and the model's own parameters with it.

    ``px.fit(model, data=data)``, with no option but ``seed`` and ``progress``, is a fit with
    ``optim="auto"``: an ``AutoRun``, whose verdict says whether its answer can be used. A model
    that such fits do not take gets Adam and a warning that says why.

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
        data: The model's argument, or a tuple of its arguments; None if it takes none. Or a
            ``DataLoader`` whose batches are an argument, a tuple of arguments, or a map of
            keyword arguments; where the model has a plate over the rows of a batch, it is scaled
            to the length of the loader's data, or of the subset that its sampler draws from.
        optim: From a list of parameters to a torch optimizer, or one of ``pyro.optim``, whose own
            state stays as it is; or one for ``"model"`` and one for ``"guide"``, of the same kind
            of optimizer; by default, if any other option is given, Adam, from 0.02 down to 0 on a
            cosine. Beside Adam, parameters with sparse gradients get a ``SparseAdam`` of the same
            options. With ``"auto"`` start, scale, step size and length of the fit are found, the
            draws are importance-corrected, and the run has a verdict (``AutoRun``; with a guide
            or ``batch_size`` ``LocalRun``).
        family: Family of the default guide; with ``"auto"`` it is found too.
        schedule: From that optimizer to a torch learning-rate scheduler, stepped at every step.
        num_steps: Number of steps; by default 2000.
        batch_size: Rows of a mini-batch; by default all.
        plate: Name of the data plate, where more than one plate has the data's size.
        train: What to train: ``"both"``, ``"model"`` or ``"guide"``.
        clip_norm: Largest norm of the gradient of all parameters together.
        nonfinite: What to do where a loss or gradient is not finite, which is never applied:
            ``"raise"`` an error that names step, site and rows; ``"skip"`` the step; or
            ``"halve"``: go back to the parameters of at most 50 steps before, with half the
            learning rates.
        chunk: Largest number of particles in memory at once, to the same gradient; ``"auto"``
            halves it until a step fits.
        compile: Whether the step becomes a compiled graph, as in ``CompiledSVI``; ``"record"``
            makes it one that torch runs operation by operation, to the bits of eager steps.
            ``"auto"`` takes what is done soonest, by the time of the first steps and the number of
            those that are left; ``run.compiled`` tells. The numbers of compiled steps are those of
            eager ones, up to rounding.
        deterministic: Whether the same seed gives the bits of eager steps each time:
            ``compile="auto"`` then records steps, which keeps them, or not, by their number and
            not by the clock, and compiles none.
        holdout: Held-out data to look at every so often: ``px.Holdout(x_test)``.
        plateau: When to stop before ``num_steps``: ``px.Plateau()``.
        checkpoints: A folder to save to, and to go on from: the same call resumes a run that was
            killed, to the last bit. ``px.Checkpoints(folder, every=1000)`` has options.
        callbacks: Called after each step with a ``Progress``; a text that one returns stops the
            fit.
        seed: Seed of the fit; the caller's random state stays as it was.
        progress: Whether to show a progress bar (never if the output is no terminal).

    Returns:
        The fitted guide with its history.

    Raises:
        TypeError: If the loss is none of this package, or optimizer or schedule none of torch that
            steps by the gradient alone.
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
        >>> run.verdict.grade
        'trusted'
        >>> run = fit(model, data=torch.full((100,), 3.0), num_steps=2000, seed=0)
        >>> round(run.guide.median()["mu"].item(), 1)
        3.0
    """
    check_loss(loss)
    check_functions(optim, schedule)
    _check_options(compile, clip_norm, holdout, plateau, checkpoints)
    callbacks = checked_callbacks(callbacks)
    if num_steps is not None:
        num_steps = whole(num_steps, "num_steps", write="num_steps=2000")
    if batch_size is not None:
        batch_size = whole(batch_size, "batch_size", write="batch_size=100")
    if seed is not None:
        seed = whole(seed, "seed", write="seed=0")
    if loader_in(arguments(data)) is not None:
        _check_loader(batch_size, searching="auto" in (optim, family))
        loss = ELBO() if loss is None else loss
    ranks = Ranks()
    ways = dict(zip(_USUAL, (train, nonfinite, compile, deterministic), strict=True))
    options: dict[str, Any] = {
        "loss": loss,
        "optim": None if optim == "auto" else optim,
        "schedule": schedule,
        "holdout": holdout,
        "plateau": plateau,
        "checkpoints": checkpoints,
        "callbacks": callbacks or None,
        "clip_norm": clip_norm,
        "chunk": chunk,
        "num_steps": num_steps,
        **{name: None if way == _USUAL[name] else way for name, way in ways.items()},
    }
    rows: Any = {"batch_size": batch_size, "plate": plate}
    rest: Any = {"seed": seed, "progress": progress}
    if optim == "auto" or family == "auto":
        if ranks.size > 1:
            raise ValueError(
                f"fit: expected settings in {ranks.size} processes, which go in step; got "
                "optim='auto'. Write: one process, or optim=partial(torch.optim.Adam, lr=0.01)."
            )
        return fit_without_settings(fit, model, guide, data, family, options, **rows, **rest)
    asked = [guide, family, *options.values(), *rows.values()]
    if ranks.size == 1 and all(option is None for option in asked):
        run = fit_bare(model, data, **rest)
        if run is not None:
            return run
    num_steps = _NUM_STEPS if num_steps is None else num_steps
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
    if num_steps < 1:
        raise ValueError(f"fit: expected num_steps >= 1; got {num_steps}. Write: num_steps=2000.")
    if isinstance(checkpoints, (str, Path)):
        checkpoints = Checkpoints(checkpoints)
    if seed is None and checkpoints is not None:
        seed = checkpoints.seed
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    settings = Settings(
        model=model,
        guide=guide,
        loss=loss,
        args=_constant(arguments(data)),
        optim=as_factories(optim),
        schedule=schedule,
        num_steps=num_steps,
        batch_size=batch_size,
        plate=plate,
        train=train,
        clip_norm=clip_norm,
        nonfinite=nonfinite,
        chunk=chunk,
        compile=compile,
        deterministic=deterministic,
        holdout=holdout,
        plateau=plateau,
        checkpoints=checkpoints,
        callbacks=callbacks,
        seed=ranks.gather(seed)[0],
        progress=progress,
        ranks=ranks,
    )
    session = Session(settings)
    session.train()
    return session.run()


def _check_options(
    compile: Any, clip_norm: Any, holdout: Any, plateau: Any, checkpoints: Any
) -> None:
    """Raise if an option is of another kind than it must be, or out of its range."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "fit: expected gradients to be possible; got a torch.inference_mode() around the fit. "
            "Write: px.fit(...) outside of it, or torch.no_grad(), within which a fit has its own."
        )
    check_kind(holdout, (Holdout,), "holdout to be a px.Holdout", "holdout=px.Holdout(x_test)")
    check_kind(plateau, (Plateau,), "plateau to be a px.Plateau", "plateau=px.Plateau()")
    folder = "checkpoints to be a folder or a px.Checkpoints"
    check_kind(checkpoints, (Checkpoints, str, Path), folder, "checkpoints='runs/first'")
    if compile not in ("auto", True, False, "record"):
        raise ValueError(
            f"fit: expected compile to be 'auto', True, False or 'record'; got {compile!r}. "
            "Write: compile='auto'."
        )
    if clip_norm is not None and (isinstance(clip_norm, str) or not clip_norm > 0):
        raise ValueError(f"fit: expected clip_norm > 0; got {clip_norm!r}. Write: clip_norm=10.0.")


def _check_loader(batch_size: int | None, *, searching: bool) -> None:
    if batch_size is not None:
        raise ValueError(
            f"fit: expected a DataLoader without batch_size, as it has its own; got {batch_size}. "
            "Write: DataLoader(..., batch_size=...)."
        )
    if searching:
        raise ValueError(
            "fit: expected data in a tensor with optim='auto', which looks at all of them; got a "
            "DataLoader. Write: px.fit(model, data=x, optim='auto')."
        )


def _constant(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return data without gradient, which a second step would look for in vain."""

    def needs(value: Any) -> bool:
        tensor = isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
        return tensor and value.requires_grad

    leaves, spec = flatten(args)
    found: tuple[Any, ...] = unflatten([v.detach() if needs(v) else v for v in leaves], spec)
    return found if any(map(needs, leaves)) else args
