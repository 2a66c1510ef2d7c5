"""Factorizations that fail, in a graph that looks at no values."""

import math
import operator
from typing import Any

import torch
from torch.fx import GraphModule

__all__ = ["mark_failures"]

_aten = torch.ops.aten


def mark_failures(graph: GraphModule) -> None:
    """Let a factorization that fails give NaN, where torch reads its flag and raises.

    What comes of it is not finite then, and is left out of a step as such; the other matrices of
    a batch are as they were.

    Args:
        graph: A graph as it was recorded, changed in place.
    """
    nodes = graph.graph
    for check in nodes.find_nodes(op="call_function", target=_aten._linalg_check_errors.default):
        flag: Any = check.args[0]
        source, place = flag.args
        for out in [user for user in source.users if user.target is operator.getitem]:
            value = out.meta["val"]
            if not (value.is_floating_point() and out.users):
                continue
            with nodes.inserting_before(out.next):
                own = nodes.call_function(operator.getitem, (source, place))
                failed = nodes.call_function(_aten.ne.Scalar, (own, 0))
                for _ in range(value.dim() - flag.meta["val"].dim()):
                    failed = nodes.call_function(_aten.unsqueeze.default, (failed, -1))
                marked = nodes.call_function(_aten.where.ScalarSelf, (failed, math.nan, out))
            marked.meta["val"] = value
            out.replace_all_uses_with(marked, delete_user_cb=lambda user, new=marked: user != new)
        nodes.erase_node(check)
