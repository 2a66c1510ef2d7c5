"""What napoleon does not know about this project's docstrings."""

import re

__all__ = ["setup"]


def references(lines: list[str]) -> list[str]:
    """Return lines in which each `title (authors, year) | url` of References is a link."""
    out: list[str] = []
    entry, indent = "", None
    for line in lines:
        if indent is not None and line.strip() and not line.startswith(indent + " "):
            indent = None
        if indent is not None and line.strip():
            entry = f"{entry} {line.strip()}".strip()
            match = re.fullmatch(r"(.*?)\s*\|\s*(https?://\S+)", entry)
            if match:
                title = match[1].replace("`", "'")
                out.append(f"{indent}    * `{title} <{match[2]}>`__")
                entry = ""
            continue
        if entry:
            raise ValueError(f"References: expected 'title (authors, year) | url'; got {entry!r}")
        head = re.fullmatch(r"(\s*)References:\s*", line)
        indent = head[1] if head else indent
        out.append(line)
    return out


def process(app, what, name, obj, options, lines):
    """Rewrite the docstring in place."""
    lines[:] = references(lines)


def setup(app):
    """Go before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
