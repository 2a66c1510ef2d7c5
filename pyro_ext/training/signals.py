"""Signals that wait until a step is done."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Signals"]

_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Context in which a request to end is noted, and obeyed when the context ends.

    Args:
        wanted: Whether to do so at all; it is only possible in the main thread.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}
        self.received = 0

    def __enter__(self) -> "Signals":
        if self._wanted:
            self._before = {number: signal.signal(number, self._note) for number in _CAUGHT}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received:
            os.kill(os.getpid(), self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
