"""What two calls must share to be served by one graph."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_ext.training.compiled.private import flatten, nesting_key, unflatten
from pyro_ext.training.compiled.walk import SCALARS

__all__ = ["Call", "call_of", "shape_of"]


@dataclass(frozen=True)
class Call:
    """The arguments of a step, taken apart.

    Args:
        tensors: All tensors, in order.
        signature: Shape, strides, dtype and device of each tensor, and the value of all else.
        leaves: Tensors and all else, in order.
        spec: How the leaves were nested.
        opaque: Types of leaves that may change and be the same object.
    """

    tensors: list[Tensor]
    signature: tuple[Any, ...]
    leaves: list[Any]
    spec: Any
    opaque: list[str]

    def rebuilt(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments with other tensors in their places.

        Args:
            tensors: As many tensors as the call has.
        """
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = unflatten(leaves, self.spec)
        return args, kwargs


def call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Take the arguments of a step apart.

    Args:
        args: Arguments.
        kwargs: Keyword arguments.
    """
    leaves, spec = flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    signature = (nesting_key(spec), *map(_of, leaves))
    opaque = [type(leaf).__name__ for leaf in leaves if not _by_value(leaf)]
    return Call(tensors, signature, leaves, spec, opaque)


def _of(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return shape_of(leaf)
    return (type(leaf), leaf) if _by_value(leaf) else type(leaf)


def _by_value(leaf: Any) -> bool:
    """Tell whether a leaf is a tensor, or equal to another one if it has the same value."""
    if isinstance(leaf, (Tensor, *SCALARS)):
        return True
    return isinstance(leaf, Hashable) and type(leaf).__hash__ is not object.__hash__


def shape_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what of a tensor a graph depends on.

    Args:
        tensor: The tensor.
    """
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
