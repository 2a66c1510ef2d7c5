"""Entries of Pyro's parameter store that belong to the modules of a fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

__all__ = ["OwnedEntries"]


class OwnedEntries:
    """Entries that last no longer than a fit, so that two fits never meet in the store.

    Args:
        model: The model.
        guide: Its guide.
    """

    def __init__(self, model: Any, guide: Any) -> None:
        self._roots = [root for root in (model, guide) if isinstance(root, torch.nn.Module)]
        self._kept: dict[str, tuple[Tensor, Any]] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within this context the entries of the last time are there."""
        store = pyro.get_param_store()
        before = set(store.keys())
        for name, (param, constraint) in self._kept.items():
            # Not by setdefault, which would let a parameter that is held still have a gradient.
            if name not in before:
                store._params[name], store._constraints[name] = param, constraint
                store._param_to_name[param] = name
        try:
            yield
        finally:
            owned = {id(param) for module in self._roots for param in module.parameters()}
            for name in set(store.keys()) - before:
                param = store._params[name]
                if id(param) in owned:
                    self._kept[name] = param, store._constraints[name]
                    # Not by del, which stumbles over a parameter that has two names.
                    del store._params[name], store._constraints[name]
                    if store._param_to_name.get(param) == name:
                        del store._param_to_name[param]
