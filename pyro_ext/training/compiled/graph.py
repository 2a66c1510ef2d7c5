"""Loss and gradient of a (model, guide) pair as a graph of tensor operations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_ext.training.compiled.factorizations import mark_failures
from pyro_ext.training.compiled.private import is_operator, record_graph
from pyro_ext.training.compiled.simplify import Unsuitable, held_tensor

__all__ = ["Recorded", "record"]

_aten = torch.ops.aten
_LARGEST = 20_000


@dataclass(frozen=True)
class Recorded:
    """A graph, and the tensors that it holds.

    Args:
        graph: A function of the step's tensors and then ``held``, that returns the loss and the
            gradients of ``params``.
        held: Parameters and tensors closed over, the tensors themselves.
        params: The trained ones.
    """

    graph: GraphModule
    held: list[Tensor]
    params: list[Tensor]


def record(
    loss: Callable[..., Tensor],
    params: Sequence[Tensor],
    tensors: Sequence[Tensor],
    rewrite: Callable[[GraphModule], None],
) -> Recorded:
    """Run a loss once and record it with its gradient.

    Args:
        loss: The differentiable loss as a function of the step's tensors.
        params: Trainable tensors; those without gradient are left out.
        tensors: The step's tensors.
        rewrite: Makes of the graph, in place, one that computes the same at less cost.

    Raises:
        Unsuitable: If the loss cannot be recorded.
    """
    used: list[Tensor] = []

    def with_gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        value = loss(*inputs)
        if not value.requires_grad:
            raise Unsuitable("its loss has no gradient. Train a guide or model with parameters")
        grads = torch.autograd.grad(value, list(params), allow_unused=True)
        given = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
        used.extend(param for param, _ in given)
        return value.detach(), *(grad for _, grad in given)

    graph = record_graph(with_gradient, tensors)
    mark_failures(graph)
    rewrite(graph)
    held = _lift(graph)
    _check(graph)
    known = {id(tensor) for tensor in held}
    if not all(id(param) in known for param in used):
        raise Unsuitable("a parameter does not appear in its graph. Write px.fit(...)")
    return Recorded(graph, held, used)


def _lift(graph: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds; numbers made on the way stay inside."""
    nodes = graph.graph
    last = [node for node in nodes.nodes if node.op == "placeholder"]
    inputs: dict[int, Node] = {}
    held: list[Tensor] = []
    for node in [node for node in nodes.nodes if node.op == "get_attr"]:
        value = held_tensor(graph, node)
        fresh = [user for user in node.users if user.target is _aten.lift_fresh_copy.default]
        if fresh and value.dim() == 0:
            for user in fresh:
                with nodes.inserting_before(user):
                    constant = nodes.call_function(
                        _aten.full.default,
                        ([], value.item()),
                        {"dtype": value.dtype, "device": value.device},
                    )
                user.replace_all_uses_with(constant)
                nodes.erase_node(user)
        if not node.users:
            nodes.erase_node(node)
            continue
        if id(value) not in inputs:
            where = nodes.inserting_after(last[-1]) if last else nodes.inserting_before()
            with where:
                last.append(nodes.placeholder(f"held_{len(held)}"))
            inputs[id(value)] = last[-1]
            held.append(value)
        node.replace_all_uses_with(inputs[id(value)])
        nodes.erase_node(node)
    graph.recompile()
    return held


def _check(graph: GraphModule) -> None:
    if len(graph.graph.nodes) > _LARGEST:
        raise Unsuitable(
            f"its step has more than {_LARGEST} operations. Write pyro.plate as a context, "
            "with pyro.plate(...), for a loop over it"
        )
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        indices = node.args[1] if node.target is _aten.index.Tensor else ()
        masks = [i for i in indices if isinstance(i, Node) and _dtype(i) is torch.bool]
        target: Any = node.target
        sized = is_operator(target) and torch.Tag.dynamic_output_shape in target.tags
        if masks or (sized and node.target is not _aten.index.Tensor):
            raise Unsuitable(
                f"the shape of a tensor depends on values ({node.target}). Write torch.where("
                "mask, x, 0.0) for x[mask]"
            )


def _dtype(node: Node) -> torch.dtype | None:
    meta = node.meta.get("val", node.meta.get("tensor_meta"))
    return getattr(meta, "dtype", None)
