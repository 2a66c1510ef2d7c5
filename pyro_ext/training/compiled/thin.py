"""What a recorded graph need not do at every step, where torch runs it operation by operation."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_ext.training.compiled.simplify import (
    changes_tensors,
    draw_at_once,
    evaluate,
    fold_indices,
    has_effect,
    hold,
    leave_out_unused,
)

__all__ = ["thin"]

_aten = torch.ops.aten
_LARGEST = 4_000_000  # bytes of a constant that is kept rather than computed again

_OF_SHAPES = (
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
)
"""Operations that read the shape of their first argument, and none of its entries."""

_VIEWS = (
    _aten.alias.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten.view.default,
)
"""Operations that give back their first argument where its shape is that of the answer."""


def thin(graph: GraphModule) -> None:
    """Leave out constants, repetitions, and operations that change nothing.

    What is left computes the same bits: each operation reads what it read before, in the same
    layout.

    Args:
        graph: A graph with the tensors that it holds as attributes, changed in place.
    """
    fold_indices(graph)
    draw_at_once(graph)
    nodes = list(graph.graph.nodes)
    written = _written(nodes)
    left = sum(map(changes_tensors, nodes))
    # What is given out may be changed by whom it is given to.
    outputs = set(nodes[-1].all_input_nodes)
    values: dict[Node, Any] = {}
    first: dict[Any, Node] = {}
    for node in nodes:
        if changes_tensors(node):
            left -= 1
            first.clear()  # the same operation reads something else from here on
        if node in written:
            continue
        values[node] = _value(graph, node, values)
        if node.op != "call_function" or has_effect(node) or node in outputs:
            continue
        # Not by hash: 1, 1.0 and True are equal, and so are 0.0 and -0.0.
        key = node.target, repr((node.args, node.kwargs))
        other = _unchanged(node, copies=left == 0) or first.setdefault(key, node)
        if other is not node:
            node.replace_all_uses_with(other)
    for node, value in values.items():
        if isinstance(value, Tensor) and node.op == "call_function" and node not in outputs:
            _keep(graph, node, value, values)
    leave_out_unused(graph)


def _written(nodes: list[Node]) -> set[Node]:
    """Return the nodes that are changed in place, and all that they were made of."""
    found: set[Node] = set()
    waiting = [node for node in nodes if changes_tensors(node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _value(graph: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    """Return what a node gives at every step, or None if that is not always the same."""
    target: Any = node.target
    if target not in _OF_SHAPES:
        return evaluate(graph, node, values.get)
    shaped: Any = node.args[0]
    like = shaped.meta["val"]
    like = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return target(like, *node.args[1:], **node.kwargs)


def _unchanged(node: Node, *, copies: bool) -> Node | None:
    """Return the argument that a node gives back as it is, or a copy of it, or None."""
    given: Any = node.args[0] if node.args else None
    if node.target is _aten.t.default and given.target is _aten.t.default:
        turned_twice: Node = given.args[0]
        return turned_twice
    if copies and node.target is _aten.cat.default and len(given) == 1:
        (given,) = given
    elif not (copies and _is_copy(node)) and node.target not in _VIEWS:
        return None
    known = "val" in given.meta  # torch 2.4 does not say what the tensors are that a graph holds
    return given if known and _layout(given) == _layout(node) else None


def _is_copy(node: Node) -> bool:
    by_number = node.target in (_aten.pow.Tensor_Scalar, _aten.div.Scalar)
    return by_number and bool(node.args[1] == 1)


def _layout(node: Node) -> tuple[Any, ...]:
    value: Tensor = node.meta["val"]
    return value.shape, value.stride(), value.dtype


def _keep(graph: GraphModule, node: Node, value: Tensor, values: dict[Node, Any]) -> None:
    """Hold a constant if something reads it that is none."""
    if value.untyped_storage().nbytes() > _LARGEST:
        return
    if any(values.get(user) is None for user in node.users):
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(hold(graph, value))
