"""Matrix products by the faster of the two libraries that torch has on board for them."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_ext.training.compiled.private import (
    add_operator,
    add_product_lowering,
    onednn_product,
)

__all__ = ["with_faster_products"]

_aten = torch.ops.aten
_SMALLEST = 1_000_000  # multiplications below which the call costs more than the product
_LONG = 500  # inner length from which transposing the answer is cheaper than the first matrix
_GAIN = 1.2  # ratio of times below which the libraries count as equal


def with_faster_products(graph: GraphModule) -> GraphModule:
    """Return a copy of a graph whose large products in single precision are oneDNN's.

    Torch hands products to MKL, which makes use of AVX-512 on some processors only. The graph is
    returned as it is where MKL is as fast.

    Args:
        graph: A graph of tensors on the CPU, recorded with shapes.
    """
    if not any(_large(node) for node in graph.graph.nodes) or not _faster(torch.get_num_threads()):
        return graph
    nodes = torch.fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    copy = GraphModule(graph, nodes)
    for node in [node for node in nodes.nodes if _large(node)]:
        with nodes.inserting_before(node):
            node.replace_all_uses_with(_product(nodes.call_function, *node.args))
        nodes.erase_node(node)
    copy.recompile()
    return copy


def _large(node: Node) -> bool:
    if node.target is not _aten.mm.default:
        return False
    left, right = map(_value, node.args)
    size = left.shape[0] * left.shape[1] * right.shape[1]
    return left.dtype is torch.float32 and size >= _SMALLEST


def _product(call: Callable[..., Node], left: Node, right: Node) -> Node:
    """Return the product, of the transposed matrices where oneDNN would have to copy the first."""
    a, b = _value(left), _value(right)
    columns = [matrix.stride(1) != 1 for matrix in (a, b)]
    longer = a.shape[0] > b.shape[1] and a.shape[1] >= _LONG
    if columns[0] and (columns[1] or longer):
        flipped = (call(_aten.t.default, (right,)), call(_aten.t.default, (left,)))
        return call(_aten.t.default, (call(_operator(), flipped),))
    return call(_operator(), (left, right))


def _value(node: Any) -> Tensor:
    """Return the tensor, without numbers, that a graph was recorded with."""
    value: Tensor = node.meta["val"]
    return value


@cache
def _faster(threads: int) -> bool:
    """Tell whether oneDNN is faster than MKL here with so many threads; both are tried once."""
    if not torch.backends.mkldnn.is_available():
        return False
    left, right = (torch.ones(512, 512, dtype=torch.float32, device="cpu") for _ in range(2))
    with torch.no_grad():
        ours, theirs = (_seconds(f, left, right) for f in (onednn_product, torch.mm))
    return theirs > _GAIN * ours


def _seconds(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    fastest = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        product(left, right)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


@cache
def _operator() -> Any:
    """Return the operator, which compiled code computes by a call of oneDNN."""
    kernels = {"CPU": onednn_product, "Meta": lambda a, b: a.new_empty(a.shape[0], b.shape[1])}
    operator = add_operator("product(Tensor left, Tensor right) -> Tensor", kernels)
    add_product_lowering(operator)
    return operator
