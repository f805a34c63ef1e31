"""Becomes a trial's command, which then ends with the process that started it, however that ends.

    python -I child.py PARENT CORES WORD WORD ...

A file of its own that imports nothing of ours, as it is started for every trial. Done here and not
in `subprocess`'s `preexec_fn`, which may hang where the parent has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; kept over exec


def main() -> None:
    """PARENT: its process id. CORES: `0,1`, or nothing for those of the parent."""
    parent, cores, *words = sys.argv[1:]
    if cores:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        # Not SIGTERM: it would still be writing when the same command goes on in its folder.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):  # it was gone before
            os._exit(1)
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
