"""The same family fitted to the data themselves, from a guide's answer."""

import copy
from functools import partial

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.autoguide.encoder import EncoderGuide
from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.diagnostics._target import Target
from pyro_ext.losses import ELBO
from pyro_ext.training.fit import fit
from pyro_ext.training.refine import refine

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
    guide = target.guide
    if not isinstance(guide, PackedGuide) or target.kwargs:
        got = "keyword arguments" if isinstance(guide, PackedGuide) else type(guide).__name__
        raise TypeError(
            f"{owner}: expected one of the automatic guides and positional arguments, so that its "
            f"family can be fitted to each datum; got {got}. Write: "
            f"px.{owner}(model, px.AutoAmortized(model, encoder), x)."
        )
    loss = ELBO(num_particles=_PARTICLES, estimator="stl")
    optim = partial(torch.optim.Adam, lr=_RATE)
    schedule = partial(CosineAnnealingLR, T_max=num_steps)
    if isinstance(guide, EncoderGuide):
        run = refine(
            target.model,
            guide,
            loss,
            target.args,
            optim,
            schedule=schedule,
            num_steps=num_steps,
            seed=0,
        )
    else:
        guide.setup(*target.args)
        run = fit(
            target.model,
            copy.deepcopy(guide),
            loss,
            target.args,
            optim,
            schedule=schedule,
            num_steps=num_steps,
            train="guide",
            seed=0,
        )
    return run.guide, run.seconds  # type: ignore[return-value]
