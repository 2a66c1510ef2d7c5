"""Pyro's guides that keep the parameters of what a subsampled plate showed first."""

from collections.abc import Callable, Container
from typing import Any

from pyro import poutine
from pyro.infer.autoguide import AutoGaussian, AutoGuide, AutoStructured
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.poutine import Trace
from torch import nn

from pyro_ext.structure import is_subsampled, plate_frames, sample_sites

__all__ = ["check_flat"]

_FLAT = (AutoContinuous, AutoStructured, AutoGaussian)


def check_flat(guide: Callable[..., Any], model_trace: Trace) -> None:
    """Raise if another mini-batch would get the parameters that a guide made for its first one.

    Args:
        guide: A guide that has been called.
        model_trace: Trace of the model.

    Raises:
        ValueError: If one of Pyro's guides without a row per element has a latent in a subsampled
            plate.
    """
    guide = poutine.unwrap(guide)
    for part in guide.modules() if isinstance(guide, nn.Module) else ():
        if isinstance(part, _FLAT) and part.prototype_trace is not None:
            _check_part(part, part.prototype_trace.nodes, model_trace)


def _check_part(guide: AutoGuide, own: Container[str], model_trace: Trace) -> None:
    frames = guide._prototype_frames
    for name, site in sample_sites(model_trace):
        latent = name in own and not site["is_observed"]
        known = [frames[plate.name] for plate in plate_frames(site) if plate.name in frames]
        for frame in known if latent else ():
            if is_subsampled(frame):
                raise ValueError(
                    f"{type(guide).__name__}: expected latents outside subsampled plates, as its "
                    "parameters are those of the elements that it saw first; got site "
                    f"'{name}' in plate '{frame.name}', which shows {frame.size} of "
                    f"{frame.full_size} elements. Write: px.AutoPerDatapoint(model, "
                    f"plate='{frame.name}'), or Pyro's AutoNormal(model, create_plates=...)."
                )
