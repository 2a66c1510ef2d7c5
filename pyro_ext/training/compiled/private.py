"""The only file that touches private interfaces of torch: graphs of a step, compiled or not."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

__all__ = [
    "TESTED_TORCH",
    "add_lowering",
    "add_operator",
    "add_product_lowering",
    "compile_graph",
    "flatten",
    "functional_graph",
    "is_operator",
    "nesting_key",
    "once",
    "onednn_product",
    "record_graph",
    "storing",
    "unflatten",
    "untested",
]

TESTED_TORCH = ("2.9", "2.10", "2.11", "2.12", "2.13", "2.14", "2.15")
"""Versions whose compiler was tested; with others, steps are recorded."""

Flat = Callable[[Sequence[Tensor]], Sequence[Tensor]]

_LIBRARIES: list[torch.library.Library] = []  # an operator lives as long as its library


def untested() -> str | None:
    """Return why steps are not compiled here, or None."""
    version = ".".join(torch.__version__.split(".")[:2])
    if version in TESTED_TORCH:
        return None
    return f"torch {version} is not among the versions that were tested, {', '.join(TESTED_TORCH)}"


def flatten(args: Any) -> tuple[list[Any], Any]:
    """Return the leaves of nested arguments, and a description of their nesting."""
    leaves, spec = pytree.tree_flatten(args)
    return leaves, spec


def nesting_key(spec: Any) -> Any:
    """Return what stands for a nesting in a set: itself, or its text if torch cannot hash it."""
    try:
        hash(spec)
    except TypeError:
        return repr(spec)
    return spec


def unflatten(leaves: list[Any], spec: Any) -> Any:
    """Return what ``flatten`` took apart."""
    return pytree.tree_unflatten(leaves, spec)


def is_operator(target: Any) -> bool:
    """Tell whether what a node calls is one of torch's operators, which has a schema and tags."""
    return isinstance(target, torch._ops.OpOverload)


