"""SIGTERM and SIGINT ask for a checkpoint and an end, as clusters do before they take a machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

IMPATIENT_SECONDS = 3.0
"""A second signal this much later ends the process at once. Launchers repeat a signal sooner."""


class Preemption:
    """Notes a signal instead of dying of it, while the context is open."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._first = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._first = signal.Signals(number).name, time.monotonic()
            note = f"\n{self.signal}: a checkpoint is written at the next log line, then this ends"
            os.write(2, f"{note}; a second signal ends it at once\n".encode())
        elif time.monotonic() - self._first > IMPATIENT_SECONDS:
            raise KeyboardInterrupt
