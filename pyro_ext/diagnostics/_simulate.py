"""Data drawn from a model, as arguments that model and guide can be called with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_ext.diagnostics._record import FreeData, is_fixed, value_sites
from pyro_ext.diagnostics._target import Target

__all__ = ["Simulated", "drawable", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """Simulated data, and the latents that they were simulated from.

    Args:
        args: The model's arguments with the simulated data in place of the real ones.
        kwargs: Its keyword arguments, likewise.
        latents: Constrained value of each latent site.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    latents: dict[str, Tensor]


def simulate(owner: str, target: Target) -> Simulated:
    """Draw latents and data from the model, in the shape of the target's data.

    Args:
        owner: Name of the diagnostic, for messages.
        target: Whose model to draw from.

    Raises:
        ValueError: If an observed site's values are no argument of the model, or its prior is
            improper.
    """
    with drawable(owner):
        real = _observed(target.model, target)
        free = poutine.trace(FreeData()(target.model)).get_trace(*target.args, **target.kwargs)
    sites: dict[str, Any] = dict(value_sites(free))
    given = [*target.args, *target.kwargs.values()]
    values = list(given)
    for name, data in real.items():
        # Another argument may be equal to the data by chance, as binary covariates are.
        places = [i for i, value in enumerate(given) if value is data] or [
            i for i, value in enumerate(given) if _equal(value, data)
        ]
        if not places:
            raise ValueError(
                f"{owner}: expected the values of the observed site '{name}' to be an argument of "
                "the model, so that simulated data can take their place; got others. Write: "
                f"def model(x, ...): ... pyro.sample('{name}', ..., obs=x)."
            )
        for place in places:
            new = sites[name]["value"].detach().to(data.dtype)
            values[place] = new.reshape(data.shape) if new.numel() == data.numel() else new
    latents = {
        name: site["value"].detach()
        for name, site in sites.items()
        if name not in real and not is_fixed(site)
    }
    count = len(target.args)
    return Simulated(
        tuple(values[:count]), dict(zip(target.kwargs, values[count:], strict=True)), latents
    )


@contextmanager
def drawable(owner: str) -> Iterator[None]:
    """Say it in words where a prior or a likelihood cannot be drawn from.

    Args:
        owner: Name of the diagnostic, for messages.

    Raises:
        ValueError: If one is met.
    """
    try:
        yield
    except NotImplementedError as error:
        what = str(error).splitlines()[0]
        raise ValueError(
            f"{owner}: expected a model that can be drawn from; got an improper prior, or another "
            f"distribution without draws ({what}). Write: dist.Normal(0.0, 100.0), or another "
            "proper prior, in its place."
        ) from error


def _observed(model: Callable[..., Any], target: Target) -> dict[str, Tensor]:
    trace = poutine.trace(model).get_trace(*target.args, **target.kwargs)
    return {
        name: site["value"]
        for name, site in value_sites(trace)
        if site["is_observed"] and not is_fixed(site)
    }


def _equal(value: Any, data: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != data.shape:
        return False
    return torch.equal(value, data.to(value.dtype))
