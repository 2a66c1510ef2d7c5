"""What ``ParamStore.load`` has read under another name than a guide has in this process."""

import re
import weakref
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["adopt", "register"]

_LIVE: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_PUT: Any = WeakIdKeyDictionary()  # what guides of this process have put into the store


def register(name: str, guide: Any) -> None:
    """Remember that a guide of this process has this name.

    Args:
        name: Its name in Pyro's store.
        guide: The guide.
    """
    _LIVE[name] = guide


def adopt(kind: str, own: str, params: dict[str, Tensor]) -> None:
    """Take over what the store was loaded with, where one guide of another name fits.

    A guide's name ends in a number, which is another one in another process, or when the cell of
    a notebook is run again. What a guide of this process has left in the store is left alone.

    Args:
        kind: Class name of the guide.
        own: Its name in the store.
        params: Its parameters, by what follows its name; none of them came from a file.

    Raises:
        ValueError: If several guides in the store fit.
    """
    stored = pyro.get_param_store()._params
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        match = re.fullmatch(rf"({kind}_\d+)(\D.*)", name)
        if match and match[1] not in _LIVE and value not in _PUT:
            found.setdefault(match[1], {})[match[2]] = value
    shapes = {end: param.shape for end, param in params.items()}
    fits = [name for name, group in found.items() if _shapes(group) == shapes]
    if len(fits) > 1:
        raise ValueError(
            f"{kind}: expected Pyro's parameter store to have '{own}', as this guide is called "
            f"here, or one loaded guide that fits; got {fits}. Write: px.save_pair(path, model, "
            "guide, x) for each and px.load_pair, or make the guides in the order in which they "
            "were made for the file, before all others."
        )
    for name in fits:
        for end, param in params.items():
            with torch.no_grad():
                param.copy_(found[name][end])
            del pyro.get_param_store()[name + end]
    for param in params.values():
        _PUT[param] = True


def _shapes(group: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {end: value.shape for end, value in group.items()}
