"""A thinned graph computes the same bits, and keeps what only looks as if it were the same."""

import pytest
import torch

from pyro_ext.training.compiled.bindings import bind
from pyro_ext.training.compiled.private import record_graph
from pyro_ext.training.compiled.thin import thin


def thinned(function, *inputs):
    """Return a recorded function, its answer, and the same thinned and bound to torch's own."""
    graph = record_graph(lambda *tensors: tuple(function(*tensors)), inputs)
    before = [tensor.clone() for tensor in graph(*inputs)]
    thin(graph)
    return graph, before


def operations(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def assert_same(graph, before, *inputs):
    for _ in range(2):
        for one, other in zip(graph(*inputs), before, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    bind(graph)
    for one, other in zip(graph(*inputs), before, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


X = torch.linspace(-1.0, 2.0, 6)


def test_constants_are_computed_once():
    def function(x):
        scale = torch.full((6,), 2.0).log()
        return x * scale.exp().expand(6) + torch.zeros_like(x), x.new_ones(())

    graph, before = thinned(function, X)
    assert operations(graph) == ["aten.mul.Tensor", "aten.add.Tensor", "aten.new_ones.default"]
    assert_same(graph, before, X)


def test_what_changes_nothing_is_left_out():
    def function(x):
        same = torch.cat([x.view(6).expand(6).detach()]).pow(1.0)
        return ((x.view(2, 3).t().t() / 1).sum() + same,)

    graph, before = thinned(function, X)
    kept = ["view.default", "div.Tensor", "sum.default", "add.Tensor"]
    assert operations(graph) == [f"aten.{name}" for name in kept]
    assert_same(graph, before, X)


def test_repetitions_are_computed_once():
    graph, before = thinned(lambda x: (x.exp() + x.exp() * x.sigmoid(), x.sigmoid() + 1), X)
    assert operations(graph).count("aten.exp.default") == 1
    assert operations(graph).count("aten.sigmoid.default") == 1
    assert_same(graph, before, X)


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (2, 2.0), (True, 1)], ids=["one", "two", "bool"]
)
def test_numbers_that_are_equal_are_told_apart(one, other):
    whole = torch.arange(6)
    graph, before = thinned(lambda x: (x * one + 0, x * other + 0), whole)
    assert operations(graph).count("aten.mul.Tensor") == 2
    assert_same(graph, before, whole)


def test_zeros_of_both_signs_are_told_apart():
    graph, before = thinned(lambda x: (1 / (x * 0.0 * -0.0), 1 / (x * -0.0 * -0.0)), X.abs() + 1)
    assert_same(graph, before, X.abs() + 1)
    assert before[0].tolist() == (-before[1]).tolist()


def test_draws_are_not_repetitions():
    graph, _ = thinned(lambda x: (torch.rand_like(x) - torch.rand_like(x),), X)
    torch.manual_seed(0)
    (found,) = graph(X)
    torch.manual_seed(0)
    assert torch.equal(found, torch.rand(6) - torch.rand(6))


def changed_between(x):
    y = x.clone()
    view, first = y.view(2, 3), y.exp() * 2
    before = view * 3
    y.add_(1.0)
    return first + y.exp() * 2, before + view * 3


def constant_that_is_changed(x):
    total = torch.zeros(6)
    total.add_(x)
    return total * 2, torch.zeros(6) + x


def view_of_a_constant_that_is_changed(x):
    total = torch.zeros(2, 3)
    total.view(6).add_(x)
    return (total + total.view(6).sum(),)


def copy_that_is_changed(x):
    y = x * 2
    copy = y.pow(1.0)
    copy.add_(1.0)
    return y * 1.5, copy * 1.5


def copied_before_a_change(x):
    y = x * 2
    copy = torch.cat([y])
    y.add_(1.0)
    return y * 1.5, copy * 1.5


@pytest.mark.parametrize(
    "function",
    [
        changed_between,
        constant_that_is_changed,
        view_of_a_constant_that_is_changed,
        copy_that_is_changed,
        copied_before_a_change,
    ],
    ids=lambda function: function.__name__,
)
def test_what_is_changed_in_place_is_no_constant_and_no_repetition(function):
    graph, before = thinned(function, X)
    assert_same(graph, before, X)


def twice(x, mean, variance):
    return (normed(x, mean, variance) + normed(x, mean, variance),)


def unread(x, mean, variance):
    normed(x, mean, variance)
    normed(x, mean, variance)
    return (x * 1.5,)


def normed(x, mean, variance):
    return torch.nn.functional.batch_norm(x, mean, variance, training=True, momentum=0.5)


@pytest.mark.parametrize("function", [twice, unread])
def test_batch_norm_counts_each_pass(function):
    """Its operator changes the statistics without saying so: two passes are no repetition."""
    x, mean, variance = X.view(3, 2), torch.zeros(2), torch.ones(2)
    graph, _ = thinned(function, x, mean, variance)
    mean.zero_()
    graph(x, mean, variance)
    torch.testing.assert_close(mean, 0.75 * x.mean(0))


def test_who_is_given_a_constant_may_change_it():
    graph, _ = thinned(lambda x: (torch.ones(6), (x * 0).view(6)), X)
    for _ in range(2):
        (ones, _) = graph(X)
        assert ones.tolist() == [1.0] * 6
        ones.zero_()


def test_large_constants_are_not_held():
    graph, before = thinned(lambda x: (x + torch.zeros(2_000_000).exp().sum(),), X)
    assert "aten.zeros.default" not in operations(graph)  # only its sum is held
    assert_same(graph, before, X)
    graph, before = thinned(lambda x: (x.sum() + torch.zeros(2_000_000),), X)
    assert "aten.zeros.default" in operations(graph)


def test_binding_leaves_torchs_operators_alone():
    target = torch.ops.aten.mul.Tensor
    graph, _ = thinned(lambda x: (x * x,), X)
    bind(graph)
    assert torch.ops.aten.mul.Tensor is target
    assert "torch.mul" in graph.code
