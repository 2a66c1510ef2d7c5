"""Operators called as Python calls them, which takes half the time of a call by overload."""

from functools import cache
from typing import Any

import torch
from torch.fx import GraphModule

__all__ = ["bind"]

_aten = torch.ops.aten

_FUNCTIONS = (
    *("abs", "add", "addmm", "bmm", "cat", "clamp", "clone", "cos", "cumsum", "digamma", "div"),
    *("exp", "expm1", "index_add", "index_select", "lgamma", "log", "log1p", "logsumexp", "mean"),
    *("mm", "mul", "neg", "permute", "pow", "randn", "reciprocal", "relu", "rsqrt", "select"),
    *("sigmoid", "sign", "sin", "split_with_sizes", "sqrt", "squeeze", "sub", "sum", "t", "tanh"),
    *("transpose", "unsqueeze", "where"),
)
_METHODS = ("expand", "view")


def bind(graph: GraphModule) -> None:
    """Let a graph call torch's own functions, with the arguments that it has.

    Args:
        graph: A graph, changed in place; whether an operation has effects cannot be told of it
            any more.
    """
    known = _bindings()
    for node in graph.graph.nodes:
        node.target = known.get(node.target, node.target)
    graph.recompile()


@cache
def _bindings() -> dict[Any, Any]:
    owners = [(torch, name) for name in _FUNCTIONS] + [(torch.Tensor, name) for name in _METHODS]
    found: dict[Any, Any] = {_aten.randn.default: torch.randn}
    for owner, name in owners:
        operator = getattr(_aten, name)
        for overload in [getattr(operator, variant) for variant in operator.overloads()]:
            first = str(overload._schema.arguments[0].type)
            if first in ("Tensor", "List[Tensor]") and not overload._schema.is_mutable:
                found[overload] = getattr(owner, name)
    return found
