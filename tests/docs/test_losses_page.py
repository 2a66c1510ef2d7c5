"""What the page on losses says is what its scripts measure."""

import math
from pathlib import Path
from types import ModuleType

import pyro
import pytest
from scripts import load

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "losses.md"
SPREAD = 6  # standard errors of a difference: a chance of 2e-9 a cell


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("subsampling")


def cells() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if " of 40 | " in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_on_subsampling_is_what_the_script_measures(script: ModuleType) -> None:
    pyro.set_rng_seed(1)
    measured = script.table(repeats=100)
    printed = cells()
    assert len(printed) == len(measured) == 15
    for row, (particles, size, name, bound, error, *_) in zip(measured, printed, strict=True):
        assert (str(row.particles), f"{row.size} of 40") == (particles, size)
        assert ("RenyiELBO" in name) == (row.way == "RenyiELBO")
        both = math.hypot(row.error, float(error)) + 0.01
        assert abs(row.mean - float(bound)) < SPREAD * both, (row.particles, row.size, row.way)


def test_pyros_bound_exceeds_the_evidence_on_every_mini_batch_and_ours_on_none() -> None:
    for particles, size, name, *_, gap in cells():
        renyi_on_a_batch = "RenyiELBO" in name and size != "40 of 40"
        assert ("(above)" in gap) == renyi_on_a_batch, (particles, size, name)


def test_the_evidence_is_exact(script: ModuleType) -> None:
    assert f"Exact log evidence: {script.exact_evidence():.2f}" in PAGE.read_text()


def test_discrete_gradients_are_what_the_script_measures() -> None:
    script = load("discrete_gradients")
    exact = script.enumerated()
    assert f"| enumerated | {exact:.4f} | exact |" in PAGE.read_text()
    measured = script.table(repeats=1000)
    for name, found in measured.items():
        (line,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name}"))
        printed = float(line.split("|")[2])
        error = float(found.std()) / math.sqrt(len(found))
        assert abs(float(found.mean()) - printed) <= SPREAD * error + 1e-4
        if "Renyi" in name:
            assert not found.any()
        else:
            assert abs(float(found.mean()) - exact) <= SPREAD * error
