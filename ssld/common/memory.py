"""What memory is left, and that what is freed stays at hand."""

from __future__ import annotations

import contextlib
import ctypes
import sys
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


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let malloc keep what is freed for what comes next.

    By default glibc gives large pieces back to the system, from which each step of a network on a
    CPU takes them anew, a page fault for every 4 KiB: 7 to 19 % of a training step, a third of a
    teacher's answers while stored labels are built (benchmarks/kept_memory.py,
    docs/performance.md). Other systems are left as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
            mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