def record_graph(fn: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """Run a function once and record what torch computes, with tensors it holds as attributes.

    Args:
        fn: A function of tensors that returns a tuple of tensors.
        inputs: Its arguments.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # One mode for the shapes of all results; the recorder would make one for each.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(fn)(*inputs)


def storing() -> Any:
    """Return the operator that makes a compiled graph store a tensor before it is read."""
    from torch._inductor import test_operators  # noqa: F401 (registers the operator)

    return torch.ops._inductor_test.realize.default


def once(tensor: Tensor) -> Tensor:
    """Return a tensor that a compiled graph computes once, not in each loop that reads it."""
    kept: Tensor = storing()(tensor)
    return kept


def add_operator(schema: str, kernels: dict[str, Callable[..., Tensor]]) -> Any:
    """Return a new operator of torch.

    Args:
        schema: Its name, arguments and result.
        kernels: What computes it, by dispatch key.
    """
    library = torch.library.Library("pyro_ext", "FRAGMENT")
    name = library.define(schema)
    for key, kernel in kernels.items():
        library.impl(name, kernel, key)
    _LIBRARIES.append(library)
    return getattr(torch.ops.pyro_ext, name).default


Formula = Callable[[Any, Any], Any]


def add_lowering(operator: Any, formula: Formula, *, on_cpu: Formula) -> None:
    """Tell the compiler how to compute an operator, element by element.

    Args:
        operator: An operator of one tensor.
        formula: Function of the compiler's own operations and an element.
        on_cpu: The same for a processor.
    """
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    def lower(x: Any) -> Any:
        chosen = on_cpu if x.get_device().type == "cpu" else formula
        return make_pointwise(lambda element: chosen(ops, element))(x)

    register_lowering(operator, broadcast=False)(lower)


def onednn_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two matrices by oneDNN, in whatever layout they are."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
    return product


def add_product_lowering(operator: Any) -> None:
    """Tell the compiler that an operator of two matrices is oneDNN's product.

    Args:
        operator: An operator of two matrices.
    """
    from torch._inductor import ir, mkldnn_ir
    from torch._inductor.lowering import permute, register_lowering

    def lower(left: Any, right: Any) -> Any:
        # Not LinearUnary.create, which copies matrices that are not stored row by row.
        def realized(matrix: Any) -> Any:
            return ir.ExternKernel.require_stride1(ir.ExternKernel.realize_input(matrix))

        x, weight = realized(left), realized(permute(right, [1, 0]))
        size = [x.get_size()[0], weight.get_size()[0]]
        layout = ir.FixedLayout(device=x.get_device(), dtype=x.get_dtype(), size=size)
        product = mkldnn_ir.LinearUnary(
            layout=layout, inputs=[x, weight], constant_args=[None, "none", [-1], ""]
        )
        return ir.TensorBox.create(mkldnn_ir._create_output_node(product))

    register_lowering(operator, type_promotion_kind=None)(lower)


def functional_graph(fn: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """Record a function without running it: shapes alone go through.

    Args:
        fn: A function of tensors that returns a tuple of tensors.
        inputs: Tensors like its arguments.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        return make_fx(fn, tracing_mode="fake")(*inputs)


def compile_graph(
    graph: GraphModule, inputs: Sequence[Tensor], *, native_noise: bool, cpp_wrapper: bool
) -> Flat:
    """Return the compiled graph, which changes in place the inputs that the graph changes.

    Args:
        graph: A graph of tensors alone.
        inputs: Tensors like its inputs, none of them twice.
        native_noise: Whether random numbers come from torch's own generator, in the graph's
            order.
        cpp_wrapper: Whether the code around the kernels is C++, too.
    """
    for node in graph.graph.nodes:
        node.meta.pop("val", None)  # of another fake mode than the compiler's
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about itself
        return _compile(graph, inputs, native_noise=native_noise, cpp_wrapper=cpp_wrapper)


def _compile(
    graph: GraphModule, inputs: Sequence[Tensor], *, native_noise: bool, cpp_wrapper: bool
) -> Flat:
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    made: list[Any] = []

    def keep(inner: GraphModule, examples: Any, **options: Any) -> Any:
        made.append(compile_fx_inner(inner, examples, **options))
        return made[-1]

    settings: Any = {
        "fallback_random": native_noise,
        "cpp_wrapper": cpp_wrapper,
        # One allocation for all that is not returned, not one for each tensor.
        "memory_planning": True,
        "memory_pool": "intermediates",
        # Who calls has made sure of the inputs, and each of these costs time in every step.
        "size_asserts": False,
        "alignment_asserts": False,
        "scalar_asserts": False,
        # A product and a sum are one instruction, rounded once.
        "cpp.enable_floating_point_contract_flag": "fast",
    }
    if cpp_wrapper:
        settings["_pre_fusion_custom_pass"] = _sums_last()
    with torch.no_grad(), config.patch(settings), _deep_recursion():
        compile_fx(graph, list(inputs), inner_compile=keep)
    (inner,) = made
    return _direct(getattr(inner, "current_callable", None) or inner)


@cache
def _sums_last() -> Any:
    """Return a pass by which a sum comes after the loops that could be one with it.

    On the CPU the compiler lets a sum join an element-wise loop over the same elements, but not
    the loop the sum: loss and gradient would each read the logits and take their exponentials.
    """
    from torch._inductor import custom_graph_pass as passes

    # Its name before torch 2.13.
    base: Any = getattr(passes, "CustomSchedulerPass", passes.CustomGraphPass)

    class SumsLast(base):  # type: ignore[misc]
        def __call__(self, nodes: list[Any]) -> list[Any]:
            last: set[str] = set()
            for node in nodes:
                if node.is_reduction() or not last.isdisjoint(node.ancestors):
                    last.add(node.get_name())
            return sorted(nodes, key=lambda node: node.get_name() in last)

        def uuid(self) -> str:
            return "pyro_ext.sums_last"

    return SumsLast()


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """Give the planning of memory, which recurses over all tensors, the depth that it needs."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _direct(call: Any) -> Flat:
    """Return the C++ entry of a compiled graph without the check of its inputs, which are tensors.

    The check is a tenth of a small step. Where the wrapper is another than the known one, it
    is returned as it is.
    """
    cells: Sequence[Any] = getattr(call, "__closure__", None) or ()
    if getattr(call, "__qualname__", "") != "_wrap_func.<locals>.g" or len(cells) != 1:
        return lambda inputs: call(list(inputs))
    entry = cells[0].cell_contents
    to_handles: Any = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors
    to_tensors: Any = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs
    return lambda inputs: to_tensors(entry(to_handles(inputs)))
