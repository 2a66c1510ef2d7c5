"""Cells of a benchmark, kept in a file as they are computed: a run can be taken up again."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Cells"]


class Cells:
    """Results by name in a JSON file.

    Args:
        path: The file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the result of a cell, computed if it is not in the file."""
        if name not in self.known:
            start = time.perf_counter()
            value = compute()
            print(f"{name}: {value} ({time.perf_counter() - start:.1f} s)", flush=True)
            self.known[name] = value
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.known, indent=1))
        return self.known[name]
