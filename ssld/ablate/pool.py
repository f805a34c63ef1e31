"""Trials as processes: as many at a time as there are devices."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssld.ablate.grid import Trial
from ssld.cli.run import EXIT_INTERRUPTED, EXIT_TRY_AGAIN
from ssld.common.errors import InputError
from ssld.engine.preemption import Preemption

COMMAND = [sys.executable, "-m", "ssld", "recipe"]
CHILD = Path(__file__).with_name("child.py")
POLL_SECONDS = 0.05
ATTEMPTS = 2
"""Of a trial that was stopped from outside, for lack of memory perhaps."""


@dataclass(frozen=True)
class Device:
    """What a trial may use."""

    environment: dict[str, str]
    cores: tuple[int, ...] = ()
    """Empty: all."""


@dataclass
class Running:
    trial: Trial
    device: Device
    attempt: int
    process: subprocess.Popen
    log: Path
    begin: int
    """Where its words start in `log`, in bytes."""

    def failure(self) -> str:
        """Its last error, in a sentence."""
        with self.log.open("rb") as file:
            file.seek(self.begin)
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
        errors = [line for line in lines if line.startswith("error")]
        code = self.process.returncode
        ended = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        return errors[-1].partition(": ")[2] if errors else f"{ended}; see {self.log}"


def find_devices(number: int) -> list[Device]:
    """`number` equal parts of this machine: a GPU each, or where there are none, cores. One GPU is
    shared where CUDA_VISIBLE_DEVICES names it several times.

    Raises:
        InputError: there are fewer.
    """
    if number == 1:
        return [Device({})]
    gpus = _gpus()
    if gpus:
        _require(number, len(gpus), "GPUs")
        return [Device({"CUDA_VISIBLE_DEVICES": name}) for name in gpus[:number]]
    cores = sorted(os.sched_getaffinity(0))
    _require(number, len(cores), "CPU cores")
    parts = [
        tuple(cores[i * len(cores) // number :][: len(cores) // number]) for i in range(number)
    ]
    return [Device({"OMP_NUM_THREADS": str(len(part))}, part) for part in parts]


def _require(number: int, there: int, what: str) -> None:
    if number > there:
        raise InputError(f"devices is {number}: this machine has {there} {what}; give fewer")


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; -1 hides what follows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))
    import torch  # takes seconds: only when a machine is to be shared

    return [str(i) for i in range(torch.cuda.device_count())]


def run_trials(
    trials: Sequence[Trial],
    command: Callable[[Trial], tuple[Path, list[str]]],
    devices: Sequence[Device],
    preemption: Preemption,
    watch: Callable[[list[str]], None],
) -> Generator[tuple[Trial, str | None], None, None]:
    """Run each trial's recipe; a signal is passed on, and waited for.

    Args:
        command: prepares a trial, and gives the file for what it prints and its words after
            `ssld recipe`.
        watch: is told the names of those under way, many times a second.

    Yields:
        a trial that has ended, and what failed, or None. Those that a signal stopped are left out.
    """
    waiting = deque((trial, 1) for trial in trials)
    free, running, told = deque(devices), [], False
    try:
        while running or (waiting and not preemption.requested):
            while waiting and free and not preemption.requested:
                trial, attempt = waiting.popleft()
                running.append(_start(trial, command(trial), free.popleft(), attempt))
            if preemption.requested and not told:
                told = True
                for one in running:
                    one.process.terminate()
            watch([one.trial.name for one in running])
            for one in [x for x in running if x.process.poll() is not None]:
                running.remove(one)
                free.append(one.device)
                again = _may_try_again(one)
                if again and not preemption.requested and one.attempt < ATTEMPTS:
                    waiting.appendleft((one.trial, one.attempt + 1))
                elif not (again and preemption.requested):
                    yield one.trial, one.failure() if one.process.returncode else None
            time.sleep(POLL_SECONDS)
    finally:
        for one in running:
            one.process.kill()
        for one in running:
            one.process.wait()


def _may_try_again(one: Running) -> bool:
    code = one.process.returncode
    return code < 0 or code in (EXIT_TRY_AGAIN, EXIT_INTERRUPTED)


def _start(trial: Trial, command: tuple[Path, list[str]], device: Device, attempt: int) -> Running:
    log, words = command
    cores = ",".join(map(str, device.cores))
    with log.open("ab") as file:
        begin = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), str(os.getpid()), cores, *COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **device.environment},
            start_new_session=True,  # a terminal's Ctrl-C reaches it through us, once
        )
        return Running(trial, device, attempt, process, log, begin)
