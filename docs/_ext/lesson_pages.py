"""Pages of the lessons: the cells of each script, with what its recorded run printed and drew."""

import json
from pathlib import Path
from typing import Any

from percent import cells, digest

__all__ = ["page", "setup"]

DOCS = Path(__file__).resolve().parents[1]
TUTORIALS = DOCS.parent / "tutorials"
LESSONS = DOCS / "lessons"
SCRIPTS = sorted(TUTORIALS.glob("[!_]*.py"))

INTRODUCTION = """
```{{admonition}} A script that runs
:class: tip

{{download}}`{name} <../../tutorials/{name}>` opens as a notebook, too. {run}
```
"""
RUN = """What it printed and drew below is from a run in full:
`python tutorials/{name}`, {date}, {seconds} s of CPU time, seed 0."""
CHANGED = "**The code has changed since**: `python docs/record.py {stem}` runs it again."
NOT_RUN = (
    "What it prints and draws is not shown yet: `python docs/record.py {stem}` records a run."
)


def introduction(script: Path, record: dict[str, Any]) -> str:
    """Return what stands below the title: the script itself, and the run that is shown."""
    if "digest" not in record:
        said = NOT_RUN
    else:
        said = RUN if record["digest"] == digest(script) else f"{RUN} {CHANGED}"
    run = said.format(name=script.name, stem=script.stem, **record)
    return INTRODUCTION.format(name=script.name, run=run)


def fenced(language: str, text: str) -> str:
    """Return a fenced block."""
    return f"```{language}\n{text}\n```"


def table(claims: list[dict[str, str]]) -> str:
    """Return the claims of a lesson as a Markdown table."""
    lines = ["## What it claims", "", "| claim | expected | measured |", "| --- | --- | --- |"]
    for claim in claims:
        row = [claim[part].replace("|", "\\|") for part in ("text", "expected", "measured")]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def page(script: Path) -> str:
    """Return the page of a lesson, in Markdown."""
    found = cells(script)
    kept = LESSONS / f"{script.stem}.json"
    blank = {"title": "", "claims": [], "cells": [{"printed": "", "figures": []} for _ in found]}
    record = json.loads(kept.read_text()) if kept.exists() else blank
    claims = record["claims"]
    parts: list[str] = []
    for cell, left in zip(found, record["cells"], strict=True):
        parts.append(cell.text if cell.kind == "markdown" else fenced("python", cell.text))
        if not parts[1:]:  # the first cell begins with the title
            title, _, rest = cell.text.partition("\n")
            parts = [title, rest, introduction(script, record)]
        printed = left["printed"]
        if claims:  # a lesson prints its title and its claims, which the page has already
            printed = printed.partition(f"- {claims[0]['text']}\n")[0]
            printed = printed.removeprefix(f"{record['title']}\n")
        if printed.strip():
            parts.append(fenced("text", printed.strip("\n")))
        parts += [f"![Figure of {script.stem}]({figure})" for figure in left["figures"]]
    return "\n\n".join([*parts, table(claims) if claims else ""]).strip() + "\n"


def write(app):
    """Write the pages, but those that are as they were."""
    for script in SCRIPTS:
        target, text = LESSONS / f"{script.stem}.md", page(script)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def link(app, docname, source):
    """Let what links to a script, as a page does that is read in the repository, link its page."""
    for script in SCRIPTS:
        source[0] = source[0].replace(
            f"](../tutorials/{script.name})", f"](lessons/{script.stem}.md)"
        )


def setup(app):
    """Write before Sphinx looks for pages."""
    app.connect("builder-inited", write)
    app.connect("source-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
