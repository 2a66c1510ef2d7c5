"""Results of a benchmark in a JSON file, with the machine, the versions and the date."""

import json
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["Cells", "about", "cpu_seconds"]

_PACKAGES = ("pyro-ext", "torch", "pyro-ppl", "numpy")


class Cells:
    """Results by name in a JSON file, kept as they are computed: a run can be taken up again.

    Args:
        path: The file; made where there is none.
        versions: Versions of further packages, by name.

    Raises:
        SystemExit: If the file holds results of another machine or other versions.
    """

    def __init__(self, path: Path, *, versions: dict[str, str] | None = None) -> None:
        self._path, self._about = path, about(versions)
        kept = json.loads(path.read_text()) if path.exists() else {"cells": {}}
        if not kept.keys() <= {"about", "cells"}:
            raise SystemExit(f"{path}: expected results of a benchmark. Write: another file.")
        self.known: dict[str, Any] = kept["cells"]
        if self.known and (differs := _differences(kept["about"], self._about)):
            raise SystemExit(
                f"{path}: expected results of this machine; {differs}. Write: another file, or "
                "delete this one."
            )

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the result of a cell, computed if it is not in the file.

        Args:
            name: Name of the cell.
            compute: Called if it is not known; its result is kept as JSON.
        """
        if name not in self.known:
            start = time.perf_counter()
            value = compute()
            print(f"{name}: {value} ({time.perf_counter() - start:.1f} s)", flush=True)
            self.known[name] = value
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = {"about": self._about, "cells": self.known}
            self._path.write_text(json.dumps(content, indent=1) + "\n")
        return self.known[name]


def about(versions: dict[str, str] | None = None) -> dict[str, Any]:
    """Return date, machine and versions of what is measured now.

    Args:
        versions: Versions of further packages, by name.
    """
    own = {name: _version(name) for name in _PACKAGES}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **own, **(versions or {})},
    }


def cpu_seconds() -> float:
    """Return processor time of this process and of those that it waited for, such as compilers."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = ("machine", "threads", "versions")
    return ", ".join(f"{n} was {before[n]}, is {now[n]}" for n in names if before[n] != now[n])


def _machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()}){gpu}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
