"""Whether what a graph was recorded from is still what it was, at little cost per step."""

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_ext.training.compiled.walk import SCALARS, Binding, bindings, narrowed, stored

__all__ = ["Watch"]


class Watch:
    """What model, guide and loss see, as it was when the graph was recorded.

    Edits of a tensor in place are no change: the graph holds the tensor itself.

    Args:
        roots: Model, guide and loss.
        held: The tensors that the graph holds.
        store: Pyro's parameter store.
        closed: Whether ``held`` are all the tensors that count; otherwise all others do, too.
    """

    def __init__(
        self, roots: Sequence[Any], held: Iterable[Tensor], store: Any, *, closed: bool = True
    ) -> None:
        self._tensors = tuple(held)
        kept = {id(tensor) for tensor in self._tensors}
        found: list[Binding] = []
        self._growing: list[Binding] = []  # what may have more or fewer names than it had
        owned: set[int] = set()
        for binding in bindings(*roots):
            if binding.read in (tuple, len) and not binding.fixed:
                self._growing.append(binding)
            owned |= {id(value) for value in binding.values if isinstance(value, Tensor)}
            counts = narrowed(binding, lambda v: not closed or _counts(v, kept))
            if counts is not None:
                found.append(counts)
        self._bindings = found + stored(store, kept - owned)
        # A map over what is bound and what was stops at the shorter one.
        self._holders = [binding.holder for binding in self._growing]
        self._sizes = [len(holder) for holder in self._holders]
        self._flags = [tensor.requires_grad for tensor in self._tensors]
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self._dtype = torch.get_default_dtype()

    def holds(self) -> bool:
        """Tell whether nothing has changed."""
        if _PYRO_STACK or torch.get_default_dtype() is not self._dtype:
            return False
        tensors = self._tensors
        try:
            return (
                all(all(map(is_, b.read(b.holder), b.values)) for b in self._bindings)
                and [len(holder) for holder in self._holders] == self._sizes
                and [tensor.requires_grad for tensor in tensors] == self._flags
                and [tensor.data_ptr() for tensor in tensors] == self._pointers
            )
        except (KeyError, ValueError, IndexError):
            return False

    def renew(self) -> bool:
        """Take over numbers that are equal but other objects; tell whether all else holds."""
        for position, binding in enumerate(self._bindings):
            try:
                now = binding.read(binding.holder)
            except (KeyError, ValueError, IndexError):
                return False
            if len(now) != len(binding.values) or not all(map(_same, now, binding.values)):
                return False
            self._bindings[position] = Binding(
                binding.read, binding.holder, binding.names, now, binding.where
            )
        return self.holds()

    def changed(self) -> str:
        """Say what has changed."""
        if _PYRO_STACK:
            return "an effect handler of Pyro is active"
        for growing, size in zip(self._growing, self._sizes, strict=True):
            if (count := len(growing.holder)) != size:
                return f"{growing.where} has {count} entries, not {size}"
        for binding in self._bindings:
            try:
                now = binding.read(binding.holder)
            except (KeyError, ValueError, IndexError):
                return f"names of {binding.where} are gone"
            for name, old, new in zip(binding.names, binding.values, now, strict=True):
                if not _same(old, new):
                    return f"'{name}' of {binding.where} is another object"
        return "a tensor was moved, or its requires_grad was set"


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return type(one) is type(other) and isinstance(one, SCALARS) and bool(one == other)


def _counts(value: Any, kept: set[int]) -> bool:
    """Tell whether a value can change the graph: a tensor that it does not hold cannot."""
    return not isinstance(value, Tensor) or id(value) in kept
