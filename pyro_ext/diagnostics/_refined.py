"""The same family fitted to the data themselves, from a guide's answer."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_ext.autoguide import AutoJoint, AutoPerDatapoint
from pyro_ext.autoguide.guide import PackedGuide
from pyro_ext.autoguide.local import LocalGuide
from pyro_ext.diagnostics._target import Target
from pyro_ext.losses import ELBO
from pyro_ext.training.fit import fit

__all__ = ["refined"]

_PARTICLES = 8
_RATE = 0.05


def refined(owner: str, target: Target, num_steps: int) -> tuple[PackedGuide, float]:
    """Return a guide with free parameters, fitted from where the target's guide is.

    Networks of a family stay as they are; with latents of the datapoints only, so does the rest of
    what datapoints share.

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
    free = _free_copy(guide, target.model, target.args)
    trained = [p for name, p in free.named_parameters() if "network" not in name]
    start = time.perf_counter()
    fit(
        target.model,
        free,
        ELBO(num_particles=_PARTICLES, estimator="stl"),
        target.args,
        _adam(trained),
        schedule=partial(CosineAnnealingLR, T_max=num_steps),
        num_steps=num_steps,
        train="guide",
        seed=0,
    )
    return free, time.perf_counter() - start


def _adam(trained: list[nn.Parameter]) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    return lambda _: torch.optim.Adam(trained, lr=_RATE)


def _free_copy(guide: PackedGuide, model: Any, args: tuple[Any, ...]) -> PackedGuide:
    """Return a guide of the same family with the answers of ``guide`` as its free parameters."""
    free: PackedGuide
    if isinstance(guide, LocalGuide):
        free = AutoPerDatapoint(
            model, family=guide.family, plate=guide.plate, global_family=guide.global_family
        )
    else:
        free = AutoJoint(model, family=guide.family)
    guide.setup(*args)
    free.setup(*args)
    with torch.no_grad():
        batch = guide._batch(args, {}, draw=False)
        for group in guide.groups:
            params = guide._params(group, batch, args, {})
            own = "params" if isinstance(free, AutoJoint) else f"{group.name}_params"
            getattr(free, own).copy_(params)
            network = getattr(guide, f"{group.name}_network", None)
            if network is not None:
                getattr(free, f"{group.name}_network").load_state_dict(network.state_dict())
    return free
