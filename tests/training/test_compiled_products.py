"""Large matrix products of compiled steps by oneDNN."""

import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_ext.training.compiled import products
from pyro_ext.training.compiled.private import compile_graph

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")

SIZES = {"square": (128, 64, 128), "long": (128, 512, 64), "wide": (64, 512, 128)}


@pytest.fixture
def chosen(monkeypatch):
    """The machine's own choice does not matter here."""
    monkeypatch.setattr(products, "_faster", lambda threads: True)


def matrix(rows, columns, *, by_column, dtype=torch.float32):
    made = torch.randn((columns, rows) if by_column else (rows, columns), dtype=dtype)
    return made.t() if by_column else made


def recorded(left, right):
    return make_fx(torch.mm, tracing_mode="fake")(left, right)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("by_column", [(a, b) for a in (False, True) for b in (False, True)])
def test_products_are_the_same_in_every_layout(chosen, size, by_column):
    rows, inner, columns = SIZES[size]
    left = matrix(rows, inner, by_column=by_column[0])
    right = matrix(inner, columns, by_column=by_column[1])
    graph = recorded(left, right)
    found = products.with_faster_products(graph)
    assert "pyro_ext.product" in found.code
    assert "pyro_ext.product" not in graph.code  # what the compiled step is compared with
    exact = left.double() @ right.double()
    # Rounding of a sum of ``inner`` products of size 1, with a factor for the order of summing.
    tolerance = 4 * torch.finfo(torch.float32).eps * inner
    assert (found(left, right) - exact).abs().max() < tolerance


@pytest.mark.parametrize(
    ("size", "dtype"), [((20, 64, 128), torch.float32), ((128, 64, 128), torch.float64)]
)
def test_small_and_double_products_stay(chosen, size, dtype):
    rows, inner, columns = size
    left = matrix(rows, inner, by_column=False, dtype=dtype)
    right = matrix(inner, columns, by_column=False, dtype=dtype)
    graph = recorded(left, right)
    assert products.with_faster_products(graph) is graph


@pytest.mark.parametrize("gain", [2.0, 1.0])
def test_the_trial_is_in_single_precision_whatever_the_default(monkeypatch, gain):
    seen = []

    def seconds(product, left, right):
        seen.append(product(left, right))
        return 1.0 if product is products.onednn_product else gain

    monkeypatch.setattr(products, "_seconds", seconds)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert products._faster.__wrapped__(1) == (gain > 1.2)
    finally:
        torch.set_default_dtype(before)
    assert [one.dtype for one in seen] == [torch.float32] * 2
    torch.testing.assert_close(seen[0], seen[1])


def test_nothing_changes_where_the_default_is_as_fast(monkeypatch):
    monkeypatch.setattr(products, "_faster", lambda threads: False)
    graph = recorded(torch.randn(128, 64), torch.randn(64, 128))
    assert products.with_faster_products(graph) is graph


@pytest.mark.slow
def test_compiled_products_are_onednns(chosen):
    pairs = [
        (matrix(128, 512, by_column=a), matrix(512, 64, by_column=b))
        for a in (False, True)
        for b in (False, True)
    ]
    inputs = [tensor for pair in pairs for tensor in pair]

    def step(*tensors):
        return tuple(
            torch.relu(a @ b).sum(0) for a, b in zip(tensors[::2], tensors[1::2], strict=True)
        )

    graph = products.with_faster_products(make_fx(step, tracing_mode="fake")(*inputs))
    limit = sys.getrecursionlimit()
    compiled = compile_graph(graph, inputs, native_noise=True, cpp_wrapper=True)
    assert sys.getrecursionlimit() == limit
    for found, expected in zip(compiled(inputs), step(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
