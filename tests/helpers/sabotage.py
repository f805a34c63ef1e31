"""Runs as processes of their own, and what may happen to them.

The processes are forked from one that has imported everything (`multiprocessing`'s fork server), so
that a run starts in a fraction of a second. What is to happen to a run is a function of this module
that is called in its process before `ssld` is.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pictures
import psutil

Harm = Callable[[], None]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["warm"])
SECONDS = 120
"""After which a process counts as hanging."""


def forked(target: Callable[..., None], *args: Any) -> Any:
    """A process that runs a function of a module."""
    process = CONTEXT.Process(target=target, args=args)
    # What the fork server takes over, to find `warm`; the first process starts it.
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with mock.patch.dict(os.environ, settings):
        process.start()
    return process


class Started:
    """A run in a process of its own.

    Args:
        said: file for all that it prints.
    """

    def __init__(
        self, argv: Sequence[str], said: Path, harm: Sequence[Harm] = (), **environment: str
    ) -> None:
        self.said = said
        here = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **environment}
        self.process = forked(_child, list(argv), str(said), list(harm), here)

    def end(self) -> int:
        """Wait for it; its exit code, -9 after SIGKILL."""
        self.process.join(SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"hangs: {self.said.read_text()[-2000:]}")
        return self.process.exitcode

    @property
    def words(self) -> str:
        return self.said.read_text()


def run(argv: Sequence[str], said: Path, harm: Sequence[Harm] = ()) -> tuple[int, str]:
    """Exit code, and everything that was printed."""
    started = Started(argv, said, harm)
    return started.end(), started.words


def ranks(
    argv: Sequence[str], said: Path, harm: Sequence[Sequence[Harm]] = ((), ())
) -> list[Started]:
    """The processes of one run, as a launcher starts them: as many as there are harms."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = str(len(harm))
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    return [
        Started(argv, said.with_suffix(f".{i}"), harm[i], RANK=str(i), LOCAL_RANK=str(i), **shared)
        for i in range(len(harm))
    ]


def _child(argv: list[str], said: str, harm: list[Harm], environment: dict[str, str]) -> None:
    import torch
    from matplotlib.figure import Figure

    from ssld.__main__ import main

    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as a run that is started by hand has it
    os.environ.update(environment)
    with open(said, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (open(i, "w", buffering=1, closefd=False) for i in (1, 2))
    torch.set_num_threads(1)
    if draw not in harm:
        Figure.savefig = pictures.one_pixel  # type: ignore[assignment]
        Figure.subplots = pictures.NoAxes()  # type: ignore[assignment]
    for function in harm:
        function()
    code = main(argv)
    sys.stdout.flush()
    for child in psutil.Process().children():  # multiprocessing's own clean-up is left out
        child.kill()
    os._exit(code)


def draw() -> None:
    """No harm: the plots of this run's reports are drawn, other runs have a pixel for each."""


def _wrap(target: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace `module:function` or `module:Class.method` by what `wrapper` makes of it."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, wrapper(getattr(owner, name)))


def at_call(target: str, number: int, act: Harm, after: bool = False) -> None:
    """Do something right before, or after, the `number`-th call of a function."""
    count = 0

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number and not after:
                act()
            result = function(*args, **kwargs)
            if count == number and after:
                act()
            return result

        return call

    _wrap(target, wrapper)


def at_step(step: int, act: Harm) -> None:
    """Do something when the run is about to take a step (0 is the first)."""

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(trainer: Any, *args: Any) -> Any:
            if trainer.step == step:
                act()
            return function(trainer, *args)

        return call

    _wrap("ssld.engine.trainer:Trainer.train_step", wrapper)


def sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def signal_group(number: int) -> None:
    """As a cluster does: the process and its loader workers."""
    os.killpg(os.getpgid(0), number)


def half_a_line(number: int) -> None:
    """Die in the middle of writing the `number`-th line of metrics.jsonl."""
    count = 0

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(folder: Any, line: dict[str, Any]) -> Any:
            nonlocal count
            count += 1
            if count == number:
                with folder.metrics.open("a") as file:
                    file.write(json.dumps(line)[:40])
                sigkill()
            return function(folder, line)

        return call

    _wrap("ssld.engine.run_folder:RunFolder.log", wrapper)


def kill_a_worker() -> None:
    """One loader process, as the kernel does when memory runs out."""
    psutil.Process().children()[0].kill()


def hang_a_worker(once: str) -> None:
    """The first loader process never begins, as one that was forked with a lock held."""
    from ssld.data import workers

    workers.START_SECONDS = 2.0

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with contextlib.suppress(FileExistsError), open(once, "x"):
                time.sleep(10**6)
            return function(*args)

        return call

    _wrap("ssld.data.workers:_begin_worker", wrapper)


def lose_a_batch(number: int) -> None:
    """The loader's process is killed while the run fetches the `number`-th batch's memory."""

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        count = 0

        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise EOFError  # as multiprocessing.connection does when its peer is gone
            return function(*args)

        return call

    _wrap("torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._next_data", wrapper)


def poison(step: int, row: int) -> None:
    """The teacher says NaN about one image of one step."""
    from ssld.distill.distill import Distillation

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        count = 0

        def call(task: Distillation, student: Any, batch: Any) -> Any:
            nonlocal count
            terms = function(task, student, batch)
            if count == step:
                terms["divergence"][row] = float("nan")
            count += 1
            return terms

        return call

    _wrap("ssld.distill.distill:Distillation.losses", wrapper)


def clock_goes_backwards() -> None:
    start, calls = time.time(), 0

    def earlier() -> float:
        nonlocal calls
        calls += 1
        return start - 3600.0 * calls

    time.time = earlier


def quota(size: int) -> None:
    """No file may grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def small_disk(folder: str, size: int, copy: str) -> None:
    """Mount `size` bytes of memory at `folder`, for this process only; what is in it when the
    process ends is copied to `copy`. Exits with 77 where that is not allowed."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    new_user, new_mounts = 0x10000000, 0x00020000
    if libc.unshare(new_user | new_mounts):
        os._exit(77)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    os.makedirs(folder, exist_ok=True)
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size}".encode()):
        os._exit(77)
    end, owner = os._exit, os.getpid()

    def leave(code: int) -> None:
        if os.getpid() == owner:  # not a loader worker
            shutil.copytree(folder, copy)
        end(code)

    os._exit = leave  # type: ignore[assignment]


def fill(folder: str) -> None:
    """Leave no byte of the disk free."""
    with contextlib.suppress(OSError), open(f"{folder}/filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def note_samples(file: str) -> None:
    """Write each step's sample ids of this process to `file`."""

    def wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(progress: Any, step: int, terms: Any, batch: Any, *others: Any) -> Any:
            with contextlib.suppress(AttributeError), open(file, "a") as lines:
                lines.write(json.dumps([step, batch.ids]) + "\n")
            return function(progress, step, terms, batch, *others)

        return call

    _wrap("ssld.engine.progress:Progress.add", wrapper)


def kill_after(target: str, seconds: float) -> None:
    """SIGKILL at a moment that has nothing to do with what the run is doing, so many seconds after
    the first call of `target`."""

    def wait() -> None:
        time.sleep(seconds)
        sigkill()

    at_call(target, 1, lambda: threading.Thread(target=wait, daemon=True).start())
