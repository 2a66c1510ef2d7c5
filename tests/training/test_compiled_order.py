"""The order in which a compiled step computes: gradients before sums, draws as they came."""

import torch
from torch._inductor import metrics

from pyro_ext.training.compiled import private
from pyro_ext.training.compiled.private import compile_graph, functional_graph

ROWS, COLUMNS = 6, 400


def compiled(function, *inputs):
    """Return the results of a compiled function, and the number of its loops over vectors."""
    graph = functional_graph(function, inputs)
    metrics.reset()
    call = compile_graph(graph, inputs, native_noise=True, cpp_wrapper=True)
    return call, metrics.generated_cpp_vec_kernel_count


def loss_and_gradient(x, y):
    return (x * y).exp().sum(-1), (x * y).exp() * y


def test_a_loss_and_its_gradient_are_one_loop(monkeypatch):
    inputs = torch.randn(ROWS, COLUMNS), torch.randn(COLUMNS)
    call, loops = compiled(loss_and_gradient, *inputs)
    torch.testing.assert_close(tuple(call(inputs)), loss_and_gradient(*inputs))
    monkeypatch.setattr(private, "_sums_last", lambda: None)
    _, before = compiled(loss_and_gradient, *inputs)
    assert loops < before


def draws(x):
    """Draw twice, the first time with a rate that is known after a sum."""
    first = torch.poisson(x.sum(-1).exp())
    return first, torch.randn_like(x), x.exp()


def test_random_numbers_keep_their_order_behind_a_sum():
    x = torch.randn(ROWS, COLUMNS) / COLUMNS
    call, _ = compiled(draws, x)
    torch.manual_seed(0)
    expected = draws(x)
    torch.manual_seed(0)
    for found, exact in zip(call([x]), expected, strict=True):
        torch.testing.assert_close(found, exact)
