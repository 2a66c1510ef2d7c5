"""Layers of torch whose weights are latents, and that take no particles of them."""

from types import TracebackType

from pyro.nn import PyroModule
from torch import nn

__all__ = ["instead_of_layer"]


def instead_of_layer(error: Exception) -> str | None:
    """Return what to write in place of the layer in which an error came up, if that is why.

    Args:
        error: What was raised when a model ran with particles.
    """
    layer, trace = None, error.__traceback__
    while trace is not None:
        layer, trace = _layer(trace) or layer, trace.tb_next
    if layer is None:
        return None
    name = f"self.{layer._pyro_name}"
    bias = "" if getattr(layer, "bias", None) is None else f" + {name}.bias"
    instead = (
        f"h = ({name}.weight @ h.unsqueeze(-1)).squeeze(-1){bias}"
        if isinstance(layer, nn.Linear)
        else "functions that take batch dims left of a weight, such as @,"
    )
    return f"{instead} in place of {name}(h)"


def _layer(trace: TracebackType) -> PyroModule | None:
    """Return the layer with latents whose own code an entry of a traceback is in."""
    frame = trace.tb_frame
    owner = frame.f_locals.get("self")
    own = frame.f_globals.get("__name__", "").startswith("torch.nn.modules.")
    latent = isinstance(owner, PyroModule) and bool(owner._pyro_samples)
    return owner if own and latent and frame.f_code.co_name == "forward" else None
