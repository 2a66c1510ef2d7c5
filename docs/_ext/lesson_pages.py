"""Pages of the lessons: the cells of each script, with what its recorded run printed and drew."""

import json
from pathlib import Path

from percent import cells, digest

__all__ = ["page", "setup"]

DOCS = Path(__file__).resolve().parents[1]
TUTORIALS = DOCS.parent / "tutorials"
LESSONS = DOCS / "lessons"
SCRIPTS = sorted(TUTORIALS.glob("[!_]*.py"))

INTRODUCTION = """
```{{admonition}} A script that runs
:class: tip

{{download}}`{name} <../../tutorials/{name}>` opens as a notebook, too. What it printed and drew
below is from a run in full: `python tutorials/{name}`, {date}, {seconds} s of CPU time, seed 0.
```
"""
CHANGED = """
```{warning}
The code of the script has changed since that run. `python docs/record.py` runs it again.
```
"""


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
    kept = LESSONS / f"{script.stem}.json"
    if not kept.exists():
        raise FileNotFoundError(
            f"no run of {script.name}. Write: python docs/record.py {script.stem}"
        )
    record = json.loads(kept.read_text())
    claims = record["claims"]
    parts: list[str] = []
    for cell, left in zip(cells(script), record["cells"], strict=True):
        parts.append(cell.text if cell.kind == "markdown" else fenced("python", cell.text))
        if not parts[1:]:  # the first cell begins with the title
            title, _, rest = cell.text.partition("\n")
            introduction = INTRODUCTION.format(name=script.name, **record)
            stale = CHANGED if record["digest"] != digest(script) else ""
            parts = [title, rest, introduction, stale]
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
