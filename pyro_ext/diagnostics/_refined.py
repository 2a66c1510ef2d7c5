"""The same family fitted to the data themselves, from a guide's answer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.autoguide.encoder import EncoderGuide
from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.autoguide.start import start_at_encoder
from pyro_ext.diagnostics._target import Target
from pyro_ext.losses import ELBO
from pyro_ext.training.fit import fit

__all__ = ["refined"]

_PARTICLES = 8
_RATE = 0.05


def refined(owner: str, target: Target, num_steps: int) -> tuple[PackedGuide, float]:
    """Return a guide with free parameters, fitted from where the target's guide is.

    Of a guide with an encoder what datapoints share stays as it is.

    Args:
        owner: Name of the diagnostic, for messages.
        target: Model, guide and arguments.
        num_steps: Steps of Adam, its rate falling to 0 on a cosine.

    Returns:
        The guide, and the seconds that its fit took.

    Raises:
        TypeError: If the guide is none of the automatic guides.
    """
    guide, args, kwargs = target.guide, target.args, target.kwargs
    if not isinstance(guide, PackedGuide):
        raise TypeError(
            f"{owner}: expected one of the automatic guides, so that its family can be fitted to "
            f"each datum; got {type(guide).__name__}. Write: "
            f"px.{owner}(model, px.AutoAmortized(model, encoder), x)."
        )
    if isinstance(guide, EncoderGuide):
        with pyro.poutine.block():
            start: PackedGuide = start_at_encoder(guide, *args, **kwargs)
    else:
        guide.setup(*args, **kwargs)
        start = copy.deepcopy(guide)
    strata, densities = start.num_strata, {group.family.density for group in start.groups}
    with _given(start, kwargs):
        run = fit(
            partial(target.model, **kwargs) if kwargs else target.model,
            start,
            ELBO(
                num_particles=-(-_PARTICLES // strata) * strata,
                estimator="stl" if densities == {"any"} else "reparam",
            ),
            args,
            partial(torch.optim.Adam, lr=_RATE),
            schedule=partial(CosineAnnealingLR, T_max=num_steps),
            num_steps=num_steps,
            train="guide",
            seed=0,
        )
    return start, run.seconds


@contextmanager
def _given(guide: PackedGuide, kwargs: dict[str, Any]) -> Iterator[None]:
    """Let a guide call its model with keyword arguments that it is not called with, as by fit."""
    model, create_plates = guide._model, guide.create_plates
    if kwargs:
        guide._model = (partial(guide.model, **kwargs),)
        guide.create_plates = create_plates and partial(create_plates, **kwargs)
    try:
        yield
    finally:
        guide._model, guide.create_plates = model, create_plates
