"""Run every lesson, one after the other, and write a page with all claims and figures.

    python tutorials/_run_all.py [--smoke] [--out results/lessons] [--page-only]

Options are handed on to the lessons. The page is `README.md` in the folder of results.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LESSONS = sorted(path for path in HERE.glob("[0-9][0-9]_*.py"))


def table(results: list[dict[str, Any]]) -> str:
    """Return all claims as a Markdown table: lesson, claim, expected, measured."""
    lines = ["| lesson | claim | expected | measured |", "| --- | --- | --- | --- |"]
    for found in results:
        title = found["title"]
        for claim in found["claims"]:
            cells = [title, claim["text"], claim["expected"], claim["measured"]]
            if claim["holds"] is not True:
                cells[3] += " (not judged)" if claim["holds"] is None else " **fails**"
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            title = ""
    return "\n".join(lines)


def page(folder: Path) -> str:
    """Return the page of what lies in a folder of results."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9][0-9]_*.json"))]
    figures = [f"![{found['title']}]({name})" for found in results for name in found["figures"]]
    seconds = [f"{found['title']}: {found['seconds']:.0f} s" for found in results]
    parts = ["# Lessons", "CPU time. " + "; ".join(seconds) + ".", table(results), *figures]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run them all; stop with an error if one does."""
    parser = argparse.ArgumentParser(description="Run every lesson, and write a page of them.")
    parser.add_argument("--out", type=Path, default=Path("results/lessons"))
    parser.add_argument("--page-only", action="store_true", help="write the page of what was run")
    options, others = parser.parse_known_args()
    failed = []
    for script in [] if options.page_only else LESSONS:
        print(f"\n=== {script.name}", flush=True)
        command = [sys.executable, str(script), "--out", str(options.out), *others]
        if subprocess.run(command, check=False).returncode:
            failed.append(script.name)
    (options.out / "README.md").write_text(page(options.out))
    print(f"\nAll claims and figures: {options.out / 'README.md'}")
    if failed:
        raise SystemExit(f"{len(failed)} lessons with claims that fail: {', '.join(failed)}")


if __name__ == "__main__":
    main()
