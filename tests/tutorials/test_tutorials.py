"""Every tutorial runs, in smoke mode; a new one is found by itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))


def run(script: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pyro_ext", str(script), *options],
        cwd=folder,
        env={**os.environ, "SMOKE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs_and_leaves_figures(script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.rglob("*.png"))


def test_there_are_tutorials() -> None:
    assert ROOT / "tutorials" / "compare_posteriors.py" in TUTORIALS


COMPARE = ROOT / "tutorials" / "compare_posteriors.py"


def test_any_combination_by_name(tmp_path: Path) -> None:
    options = ["--model", "eight_schools", "--guides", "full-covariance", "--losses", "iwae-10"]
    done = run(COMPARE, tmp_path, *options, "--steps", "3", "--seed", "5", "--out", "here")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "full-covariance, iwae-10" in done.stdout
    assert "mean-field" not in done.stdout
    saved = {path.suffix for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert {".md", ".csv", ".png", ".nc"} <= saved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nine_schools"], "there is no nine_schools; there are:"),
        (["--guides", "mean-field"], "guides of vae: there is no mean-field; there are:"),
        (["--losses", "elbow"], "there is no elbow; there are:"),
        (["--steps", "0"], "--steps: expected at least 1, got 0"),
        (["--device", "tpu"], "write --device cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_or_impossible_names_say_what_there_is(
    options: list[str], message: str, tmp_path: Path
) -> None:
    done = run(COMPARE, tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_list_shows_the_names(tmp_path: Path) -> None:
    done = run(COMPARE, tmp_path, "--list")
    assert done.returncode == 0
    for name in ("eight_schools", "vae", "full-covariance", "per-datapoint-mean-field", "iwae-10"):
        assert name in done.stdout
