"""Statistical assertions whose tolerance is a false-alarm rate, and where noise comes from."""

import torch
from scipy.stats import t as student
from torch import Tensor

__all__ = [
    "STANDARD_NORMALS",
    "TEST_FAILURE_RATE",
    "assert_at_most",
    "assert_mean",
    "assert_paired_mean",
]

STANDARD_NORMALS = (
    "torch.randn",
    "torch.distributions.normal._standard_normal",
    "torch.distributions.multivariate_normal._standard_normal",
)
"""Where the noise of normal draws comes from, for a test that deals it out itself."""

TEST_FAILURE_RATE = 1e-6
"""Chance that a correct implementation fails one call of an assertion below."""


def assert_mean(
    samples: Tensor,
    expected: Tensor | float,
    *,
    failure_rate: float = TEST_FAILURE_RATE,
) -> None:
    """Assert that the expectation of independent rows is the expected one.

    Two-sided t-test of each scalar, with the failure rate shared among the scalars (Bonferroni),
    so that the whole call fails a correct implementation with at most ``failure_rate``. The rate
    is exact for normal rows and an approximation for others: far in the tails it needs thousands
    of rows, more where they are skewed.

    With many rows a bias of 4.9 standard errors, ``4.9 * sd / sqrt(n)`` for one scalar, is found
    half of the time, one of 7.3 standard errors 99 % of the time. With few rows Student's t needs
    far more: 7.1 at n = 20, 28 at n = 6, and 636,619 at n = 2, which can hardly fail.

    Rows that are all equal have no error: their mean then equals the expectation to rounding.

    Args:
        samples: Independent draws of the estimator, shape ``(n, *event)``.
        expected: What they are an unbiased estimate of, broadcastable to shape ``event``.
        failure_rate: Chance that the assertion fails although the expectation is right.
    """
    scores, scalars, degrees = _scores(samples, expected)
    limit = float(student.isf(failure_rate / (2 * scalars), degrees))
    worst = int(scores.abs().argmax())
    assert abs(float(scores[worst])) <= limit, (
        f"expected mean == {_report(samples, expected, scores, worst, limit)}"
    )


def assert_paired_mean(
    samples: Tensor,
    others: Tensor,
    *,
    difference: Tensor | float = 0.0,
    failure_rate: float = TEST_FAILURE_RATE,
) -> None:
    """Assert that two estimators computed on the same random numbers have the same expectation.

    The t-test is one of the differences of paired rows, so what the two have in common cancels:
    a bias of 4.9 standard deviations *of the difference* over ``sqrt(n)`` is found half of the
    time, where two separate samples would hide it in the noise that they share.

    Args:
        samples: Draws of the first estimator, shape ``(n, *event)``.
        others: Draws of the second, row by row from the same random numbers, same shape.
        difference: What the first is expected to exceed the second by.
        failure_rate: Chance that the assertion fails although the difference is right.
    """
    if samples.shape != others.shape:
        raise ValueError(
            f"assert_paired_mean: expected samples of one shape, got {tuple(samples.shape)} and "
            f"{tuple(others.shape)}; rows are paired, so nothing is broadcast"
        )
    assert_mean(samples - others, difference, failure_rate=failure_rate)


def assert_at_most(
    samples: Tensor,
    upper: Tensor | float,
    *,
    failure_rate: float = TEST_FAILURE_RATE,
) -> None:
    """Assert that the expectation of independent rows is at most the upper limit.

    One-sided t-test of each scalar: it fails only where the mean lies above the limit by more than
    chance allows. It is the test of a bound on the evidence. A "bound" above the evidence by 4.8
    standard errors, ``4.8 * sd / sqrt(n)`` for one scalar, is found half of the time, by 7.1
    standard errors 99 % of the time: a subsampling scale inside the logarithm, which adds nats, is
    found from a few hundred rows. A bound that is too loose is not found at all; compare it with
    its own expectation by `assert_mean`.

    Args:
        samples: Independent draws of the estimator, shape ``(n, *event)``.
        upper: What their expectation may not exceed, broadcastable to shape ``event``.
        failure_rate: Chance that the assertion fails although the expectation equals the limit.
    """
    scores, scalars, degrees = _scores(samples, upper)
    limit = float(student.isf(failure_rate / scalars, degrees))
    worst = int(scores.argmax())
    assert float(scores[worst]) <= limit, (
        f"expected mean <= {_report(samples, upper, scores, worst, limit)}"
    )


def _scores(samples: Tensor, reference: Tensor | float) -> tuple[Tensor, int, int]:
    """Return (mean - reference) / standard error per scalar, their number, degrees of freedom."""
    rows = len(samples) if samples.ndim else 0
    if rows < 2:
        raise ValueError(f"expected at least 2 independent rows, got shape {tuple(samples.shape)}")
    samples = samples.detach().to(torch.float64)
    reference = torch.as_tensor(reference, dtype=torch.float64).detach()
    if torch.broadcast_shapes(reference.shape, samples.shape[1:]) != samples.shape[1:]:
        raise ValueError(
            f"expected a reference that broadcasts to one row, shape {tuple(samples.shape[1:])}, "
            f"got shape {tuple(reference.shape)}"
        )
    assert samples.isfinite().all(), "samples are not finite"
    assert reference.isfinite().all(), f"the reference is not finite: {reference}"
    size = torch.maximum(samples.abs().amax(0), reference.abs())
    rounding = 8 * torch.finfo(torch.float64).eps * size + torch.finfo(torch.float64).tiny
    error = (samples.std(0) / rows**0.5).maximum(rounding)
    scores = ((samples.mean(0) - reference) / error).flatten()
    return scores, scores.numel(), rows - 1


def _report(
    samples: Tensor, reference: Tensor | float, scores: Tensor, worst: int, limit: float
) -> str:
    column = samples.detach().to(torch.float64).reshape(len(samples), -1)[:, worst]
    right = torch.as_tensor(reference).detach().expand(samples.shape[1:]).reshape(-1)[worst]
    return (
        f"{float(right):.6g}, got {float(column.mean()):.6g} with standard error "
        f"{float(column.std()) / len(column) ** 0.5:.3g} over {len(column)} rows: "
        f"t = {float(scores[worst]):.2f}, limit {limit:.2f} (scalar {worst} of {scores.numel()})"
    )
