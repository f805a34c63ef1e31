"""What memory is left."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


def free_bytes() -> int:
    """Bytes that may still be taken, of the machine and of the container."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        cgroup = Path("/sys/fs/cgroup")
        limit = int((cgroup / "memory.max").read_text())
        free = min(free, limit - int((cgroup / "memory.current").read_text()))
    return max(0, free)
