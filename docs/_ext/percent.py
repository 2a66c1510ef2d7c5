"""Scripts in percent cells: their cells, and a digest of their code."""

import ast
import dataclasses
import hashlib
import re
from pathlib import Path

__all__ = ["Cell", "cells", "digest"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: Markdown without its comment signs, or code; ``line`` is where its text begins."""

    kind: str
    text: str
    line: int


def cells(script: Path) -> list[Cell]:
    """Return the cells of a script."""
    found = []
    lines = script.read_text().splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    for start, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        kind = "markdown" if "[markdown]" in lines[start] else "code"
        body = lines[start + 1 : end]
        if kind == "markdown":
            body = [re.sub(r"^# ?", "", line) for line in body]
        found.append(Cell(kind, "\n".join(body).strip("\n"), start + 2))
    return found


def digest(*scripts: Path) -> str:
    """Return a digest of the code of scripts, which comments and layout do not change."""
    trees = "".join(ast.dump(ast.parse(script.read_text())) for script in scripts)
    return hashlib.sha256(trees.encode()).hexdigest()[:16]
