"""The same family fitted to the data themselves, from a guide's answer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.autoguide import AutoSemiAmortized
from pyro_ext.autoguide.encoder import EncoderGuide
from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.autoguide.start import start_at_encoder
from pyro_ext.diagnostics._target import Target
from pyro_ext.losses import ELBO
from pyro_ext.training.fit import fit

__all__ = ["refined"]

_PARTICLES = 8
_RATE = 0.05
_OF_DATA = ("global_params", "global_network", "delta")


def refined(
    owner: str, target: Target, num_steps: int, *, with_encoder: bool = False
) -> tuple[PackedGuide, float]:
    """Return a guide with free parameters, fitted from where the target's guide is.

    Of a guide with an encoder what datapoints share stays as it is.

    Args:
        owner: Name of the diagnostic, for messages.
        target: Model, guide and arguments.
        num_steps: Steps of Adam, its rate falling to 0 on a cosine.
        with_encoder: Whether a guide with an encoder keeps that as it is, and what is fitted are
            the parameters of globals and the corrections δ, which are of other data.

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
    if isinstance(guide, EncoderGuide) and with_encoder:
        start: PackedGuide = _without_data(guide)
    elif isinstance(guide, EncoderGuide):
        with pyro.poutine.block():
            start = start_at_encoder(guide, *args, **kwargs)
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


def _without_data(guide: EncoderGuide) -> EncoderGuide:
    """Return a copy with the networks held, and the parameters that were fitted to data free."""
    new = copy.deepcopy(guide)
    for name, param in new.named_parameters():
        param.requires_grad_(name.partition(".")[0] in _OF_DATA)
    if isinstance(new, AutoSemiAmortized):
        with torch.no_grad():
            new.delta.zero_()
    return new


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
