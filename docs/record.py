"""Run lessons in full, cell by cell, and keep what they print and draw for the site.

    python docs/record.py [04_iwae ...]

For each lesson (all of them by default, a quarter of an hour on one core) it writes a JSON file
and the figures into `docs/lessons/`. A lesson with a claim that fails stops, and its record stays
the one before. `make docs` makes pages of the scripts and their records, and runs nothing.
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEPT = HERE / "lessons"
sys.path[:0] = [str(HERE / "_ext"), str(ROOT / "tutorials"), str(ROOT)]

from percent import cells, digest
from PIL import Image

LESSONS = sorted(path.stem for path in (ROOT / "tutorials").glob("[!_]*.py"))


def run(script: Path, folder: Path) -> list[dict[str, object]]:
    """Run the cells of a script in one namespace; return what each printed and drew."""
    sys.argv = [str(script), "--out", str(folder)]
    namespace = {"__name__": "__main__", "__file__": str(script)}
    left: list[dict[str, object]] = []
    for cell in cells(script):
        printed, before = io.StringIO(), set(folder.rglob("*.png"))
        if cell.kind == "code":
            code = compile("\n" * (cell.line - 1) + cell.text, str(script), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        new = sorted(set(folder.rglob("*.png")) - before, key=lambda path: path.stat().st_mtime)
        left.append({"printed": printed.getvalue(), "figures": new})
    return left


def keep(figure: Path, name: str) -> str:
    """Save a figure with a palette of 128 colours, which is a third of its size."""
    with Image.open(figure) as image:
        image.convert("RGB").quantize(128).save(KEPT / name, optimize=True)
    return name


def figure_name(name: str, path: Path) -> str:
    """Return a name that begins with that of the lesson."""
    flat = "-".join(path.parts)
    return flat if flat.startswith(name) else f"{name}-{flat}"


def record(name: str) -> None:
    """Run one lesson in this process, and write its record."""
    script = ROOT / "tutorials" / f"{name}.py"
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        left = run(script, Path(folder))
        claims = Path(folder, f"{name}.json")
        found = json.loads(claims.read_text()) if claims.exists() else {"title": "", "claims": []}
        for cell in left:
            cell["figures"] = [
                keep(path, figure_name(name, path.relative_to(folder))) for path in cell["figures"]
            ]
            cell["printed"] = str(cell["printed"]).replace(folder, "results/lessons")
    kept = {
        "digest": digest(script),
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.process_time() - start),
        "title": found["title"],
        "claims": found["claims"],
        "cells": left,
    }
    (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Run each lesson in a process of its own; stop with an error if one does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", default=LESSONS)
    parser.add_argument("--here", help="run this one in this process")
    options = parser.parse_args()
    KEPT.mkdir(exist_ok=True)
    os.environ.pop("SMOKE", None)  # a record is of a run in full
    if options.here:
        record(options.here)
        return
    failed = []
    for name in options.lessons:
        print(name, flush=True)
        if subprocess.run([sys.executable, __file__, "--here", name], check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"no new record of {', '.join(failed)}")


if __name__ == "__main__":
    main()
