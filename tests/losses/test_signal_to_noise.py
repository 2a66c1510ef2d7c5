"""The toy of Rainforth et al.: the noise of each gradient against the number of particles."""

from functools import cache

import pytest
from scripts import load

PARTICLES = (16, 64, 256)


@cache
def measured() -> dict[str, dict[int, dict[str, float]]]:
    found: dict[str, dict[int, dict[str, float]]] = load("signal_to_noise").measure(
        PARTICLES, budget=100_000
    )
    return found


@pytest.mark.parametrize(("name", "rate"), [("reparam", -0.49), ("dreg", 0.45), ("model", 0.49)])
def test_rate_of_the_signal_to_noise_ratio(name: str, rate: float) -> None:
    """Slopes of log SNR in log K: K^-1/2 for reparam, K^+1/2 for dreg and for the model."""
    assert load("signal_to_noise").slope(measured()[name], "snr") == pytest.approx(rate, abs=0.1)


def test_mean_of_stl_does_not_fall() -> None:
    """The gradient goes to zero as 1 / K, the biased one does not."""
    right, biased = ([measured()[n][k]["mean"] for k in PARTICLES] for n in ("dreg", "stl"))
    assert right[-1] < right[0] / 8
    assert biased[-1] > 0.9 * biased[0]
    assert biased[-1] > 20 * right[-1]


def test_figure() -> None:
    figure = load("signal_to_noise").draw(measured())
    left, right = figure.axes
    assert [line.get_label().split(":")[0] for line in left.lines] == [
        "guide, reparam",
        "guide, dreg",
        "model",
    ]
    assert len(right.lines) == 2
