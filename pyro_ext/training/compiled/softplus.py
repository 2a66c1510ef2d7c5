"""log(1 + exp(-|x|)) and sigmoids, which losses are full of, at a fraction of what they cost."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_ext.training.compiled.exponential import exp_neg_abs, exp_neg_abs_on_cpu, polynomial
from pyro_ext.training.compiled.private import add_lowering, add_operator

__all__ = ["cheapen_softplus"]

_aten = torch.ops.aten
_ON_CPU: Any = {"exponential": exp_neg_abs_on_cpu}
_COEFFICIENTS = (
    0.99999997,
    -0.499994931,
    0.333190968,
    -0.248429821,
    0.191060064,
    -0.136632449,
    0.0782259417,
    -0.0295052325,
    0.0052326927,
)  # of log(1 + e) / e on [0, 1] with the least largest relative error, 3e-8


def cheapen_softplus(graph: GraphModule) -> None:
    r"""Write softplus, its gradient, Bernoulli log likelihoods and sigmoids by one e, in float32.

    .. math:: \log(1 + e) \approx e \, (c_0 + c_1 e + \dots + c_8 e^8), \qquad e = e^{-|x|} \le 1

    Args:
        graph: A graph, changed in place.
    """
    for node in list(graph.graph.nodes):
        rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
        if rewrite is None or not _single(node.args[0]):
            continue
        with graph.graph.inserting_before(node):
            new = rewrite(graph.graph.call_function, *node.args, **node.kwargs)
        if new is not None:
            node.replace_all_uses_with(new)


def _softplus(call: Any, x: Node, beta: float = 1, threshold: float = 20) -> Any:
    if beta != 1 or threshold < 20:
        return None
    return call(_aten.add.Tensor, (call(_aten.relu.default, (x,)), call(_operator(), (x,))))


def _softplus_backward(call: Any, grad: Node, x: Node, beta: float, threshold: float) -> Any:
    if beta != 1 or threshold < 20:
        return None
    return call(_aten.mul.Tensor, (grad, call(_sigmoid_operator(), (x,))))


def _cross_entropy(
    call: Any,
    x: Node,
    target: Node,
    weight: Node | None = None,
    pos_weight: Node | None = None,
    reduction: int = 1,
) -> Any:
    if weight is not None or pos_weight is not None or reduction != 0:
        return None
    linear = call(_aten.mul.Tensor, (x, target))
    rest = call(_aten.sub.Tensor, (call(_aten.relu.default, (x,)), linear))
    return call(_aten.add.Tensor, (rest, call(_operator(), (x,))))


def _logistic(call: Any, x: Node) -> Any:
    return call(_sigmoid_operator(), (x,))


_REWRITES: dict[Any, Any] = {
    _aten.sigmoid.default: _logistic,
    _aten.softplus.default: _softplus,
    _aten.softplus_backward.default: _softplus_backward,
    _aten.binary_cross_entropy_with_logits.default: _cross_entropy,
}


def _single(x: Any) -> bool:
    value = x.meta.get("val", x.meta.get("tensor_meta")) if isinstance(x, Node) else None
    return value is not None and value.dtype is torch.float32


@cache
def _operator() -> Any:
    """Return the operator, which compiled code computes by the polynomial."""
    kernels = {"CompositeExplicitAutograd": _exact}
    operator = add_operator("log1p_exp_neg_abs(Tensor x) -> Tensor", kernels)
    add_lowering(operator, _polynomial, on_cpu=partial(_polynomial, **_ON_CPU))
    return operator


@cache
def _sigmoid_operator() -> Any:
    """Return the sigmoid that compiled code computes from exp(-|x|)."""
    kernels = {"CompositeExplicitAutograd": torch.sigmoid}
    operator = add_operator("sigmoid_by_exp_neg_abs(Tensor x) -> Tensor", kernels)
    add_lowering(operator, _sigmoid, on_cpu=partial(_sigmoid, **_ON_CPU))
    return operator


def _exact(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-x.abs()))


def _sigmoid(ops: Any, x: Any, exponential: Callable[[Any, Any], Any] = exp_neg_abs) -> Any:
    e, one = exponential(ops, x), ops.constant(1.0, torch.float32)
    above = ops.truediv(one, ops.add(one, e))
    return ops.where(ops.lt(x, ops.constant(0.0, torch.float32)), ops.mul(e, above), above)


def _polynomial(ops: Any, x: Any, exponential: Callable[[Any, Any], Any] = exp_neg_abs) -> Any:
    e = exponential(ops, x)
    return ops.mul(polynomial(ops, e, _COEFFICIENTS), e)
