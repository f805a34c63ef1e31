"""What a process may not do while it looks at a foreign input, told by Python's audit events
(docs.python.org/3/library/audit_events): run a program, run code of the input, write or remove
outside of its folders, connect to another machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mutations import MARK

PROGRAMS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
PROGRAMS += ("os.forkpty", "pty.spawn", "os.startfile", "os.kill")
# How many paths an event begins with.
CHANGES = {
    **{name: 1 for name in ("os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown")},
    **{name: 1 for name in ("os.mkdir", "os.utime", "shutil.rmtree", "os.setxattr")},
    **{name: 2 for name in ("os.rename", "os.link", "os.symlink", "shutil.move")},
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Audit:
    """Listens for as long as the process lives; speaks while it is armed.

    Args:
        allowed: folders that may be written to.
    """

    def __init__(self, allowed: list[Path]) -> None:
        self.allowed = [os.path.realpath(path) for path in allowed]
        self.seen: list[str] = []
        """What happened since it was armed."""
        self.is_armed = False
        sys.addaudithook(self._hear)

    @contextmanager
    def armed(self) -> Iterator[None]:
        self.seen.clear()
        self.is_armed = True
        try:
            yield
        finally:
            self.is_armed = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_armed:
            return
        if event in PROGRAMS:
            self.seen.append(f"ran a program: {event} {str(arguments)[:200]}")
        elif event == "open":
            self._opened(*arguments)
        elif event in CHANGES:
            self._changed(event, arguments)
        elif event in ("exec", "compile", "import", "ctypes.dlopen", "pickle.find_class"):
            self._ran(event, arguments)
        elif event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            self._connected(event, arguments)

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        writes = bool((flags or 0) & WRITES)
        if isinstance(path, (str, bytes)) and writes and not self._may(path, -1):
            self.seen.append(f"wrote to {os.fsdecode(path)!r}")

    def _changed(self, event: str, arguments: tuple[Any, ...]) -> None:
        for number, path in enumerate(arguments[: CHANGES[event]]):
            if event in ("os.link", "os.symlink") and number == 0:
                continue  # what is pointed to
            last = arguments[-1]  # where it is the descriptor of the folder that path is in
            known = type(last) is int and event not in ("os.truncate", "os.setxattr")
            if not self._may(path, last if known else -1):
                self.seen.append(f"{event} of {path!r}")

    def _may(self, path: Any, folder: int) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path)
        if folder > 2 and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        parent, name = os.path.split(os.path.abspath(text))
        place = os.path.join(os.path.realpath(parent), name)
        if place in ("/dev/null", "/proc/self/clear_refs"):
            return True
        return any(place == root or place.startswith(root + os.sep) for root in self.allowed)

    def _ran(self, event: str, arguments: tuple[Any, ...]) -> None:
        text = str(arguments[:3])
        if event == "exec":
            code = arguments[0]
            text = f"{code.co_filename} {code.co_names} {code.co_consts}"
        if event == "pickle.find_class":
            self.seen.append(f"a pickle asked for {arguments[0]}.{arguments[1]} and got it")
        elif MARK in text:
            self.seen.append(f"ran code of the input: {event} {text[:200]}")

    def _connected(self, event: str, arguments: tuple[Any, ...]) -> None:
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[:2]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(address, tuple) and str(host) not in ("127.0.0.1", "localhost", "::1"):
            self.seen.append(f"connected to {address!r}")
