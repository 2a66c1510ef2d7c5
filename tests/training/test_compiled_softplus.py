"""The polynomial for log(1 + exp(-|x|)) in compiled steps of single precision."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyro_ext.training.compiled.softplus import (
    _exact,
    _polynomial,
    _sigmoid,
    cheapen_softplus,
)

X = torch.cat([torch.linspace(-100, 100, 20_001), torch.linspace(-1, 1, 20_001)])


class Eager:
    """The compiler's operations, on tensors."""

    add, mul, truediv = torch.add, torch.mul, torch.div
    exp, neg, abs = torch.exp, torch.neg, torch.abs
    lt, where = torch.lt, torch.where

    @staticmethod
    def constant(value, dtype):
        return torch.tensor(value, dtype=dtype)


def test_polynomial_is_as_exact_as_single_precision():
    x = X.float().double()
    exact = _exact(x)
    in_double = _polynomial(
        type("Double", (Eager,), {"constant": lambda v, _: torch.tensor(v)}), x
    )
    assert ((in_double - exact) / exact).abs().max() < 4e-8  # the fit's own error is 3e-8
    single = _polynomial(Eager, x.float()).double()
    # Some 20 operations round by 6e-8 each; below 1e-37 numbers are denormal.
    assert ((single - exact) / exact.clamp(min=1e-37)).abs().max() < 1e-6


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_polynomial_keeps_infinities_and_nan(value):
    x = torch.tensor(value, dtype=torch.float32)
    torch.testing.assert_close(_polynomial(Eager, x), _exact(x), equal_nan=True)


def bernoulli(x, target):
    return binary_cross_entropy_with_logits(x, target, reduction="none")


@pytest.mark.parametrize(
    ("function", "dtype", "rewritten"),
    [
        (lambda x, _: softplus(x), torch.float32, True),
        (bernoulli, torch.float32, True),
        (lambda x, _: softplus(x), torch.float64, False),
        (lambda x, _: softplus(x, beta=2.0), torch.float32, False),
        (
            lambda x, t: binary_cross_entropy_with_logits(x, t, pos_weight=t, reduction="none"),
            torch.float32,
            False,
        ),
    ],
    ids=["softplus", "Bernoulli", "double", "beta", "pos_weight"],
)
def test_rewritten_graphs_compute_the_same(function, dtype, rewritten):
    x, target = X.to(dtype), (X > 3.0).to(dtype)
    graph = make_fx(function, tracing_mode="fake")(x, target)
    cheapen_softplus(graph)
    graph.recompile()
    assert ("log1p_exp_neg_abs" in graph.code) == rewritten
    error = (graph(x, target) - function(x, target)).abs()
    # A few sums of terms as large as x, each rounded by half an epsilon.
    assert (error <= 4 * torch.finfo(dtype).eps * (1 + x.abs())).all()


def test_sigmoid_by_the_same_exponential_is_as_exact_as_torch():
    single = _sigmoid(Eager, X.float()).double()
    exact = X.float().double().sigmoid()
    # Four operations round by 6e-8 each; below 1e-37 numbers are denormal.
    assert ((single - exact) / exact.clamp(min=1e-37)).abs().max() < 4e-7
    special = torch.tensor([float("inf"), -float("inf"), float("nan")], dtype=torch.float32)
    torch.testing.assert_close(_sigmoid(Eager, special), special.sigmoid(), equal_nan=True)


def loss_and_gradient(x, target):
    return bernoulli(x, target).sum(), x.sigmoid() - target


@pytest.mark.parametrize(
    ("function", "shared"), [(loss_and_gradient, True), (lambda x, _: x.sigmoid(), False)]
)
def test_sigmoids_share_the_exponential_of_a_loss(function, shared):
    inputs = X.float(), (X > 3.0).float()
    graph = make_fx(function, tracing_mode="fake")(*inputs)
    cheapen_softplus(graph)
    graph.recompile()
    assert ("sigmoid_by_exp_neg_abs" in graph.code) == shared
    torch.testing.assert_close(graph(*inputs), function(*inputs))
