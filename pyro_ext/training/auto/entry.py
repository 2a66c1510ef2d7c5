"""The door of ``fit`` to automatic fits: what they take, and what they refuse."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import pyro
import torch

from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.families import Diagonal, Family, FullCovariance, LowRank
from pyro_ext.training.auto.density import Density, Unfit
from pyro_ext.training.auto.local import default_guide, fit_local
from pyro_ext.training.auto.run import AutoRun, JudgedRun
from pyro_ext.training.auto.search import fit_auto
from pyro_ext.training.batches import arguments
from pyro_ext.training.run import Run

__all__ = ["fit_bare", "fit_without_settings"]


def fit_bare(
    model: Callable[..., Any], data: Any, *, seed: int | None, progress: bool
) -> AutoRun | None:
    """Fit without settings, or warn and return None for a model that such fits do not take.

    Args:
        model: A Pyro model.
        data: The model's argument, or a tuple of its arguments.
        seed: Seed.
        progress: Whether to show a progress bar.
    """
    args, seed = arguments(data), _seed(seed)
    try:
        # The plain fit must find neither a parameter nor a random number used.
        with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
            density = Density(model, args)
        density.check_cost()
    except Unfit as refusal:
        warnings.warn(
            f"fit takes 2000 steps of Adam, without a verdict, because {refusal.why}. Write "
            "num_steps=2000 to ask for this.",
            UserWarning,
            stacklevel=3,
        )
        return None
    return fit_auto(density, args, seed=seed, progress=progress)


def fit_without_settings(
    fit: Callable[..., Run],
    model: Callable[..., Any],
    guide: Any,
    data: Any,
    family: Family | Literal["auto"] | None,
    options: dict[str, Any],
    *,
    batch_size: int | None,
    plate: str | None,
    seed: int | None,
    progress: bool,
) -> JudgedRun:
    """Fit without settings.

    Args:
        fit: The plain fit, which takes the steps of mini-batches.
        model: A Pyro model.
        guide: A guide with one π per datapoint, or None.
        data: The model's argument, or a tuple of its arguments.
        family: The family, or ``"auto"``.
        options: Options of ``fit`` that automatic fits find or do without; all must be None.
        batch_size: Rows of a mini-batch.
        plate: Name of the data plate.
        seed: Seed.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If an option is given, or the family is none that it can climb.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"fit: expected no {given[0]} with optim='auto', which does without; got one. Write: "
            "px.fit(model, data=data, optim='auto'), or leave out optim='auto'."
        )
    if not (family in (None, "auto") or isinstance(family, (Diagonal, FullCovariance, LowRank))):
        raise ValueError(
            "fit: expected family='auto', px.Diagonal(), px.LowRank(rank=...) or "
            f"px.FullCovariance() with optim='auto'; got {family!r}. Write: family='auto'."
        )
    only = family if isinstance(family, Family) else None
    args, seed = arguments(data), _seed(seed)
    if guide is None and batch_size is None:
        return fit_auto(Density(model, args), args, only, seed=seed, progress=progress)
    if only is not None or not isinstance(guide, PackedGuide | None):
        raise ValueError(
            "fit: expected family='auto' and a guide of pyro_ext with optim='auto' and "
            f"mini-batches; got family={family!r}, guide={type(guide).__name__}. Write: "
            "guide=px.AutoPerDatapoint(model, family=...)."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = default_guide(model, args, plate) if guide is None else guide
        guide.setup(*args)
    plate = plate or getattr(guide, "plate", None)
    return fit_local(fit, model, guide, args, batch_size=batch_size, plate=plate, seed=seed)


def _seed(seed: int | None) -> int:
    return int(torch.randint(2**31, ())) if seed is None else seed
