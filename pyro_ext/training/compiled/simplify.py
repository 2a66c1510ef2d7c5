"""Rewrites of a recorded graph that a compiler does not find by itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_ext.training.compiled.private import is_operator, storing
from pyro_ext.training.compiled.softplus import cheapen_softplus

__all__ = [
    "Unsuitable",
    "changes_tensors",
    "draw_at_once",
    "evaluate",
    "fold_indices",
    "has_effect",
    "held_tensor",
    "hold",
    "leave_out_unused",
    "simplify",
]

_aten = torch.ops.aten


class Unsuitable(Exception):
    """A model, guide or loss that cannot be made into a graph; says why, and what to write."""


def simplify(graph: GraphModule) -> None:
    """Rewrite a graph in place; it computes the same from fewer and larger operations.

    Args:
        graph: A graph with the tensors that it holds as attributes.
    """
    fold_indices(graph)
    _hold_identities(graph)
    _merge_products(graph)
    _split_biases(graph)
    draw_at_once(graph)
    _store_before_selecting(graph)
    cheapen_softplus(graph)
    leave_out_unused(graph)


def _hold_identities(graph: GraphModule) -> None:
    """Copy identity matrices, which the compiler would compute byte by byte."""
    nodes = graph.graph
    for node in nodes.nodes:
        if node.target is _aten.eye.default:
            with nodes.inserting_before(node):
                kept = hold(graph, node.target(*node.args, **node.kwargs))
                # A model may write to its own.
                copy = nodes.call_function(_aten.clone.default, (kept,))
            node.replace_all_uses_with(copy)


def _merge_products(graph: GraphModule) -> None:
    """Write a batch of products with one and the same matrix as one product.

    Particles make such batches of a product with data. Compiled as they are, they become sums
    along the rows of a matrix, column by column.
    """
    nodes = graph.graph
    for node in nodes.nodes:
        if node.target is not _aten.bmm.default:
            continue
        rows, matrix = node.args[0].meta.get("val"), node.args[1].meta.get("val")
        if rows is None or matrix is None or matrix.stride(0) != 0:
            continue
        batch, number, inner = rows.shape
        with nodes.inserting_before(node):
            one = nodes.call_function(_aten.select.int, (node.args[1], 0, 0))
            flat = nodes.call_function(
                _aten.reshape.default, (node.args[0], [batch * number, inner])
            )
            product = nodes.call_function(_aten.mm.default, (flat, one))
            shaped = nodes.call_function(
                _aten.reshape.default, (product, [batch, number, matrix.shape[-1]])
            )
        node.replace_all_uses_with(shaped)


def _split_biases(graph: GraphModule) -> None:
    """Write a product plus bias as two operations, the second of which joins the next loop.

    A product that adds to its output writes the bias to all rows first. The compiler would make
    one of a product and a sum again, but not of a product and a difference.
    """
    nodes = graph.graph
    for node in nodes.nodes:
        if node.target is not _aten.addmm.default or node.kwargs:
            continue
        bias, rows, matrix = node.args
        with nodes.inserting_before(node):
            product = nodes.call_function(_aten.mm.default, (rows, matrix))
            negative = nodes.call_function(_aten.neg.default, (bias,))
            shifted = nodes.call_function(_aten.sub.Tensor, (product, negative))
        node.replace_all_uses_with(shifted)


def draw_at_once(graph: GraphModule) -> None:
    """Write normal noise that fills an empty tensor as one draw, of the same numbers.

    Args:
        graph: A graph, changed in place.
    """
    nodes = graph.graph
    for node in nodes.nodes:
        if node.target is not _aten.normal_.default or len(node.args) > 1 or node.kwargs:
            continue
        empty = node.args[0]
        if empty.target is not _aten.empty.memory_format or len(empty.users) > 1:
            continue
        options = {key: empty.kwargs.get(key) for key in ("dtype", "device")}
        with nodes.inserting_before(node):
            drawn = nodes.call_function(_aten.randn.default, empty.args, options)
        node.replace_all_uses_with(drawn)
        nodes.erase_node(node)


def _store_before_selecting(graph: GraphModule) -> None:
    """Compute a tensor once before most of its entries are picked, not each entry at its place.

    The place in the flat tensor would be taken apart by a division for each entry.
    """
    nodes = graph.graph
    for node in nodes.nodes:
        if node.target is not _aten.index_select.default or node.args[0].op != "call_function":
            continue
        source = node.args[0]
        if source.meta["val"].numel() > 4 * node.meta["val"].numel():
            continue
        with nodes.inserting_before(node):
            node.replace_input_with(source, nodes.call_function(storing(), (source,)))


def fold_indices(graph: GraphModule) -> None:
    """Compute indices that depend on no data, such as a triangle's, once; masks become positions.

    The shape of ``x[mask]`` is known only when the mask is.

    Args:
        graph: A graph, changed in place.
    """
    values: dict[Node, Any] = {}

    def known(node: Node) -> Any:
        """Return the value of a node that depends on no input, else None."""
        if node not in values:
            values[node] = evaluate(graph, node, known)
        return values[node]

    def folded(node: Node, index: Any) -> list[Any]:
        value = known(index) if isinstance(index, Node) else None
        if value is None:
            return [index]
        places = value.nonzero(as_tuple=True) if value.dtype is torch.bool else (value,)
        found = []
        for place in places:
            with graph.graph.inserting_before(node):
                found.append(hold(graph, place))
        return found

    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _MANY_INDICES:
            indices = [place for index in node.args[1] for place in folded(node, index)]
            node.args = (node.args[0], indices, *node.args[2:])
        elif node.target in _ONE_INDEX:
            node.args = (*node.args[:2], *folded(node, node.args[2]), *node.args[3:])


_MANY_INDICES = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)
_ONE_INDEX = (_aten.index_copy.default, _aten.index_select.default)


def evaluate(graph: GraphModule, node: Node, known: Callable[[Node], Any]) -> Any:
    """Return the value of a node whose arguments are known and that has no effect, else None.

    Args:
        graph: Its graph.
        node: The node.
        known: Returns the value of a node that comes before, or None.
    """
    if node.op == "get_attr":
        value = held_tensor(graph, node)
        fresh = all(user.target is _aten.lift_fresh_copy.default for user in node.users)
        return value if fresh else None
    if node.op != "call_function" or has_effect(node):
        return None
    if any(known(parent) is None for parent in node.all_input_nodes):
        return None
    target: Any = node.target
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known)
    return target(*args, **kwargs)


_UPDATES_STATISTICS = (
    _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default,
)
"""Operations that change arguments without saying so in their schema."""


def has_effect(node: Node) -> bool:
    """Tell whether a node changes a tensor or draws random numbers.

    Args:
        node: A node.
    """
    if node.op in ("placeholder", "output") or changes_tensors(node):
        return True
    target: Any = node.target
    return is_operator(target) and torch.Tag.nondeterministic_seeded in target.tags


def leave_out_unused(graph: GraphModule) -> None:
    """Erase what nothing reads and what has no effect.

    Args:
        graph: A graph, changed in place.
    """
    # An older torch's eliminate_dead_code does not take has_effect.
    for node in reversed(graph.graph.nodes):
        if not node.users and not has_effect(node):
            graph.graph.erase_node(node)
    graph.recompile()


def changes_tensors(node: Node) -> bool:
    """Tell whether a node changes a tensor in place.

    Args:
        node: A node.
    """
    target: Any = node.target
    mutable = is_operator(target) and target._schema.is_mutable
    return mutable or target in _UPDATES_STATISTICS


def hold(graph: GraphModule, tensor: Tensor) -> Node:
    """Return a new node that reads a tensor which the graph holds from now on.

    Args:
        graph: The graph, set to where the node is to be.
        tensor: The tensor.
    """
    name = f"_held{len(list(graph.named_buffers(remove_duplicate=False)))}"
    graph.register_buffer(name, tensor)
    return graph.graph.get_attr(name)


def held_tensor(graph: GraphModule, node: Node) -> Tensor:
    """Return the tensor that a graph holds under an attribute.

    Args:
        graph: The graph.
        node: The node that reads the attribute.

    Raises:
        Unsuitable: If it is no tensor.
    """
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise Unsuitable("it calls a function of functions inside. Write it with plain tensors")
    return value
