"""exp(-|x|), log(1 + exp(-|x|)) and sigmoids in compiled steps of single precision."""

from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyro_ext.training.compiled.exponential import exp_neg_abs_on_cpu
from pyro_ext.training.compiled.softplus import (
    _exact,
    _polynomial,
    _sigmoid,
    cheapen_softplus,
)

X = torch.cat([torch.linspace(-100, 100, 20_001), torch.linspace(-1, 1, 20_001)])


class Eager:
    """The compiler's operations, on tensors."""

    add, sub, mul, truediv = torch.add, torch.sub, torch.mul, torch.div
    exp, neg, abs, round = torch.exp, torch.neg, torch.abs, torch.round
    lt, where, bitwise_left_shift = torch.lt, torch.where, torch.bitwise_left_shift

    @staticmethod
    def constant(value, dtype):
        return torch.tensor(value, dtype=dtype)

    @staticmethod
    def to_dtype(x, dtype):
        return x.to(dtype)

    @staticmethod
    def to_dtype_bitcast(x, dtype, _):
        return x.view(dtype)


SPECIAL = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0], dtype=torch.float32)
SMALLEST = 1.22e-38  # what is less, or next to it, may count as zero
ON_CPU = {"exponential": exp_neg_abs_on_cpu}


def test_exponential_is_as_exact_as_single_precision():
    x = torch.cat([X, torch.linspace(-87.4, -87.2, 1001)]).float()
    single, exact = exp_neg_abs_on_cpu(Eager, x).double(), (-x.double().abs()).exp()
    # The last addition and the product with a power of two round by 6e-8, what they round by 1e-8.
    normal = exact > SMALLEST
    assert ((single - exact) / exact).abs()[normal].max() < 1.2e-7
    assert (single[~normal] <= SMALLEST).all()
    torch.testing.assert_close(
        exp_neg_abs_on_cpu(Eager, SPECIAL), (-SPECIAL.abs()).exp(), equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize("formula", [_polynomial, partial(_polynomial, **ON_CPU)])
def test_polynomial_is_as_exact_as_single_precision(formula):
    x = X.float().double()
    exact = _exact(x)
    in_double = _polynomial(
        type("Double", (Eager,), {"constant": lambda v, _: torch.tensor(v)}), x
    )
    assert ((in_double - exact) / exact).abs().max() < 4e-8  # the fit's own error is 3e-8
    single = formula(Eager, x.float()).double()
    # Some 20 operations round by 6e-8 each.
    assert ((single - exact).abs() <= 1e-6 * exact + SMALLEST).all()


@pytest.mark.parametrize("options", [{}, ON_CPU], ids=["own", "on_cpu"])
def test_infinities_and_nan_are_kept(options):
    log1p = _polynomial(Eager, SPECIAL, **options)
    torch.testing.assert_close(log1p, _exact(SPECIAL), equal_nan=True)
    sigmoid = _sigmoid(Eager, SPECIAL, **options)
    torch.testing.assert_close(sigmoid, SPECIAL.sigmoid(), equal_nan=True)


def bernoulli(x, target):
    return binary_cross_entropy_with_logits(x, target, reduction="none")


def softplus_gradient(x, grad):
    return torch.ops.aten.softplus_backward(grad, x, 1.0, 20.0)


@pytest.mark.parametrize(
    ("function", "dtype", "rewritten"),
    [
        (lambda x, _: softplus(x), torch.float32, True),
        (bernoulli, torch.float32, True),
        (softplus_gradient, torch.float32, True),
        (softplus_gradient, torch.float64, False),
        (lambda x, g: torch.ops.aten.softplus_backward(g, x, 2.0, 20.0), torch.float32, False),
        (lambda x, _: softplus(x), torch.float64, False),
        (lambda x, _: softplus(x, beta=2.0), torch.float32, False),
        (
            lambda x, t: binary_cross_entropy_with_logits(x, t, pos_weight=t, reduction="none"),
            torch.float32,
            False,
        ),
    ],
    ids=[
        "softplus",
        "Bernoulli",
        "gradient",
        "gradient, double",
        "gradient, beta",
        "double",
        "beta",
        "pos_weight",
    ],
)
def test_rewritten_graphs_compute_the_same(function, dtype, rewritten):
    x, target = X.to(dtype), (X > 3.0).to(dtype)
    graph = make_fx(function, tracing_mode="fake")(x, target)
    cheapen_softplus(graph)
    graph.recompile()
    assert ("exp_neg_abs" in graph.code) == rewritten
    error = (graph(x, target) - function(x, target)).abs()
    # A few sums of terms as large as x, each rounded by half an epsilon.
    assert (error <= 4 * torch.finfo(dtype).eps * (1 + x.abs())).all()


@pytest.mark.parametrize("options", [{}, ON_CPU], ids=["own", "on_cpu"])
def test_sigmoid_is_as_exact_as_torch(options):
    single = _sigmoid(Eager, X.float(), **options).double()
    exact = X.float().double().sigmoid()
    # Four operations round by 6e-8 each.
    assert ((single - exact).abs() <= 4e-7 * exact + SMALLEST).all()


@pytest.mark.parametrize(("dtype", "rewritten"), [(torch.float32, True), (torch.float64, False)])
def test_a_loss_and_its_gradient_share_the_exponential(dtype, rewritten):
    def loss_and_gradient(x, target):
        return bernoulli(x, target).sum(), x.sigmoid() - target

    inputs = X.to(dtype), (X > 3.0).to(dtype)
    graph = make_fx(loss_and_gradient, tracing_mode="fake")(*inputs)
    cheapen_softplus(graph)
    graph.recompile()
    assert ("sigmoid_by_exp_neg_abs" in graph.code) == rewritten
    torch.testing.assert_close(graph(*inputs), loss_and_gradient(*inputs))
