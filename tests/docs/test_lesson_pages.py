"""The site shows each lesson as it is, and what a run of that code in full has left."""

import json
import re
import runpy
from pathlib import Path

import lesson_pages
import pytest
from lesson_pages import SCRIPTS, page
from percent import cells, digest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KEPT = DOCS / "lessons"


RECORDED = [script for script in SCRIPTS if (KEPT / f"{script.stem}.json").exists()]


@pytest.mark.parametrize("script", RECORDED, ids=lambda path: path.stem)
def test_record_is_of_this_code_in_full(script: Path) -> None:
    record = json.loads((KEPT / f"{script.stem}.json").read_text())
    assert record["digest"] == digest(script), f"run: python docs/record.py {script.stem}"
    assert all(claim["holds"] is True for claim in record["claims"]), "a record of a full run"
    assert len(record["cells"]) == len(cells(script))
    figures = [name for cell in record["cells"] for name in cell["figures"]]
    assert figures
    assert all((KEPT / name).stat().st_size < 300_000 for name in figures)


@pytest.mark.parametrize("script", RECORDED, ids=lambda path: path.stem)
def test_page_has_all_code_claims_and_figures(script: Path) -> None:
    text = page(script)
    record = json.loads((KEPT / f"{script.stem}.json").read_text())
    for cell in cells(script):
        assert cell.text in text or cell.text.partition("\n")[2] in text
    assert all(claim["text"].replace("|", "\\|") in text for claim in record["claims"])
    assert all(f"]({name})" in text for cell in record["cells"] for name in cell["figures"])
    assert "has changed since" not in text


def test_a_lesson_without_a_run_or_with_another_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = RECORDED[0]
    record = json.loads((KEPT / f"{script.stem}.json").read_text())
    monkeypatch.setattr(lesson_pages, "LESSONS", tmp_path)
    assert f"python docs/record.py {script.stem}` records a run" in page(script)
    (tmp_path / f"{script.stem}.json").write_text(json.dumps(record | {"digest": "of old"}))
    assert "has changed since" in page(script)


def test_digest_is_of_the_code_alone(tmp_path: Path) -> None:
    one, other, changed = (tmp_path / name for name in ("a.py", "b.py", "c.py"))
    one.write_text("x = 1\n")
    other.write_text("# %% a comment\nx = 1  # and another\n")
    changed.write_text("x = 2\n")
    assert digest(one) == digest(other) != digest(changed)


def test_gallery_shows_every_figure() -> None:
    shown = set(
        re.findall(r"^:::\{figure\} (\S+)", (DOCS / "gallery.md").read_text(), re.MULTILINE)
    )
    drawn = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.png")}
    # One of its seventeen stands for the comparison, whose page has them all.
    drawn = {path for path in drawn if not path.startswith("lessons/compare_posteriors-")}
    assert shown == drawn


def test_the_picture_is_what_its_script_draws() -> None:
    script = DOCS / "figures" / "one_quantity.py"
    drawn = runpy.run_path(str(script))["picture"]()
    assert drawn == script.with_suffix(".svg").read_text(encoding="utf-8")
