"""A guide with free π_i that starts where an encoder is."""

import copy
from typing import Any

import torch
from torch import nn

from pyro_ext.autoguide.encoder import EncoderGuide
from pyro_ext.autoguide.per_datapoint import AutoPerDatapoint

__all__ = ["start_at_encoder"]


def start_at_encoder(guide: EncoderGuide, *args: Any, **kwargs: Any) -> AutoPerDatapoint:
    """Return a guide of the given rows whose π_i are what the encoder says of them.

    Globals and networks are copies that stay as they are: the table alone is trainable.

    Args:
        guide: A guide with an encoder.
        *args: The model's arguments.
        **kwargs: The model's keyword arguments.
    """
    guide.setup(*args, **kwargs)
    new = AutoPerDatapoint(
        guide.model,
        family=guide.family,
        plate=guide.plate,
        global_family=guide.global_family,
        init_loc_fn=guide.init_loc_fn,
        init_scale=guide.init_scale,
        create_plates=guide.create_plates,
        condition_on_globals=guide.condition_on_globals,
    )
    new.setup(*args, **kwargs)
    with torch.no_grad():
        rows = guide._encoded(guide._batch(args, kwargs, draw=False), args, kwargs)
    new.local_params = nn.Parameter(rows.clone())
    if hasattr(guide, "global_params"):
        # A buffer: Pyro would train a parameter that it sees.
        del new.global_params
        new.register_buffer("global_params", guide.global_params.detach().clone())
    for name in ("global_network", "local_network", "response"):
        if hasattr(guide, name):
            still = copy.deepcopy(getattr(guide, name)).requires_grad_(requires_grad=False).eval()
            setattr(new, name, still)
    return new
