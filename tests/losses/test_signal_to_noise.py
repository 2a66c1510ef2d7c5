"""The toy of Rainforth et al.: the noise of each gradient against the number of particles."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

PARTICLES = (16, 64, 256)


@cache
def script() -> ModuleType:
    """The script that draws the figure of the docs."""
    path = Path(__file__).parents[2] / "benchmarks" / "signal_to_noise.py"
    spec = importlib.util.spec_from_file_location("benchmarks_signal_to_noise", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def measured() -> dict[str, dict[int, dict[str, float]]]:
    found: dict[str, dict[int, dict[str, float]]] = script().measure(PARTICLES, budget=100_000)
    return found


@pytest.mark.parametrize(("name", "rate"), [("reparam", -0.49), ("dreg", 0.45), ("model", 0.49)])
def test_rate_of_the_signal_to_noise_ratio(name: str, rate: float) -> None:
    """Slopes of log SNR in log K: K^-1/2 for reparam, K^+1/2 for dreg and for the model."""
    assert script().slope(measured()[name], "snr") == pytest.approx(rate, abs=0.1)


def test_mean_of_stl_does_not_fall() -> None:
    """The gradient goes to zero as 1 / K, the biased one does not."""
    right, biased = ([measured()[n][k]["mean"] for k in PARTICLES] for n in ("dreg", "stl"))
    assert right[-1] < right[0] / 8
    assert biased[-1] > 0.9 * biased[0]
    assert biased[-1] > 20 * right[-1]


def test_figure() -> None:
    figure = script().draw(measured())
    left, right = figure.axes
    assert [line.get_label().split(":")[0] for line in left.lines] == [
        "guide, reparam",
        "guide, dreg",
        "model",
    ]
    assert len(right.lines) == 2
