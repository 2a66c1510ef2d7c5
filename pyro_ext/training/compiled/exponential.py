"""exp(-|x|) as operations of a compiled loop, where a call of a library empties all registers."""

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["exp_neg_abs", "exp_neg_abs_on_cpu", "polynomial"]

_PER_LOG_2 = 1.44269504
_LOG_2 = (0.693359375, -2.12194440e-4)  # in two parts, as whole multiples of the first are exact
_COEFFICIENTS = (
    5.0000001201e-1,
    1.6666665459e-1,
    4.1665795894e-2,
    8.3334519073e-3,
    1.3981999507e-3,
    1.9875691500e-4,
)  # of (exp(r) - 1 - r) / r^2 for |r| < log(2) / 2, from Moshier's Cephes library
_BIAS, _MANTISSA = 127, 23  # of the exponent, and the bits to its right
_SMALLEST = -87.3  # below which the result is denormal


def exp_neg_abs(ops: Any, x: Any) -> Any:
    """Write exp(-|x|) by the compiler's own exponential.

    Args:
        ops: The compiler's operations.
        x: An element of single precision.
    """
    return ops.exp(ops.neg(ops.abs(x)))


def polynomial(ops: Any, x: Any, coefficients: Sequence[float]) -> Any:
    r"""Write a polynomial by pairs of its terms, which do not wait for each other (Estrin).

    .. math:: c_0 + c_1 x + \dots = (c_0 + c_1 x) + (c_2 + c_3 x) x^2 + \dots

    Args:
        ops: The compiler's operations.
        x: An element of single precision.
        coefficients: Of the powers of x, from the constant up.
    """
    terms = [ops.constant(value, torch.float32) for value in coefficients]
    while len(terms) > 1:
        pairs = [ops.add(ops.mul(b, x), a) for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
        x = ops.mul(x, x)
    return terms[0]


def exp_neg_abs_on_cpu(ops: Any, x: Any) -> Any:
    r"""Write exp(-|x|) by multiplications, and zero where it is denormal.

    .. math:: e^y = 2^n e^r, \quad n = \mathrm{round}(y / \log 2), \quad
        e^r \approx 1 + r + r^2 \sum_i c_i r^i

    Args:
        ops: The compiler's operations.
        x: An element of single precision.
    """

    def number(value: float) -> Any:
        return ops.constant(value, torch.float32)

    def whole(value: int) -> Any:
        return ops.constant(value, torch.int32)

    y = ops.neg(ops.abs(x))
    n = ops.round(ops.mul(y, number(_PER_LOG_2)))
    r = y
    for part in _LOG_2:
        r = ops.sub(r, ops.mul(n, number(part)))
    series = ops.mul(polynomial(ops, r, _COEFFICIENTS), ops.mul(r, r))
    mantissa = ops.add(ops.add(series, r), number(1.0))
    exponent = ops.add(ops.to_dtype(n, torch.int32), whole(_BIAS))
    bits = ops.bitwise_left_shift(exponent, whole(_MANTISSA))
    power = ops.to_dtype_bitcast(bits, torch.float32, torch.int32)
    denormal = ops.lt(y, number(_SMALLEST))
    return ops.where(denormal, number(0.0), ops.mul(mantissa, power))
