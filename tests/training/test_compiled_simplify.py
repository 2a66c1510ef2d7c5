"""Rewrites of a recorded graph compute the same as what was recorded."""

import pytest
import torch

from pyro_ext.training.compiled.private import record_graph
from pyro_ext.training.compiled.simplify import simplify


def both(function, *inputs):
    """Return what a graph computes before and after the rewrites, and its code after them."""
    graph = record_graph(lambda *tensors: (function(*tensors),), inputs)
    (before,) = graph(*inputs)
    simplify(graph)
    (after,) = graph(*inputs)
    return before, after, graph.code


@pytest.mark.parametrize(("rows", "stored"), [(40, True), (3, False)])
def test_picked_entries_are_stored_first_where_they_are_many(rows, stored):
    table, places = torch.randn(50, dtype=torch.float64), torch.arange(rows)
    before, after, code = both(lambda x, i: x.exp().index_select(0, i), table, places)
    torch.testing.assert_close(after, before, rtol=0.0, atol=0.0)
    assert ("realize" in code) == stored


def test_entries_of_an_input_are_picked_where_they_are():
    table, places = torch.randn(50), torch.arange(40)
    _, _, code = both(lambda x, i: x.index_select(0, i), table, places)
    assert "realize" not in code


def test_an_index_that_is_read_twice_keeps_its_place():
    def function(x):
        mask = torch.ones(3, 3, dtype=torch.bool).tril()
        inner, outer = torch.tril_indices(3, 3, -1), torch.triu_indices(3, 3, 1)
        row = inner[0]
        return x[mask].sum() + x.index_select(0, row) @ x.index_select(0, row).T + x[tuple(outer)]

    before, after, _ = both(function, torch.randn(3, 3, dtype=torch.float64))
    torch.testing.assert_close(after, before, rtol=0.0, atol=0.0)


def test_an_identity_matrix_is_kept_and_may_be_written_to():
    def function(x):
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[1] += x
        return matrix

    x = torch.randn(3, dtype=torch.float64)
    graph = record_graph(lambda x: (function(x),), [x])
    simplify(graph)
    assert "eye" not in graph.code
    for _ in range(2):
        torch.testing.assert_close(graph(x)[0], function(x), rtol=0.0, atol=0.0)
