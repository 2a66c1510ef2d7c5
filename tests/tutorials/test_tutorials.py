"""Every tutorial runs, in smoke mode; a new one is found by itself."""

import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "tutorials").glob("[!_]*.py"))
COMPARE = ROOT / "tutorials" / "compare_posteriors.py"
LESSONS = [path for path in TUTORIALS if path.stem[0].isdigit()]


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


@pytest.mark.parametrize(
    "script",
    [*LESSONS, pytest.param(COMPARE, marks=pytest.mark.slow)],
    ids=lambda path: path.stem,
)
def test_tutorial_runs_and_leaves_figures(script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.rglob("*.png"))
    for kept in tmp_path.rglob("[0-9][0-9]_*.json"):
        claims = json.loads(kept.read_text())["claims"]
        assert any(claim["holds"] for claim in claims), "no claim is judged in smoke mode"


def test_there_are_tutorials() -> None:
    """One for each topic; the thirteenth is older than the numbers."""
    assert {COMPARE, *LESSONS} == set(TUTORIALS)
    numbers = [int(path.stem[:2]) for path in LESSONS]
    assert numbers == [number for number in range(1, 15) if number != 13]


@pytest.mark.parametrize("script", LESSONS, ids=lambda path: path.stem)
def test_lessons_open_as_notebooks(script: Path) -> None:
    cells = re.findall(r"^# %%.*$", script.read_text(), flags=re.MULTILINE)
    assert set(cells) == {"# %%", "# %% [markdown]"}
    assert script.read_text().startswith("# %% [markdown]\n# # ")


@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_every_tutorial_is_in_the_docs(script: Path) -> None:
    assert f"(../tutorials/{script.name})" in (ROOT / "docs" / "lessons.md").read_text()


LESSON = """
from _lesson import Lesson
lesson = Lesson("99_test", "99. Test")
lesson.equal("exact", 1.0, 1.0)
lesson.equal("noisy", 1.2, 1.0, se=0.05)
lesson.equal("trained", 9.0, 1.0, trained=True)
{}
lesson.finish()
"""


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("", ["--smoke"], ""),
        ("", [], "1 claims fail: trained"),
        ("lesson.equal('off', 1.3, 1.0, se=0.05)", ["--smoke"], "1 claims fail: off"),
        ("lesson.equal('close', 1.0 + 1e-7, 1.0)", ["--smoke"], "1 claims fail: close"),
        ("lesson.holds('said', 'yes', 'no', ok=False)", ["--smoke"], "1 claims fail: said"),
    ],
)
def test_a_claim_that_fails_stops_the_lesson(
    line: str, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "lesson.py"
    script.write_text(LESSON.format(line))
    monkeypatch.syspath_prepend(ROOT / "tutorials")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    monkeypatch.delenv("SMOKE", raising=False)
    with pytest.raises(SystemExit, match=message) if message else nullcontext():
        runpy.run_path(str(script))
    kept = json.loads((tmp_path / "results" / "lessons" / "99_test.json").read_text())
    judged = {claim["text"]: claim["holds"] for claim in kept["claims"]}
    assert judged["exact"] is judged["noisy"] is True
    assert judged["trained"] is (None if options else False)


def test_page_of_all_claims(tmp_path: Path) -> None:
    claims = [
        {"text": "a | b", "expected": "1", "measured": "2", "holds": False},
        {"text": "c", "expected": "3", "measured": "3", "holds": True},
    ]
    found = {"title": "1. One", "seconds": 2.0, "figures": ["01_one.png"], "claims": claims}
    (tmp_path / "01_one.json").write_text(json.dumps(found))
    done = run(ROOT / "tutorials" / "_run_all.py", tmp_path, "--page-only", "--out", ".")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "README.md").read_text()
    assert "| 1. One | a \\| b | 1 | 2 **fails** |" in page
    assert "|  | c | 3 | 3 |" in page
    assert "![1. One](01_one.png)" in page


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
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(COMPARE))["main"](options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_list_shows_the_names(tmp_path: Path) -> None:
    done = run(COMPARE, tmp_path, "--list")
    assert done.returncode == 0
    for name in ("eight_schools", "vae", "full-covariance", "per-datapoint-mean-field", "iwae-10"):
        assert name in done.stdout
