"""`accelerate launch --cpu --num_processes N` starts one process, whatever N is (accelerate 1.15:
`launch_command` takes the multi-process launcher only with `--multi_gpu`), and says nothing. A run
that was asked for on N processes must not quietly be another one, so it is handed to torchrun."""

from __future__ import annotations

import os
import sys

from ssld.common.errors import InputError


def start_asked_for_processes() -> None:
    """Replace this process by torchrun with as many processes as accelerate was asked for.

    Does nothing anywhere else: alone, under torchrun, on GPUs.

    Raises:
        InputError: the number that was asked for cannot be found out.
    """
    # accelerate sets MASTER_ADDR when it was asked for several, and then starts one all the same.
    alone = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if not alone or os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return
    module = sys.modules["__main__"].__spec__
    number = _asked_for()
    if number is None or module is None:
        raise InputError(
            "accelerate launch --cpu starts one process whatever its configuration says; use "
            "torchrun --nproc_per_node N -m ssld.distill"
        )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", module.name, *sys.argv[1:]])


def leave_processes() -> None:
    """End the process group, where there is one; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available():
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _asked_for() -> int | None:
    """--num_processes of the `accelerate launch` that started this process."""
    import psutil

    words = psutil.Process(os.getppid()).cmdline()
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value or (words[i + 1] if i + 1 < len(words) else "")
            return int(value) if value.isdecimal() else None
    return None
