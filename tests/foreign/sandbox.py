"""Foreign inputs through a command's own way in, in a process that is watched.

A `Kind` writes an input that is a pure function of its seed, and uses it as a command would. What
may come of it: it is read, some of it is counted as unreadable, or one sentence says what is wrong.
All else is a failure: another exception, a crash, more than 10 s, more than 1 GB, code that runs, a
write or a connection outside. By hand:

    python tests/foreign/sandbox.py KIND SEED          # one input, with its traceback
    python tests/foreign/sandbox.py KIND FIRST COUNT   # many, watched
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))  # as pytest does

from audit import Audit
from sabotage import CONTEXT

SECONDS = 10
MEMORY = 2**30
ROOM = 4 * 2**30
"""Address space beyond that of a worker at its start: no input takes the machine's memory."""
MOST = 12
"""Ways to fail after which a kind is given up."""


@dataclass(frozen=True)
class Kind:
    """One kind of foreign input."""

    write: Callable[[random.Random, Path], None]
    """Puts the mutated input into the folder, which is empty."""
    use: Callable[[Path, Path], str | None]
    """(folder of the input, where to write) -> `unreadable` where that is counted. Takes the way
    of a command; raises InputError or OSError."""
    modules: tuple[str, ...] = ()
    """Imported before the process is watched."""


@dataclass
class Report:
    """What came of many inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """The first of each way to fail, with its seed."""
    failed: Counter[str] = field(default_factory=Counter)
    """How many there are of each way."""
    seconds: float = 0.0
    """Of the processor, without starts."""
    tried: int = 0

    def fail(self, name: str, seed: int, said: str) -> None:
        """Note a failure, and where it is the first of its kind, how to see it again."""
        lines = [line.strip() for line in said.splitlines() if line.strip()] or [""]
        places = [line for line in lines if re.match("File .*/(ssld|zoo|downstream)/", line)]
        way = re.sub(r"[\d'\"].*", "", lines[-1]) + "".join(places[-1:])
        self.failed[way] += 1
        if self.failed[way] == 1:
            again = f"python tests/foreign/sandbox.py {name} {seed}"
            self.failures.append(f"{name}, seed {seed}: {said}\n    {again}")


class Failure(Exception):
    """Of an input; the message says which promise it broke."""


def kind_of(name: str) -> Kind:
    """Of `module.kind`: in `kinds_MODULE.py`."""
    return importlib.import_module(f"kinds_{name.partition('.')[0]}").KINDS[name]


def hunt(name: str, first: int, count: int, *, folder: Path, seconds: float = SECONDS) -> Report:
    """Try the inputs of seeds [first, first + count) in worker processes; a new one after each that
    did not live.

    Args:
        folder: for the inputs; must exist.
        seconds: that an input may take.
    """
    report, seed = Report(), first
    while seed < first + count and len(report.failures) < MOST:
        seed = _until_death(report, name, (seed, first + count), folder, seconds)
    report.tried = seed - first
    return report


def _until_death(
    report: Report, name: str, seeds: tuple[int, int], folder: Path, seconds: float
) -> int:
    """Run one worker; returns the seed to go on from."""
    first, end = seeds
    mine, its = CONTEXT.Pipe(duplex=False)
    trace = folder / "trace"
    trace.write_bytes(b"")
    worker = CONTEXT.Process(target=_work, args=(its, name, seeds, folder, seconds))
    worker.start()
    its.close()
    seed = first
    for seed, outcome, said in _messages(mine, first):
        if outcome == "failed":
            report.fail(name, seed, said)
        elif outcome == "stuck":
            worker.kill()
            break
        elif outcome == "broken":
            raise RuntimeError(said)
        elif outcome == "done":
            report.seconds += float(said)
            break
        else:
            report.outcomes[outcome] += 1
        seed += 1
        if len(report.failures) >= MOST:
            worker.kill()
    worker.join()
    if seed < end and len(report.failures) < MOST:
        said = trace.read_text(errors="replace").strip()[-3000:]
        how = (
            f"over {seconds:g} s" if "Timeout" in said else f"the process died ({worker.exitcode})"
        )
        report.fail(name, seed, f"{said}\n{how}")
        seed += 1
    return seed


def _messages(connection: Connection, first: int) -> Iterator[tuple[int, str, str]]:
    """What a worker tells until it ends or says nothing for far too long."""
    seed = first
    while True:
        # Generous: the worker itself ends at SECONDS; this is for one that cannot even do that.
        if not connection.poll(12 * SECONDS):
            yield seed, "stuck", ""
            return
        try:
            seed, outcome, said = connection.recv()
        except EOFError:
            return
        yield seed, outcome, said
        seed += 1


def _work(
    connection: Connection, name: str, seeds: tuple[int, int], folder: Path, seconds: float
) -> None:
    """In the worker process."""
    with (folder / "trace").open("wb", buffering=0) as trace, (folder / "said").open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        faulthandler.enable(trace)
        try:
            box = Box(name, folder, trace, seconds)
            began = time.process_time()
        except Exception as error:
            connection.send((seeds[0], "broken", "".join(traceback.format_exception(error))))
            return
        for seed in range(*seeds):
            try:
                outcome, message = box.try_one(seed), ""
            except BaseException as error:  # SystemExit ends a command without a word, too
                outcome, message = "failed", _told(error)
            connection.send((seed, outcome, message))
            if os.fstat(said.fileno()).st_size > 2**26:
                os.ftruncate(said.fileno(), 0)
        connection.send((seeds[1], "done", f"{time.process_time() - began}"))
        os._exit(0)  # whatever threads a kind has left


def _told(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error, limit=-8)).strip()
    return str(error) if isinstance(error, Failure) else lines[-2500:]


class Box:
    """Folders, limits and the audit of one worker process.

    Args:
        trace: gets the traceback of what takes too long, or crashes.
    """

    def __init__(self, name: str, folder: Path, trace: Any, seconds: float = SECONDS) -> None:
        self.name = name
        self.kind = kind_of(name)
        self.trace = trace
        self.seconds = seconds
        self.folder = folder / "box"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.input, self.out, self.cache = (self.folder / x for x in ("in", "out", "cache"))
        self.folder.mkdir(parents=True)
        (self.folder / "bystander.txt").write_text("nobody's")
        for variable, place in (("XDG_CACHE_HOME", ""), ("HF_HOME", "hf"), ("TMPDIR", "tmp")):
            os.environ[variable] = str(self.cache / place)
        tempfile.tempdir = str(self.cache / "tmp")
        sys.dont_write_bytecode = True
        # zoo imports torchvision, which makes a cache folder: not while the audit is armed.
        for module in (*self.kind.modules, "ssld.cli.parse", "zoo"):
            importlib.import_module(module)
        import torch
        from tqdm import tqdm

        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its own is a semaphore that outlives the process
        self.audit = Audit([self.out, self.cache])
        with _peak() as none:
            pass
        self.peak_works = none.growth < MEMORY // 4
        used = int(_status("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))

    def write(self, seed: int) -> None:
        """The input of a seed, and empty folders beside it."""
        for place in (self.input, self.out, self.cache):
            shutil.rmtree(place, ignore_errors=True)
        for place in (self.input, self.out, self.cache / "tmp"):
            place.mkdir(parents=True)
        self.kind.write(random.Random(f"{self.name}/{seed}"), self.input)

    def try_one(self, seed: int) -> str:
        """-> read, refused or unreadable.

        Raises:
            Failure, or whatever a command does not catch.
        """
        self.write(seed)
        before = self._around()
        with _peak() as peak, self._in_time(), self.audit.armed():
            outcome = self._outcome()
        if self.audit.seen:
            raise Failure("; ".join(dict.fromkeys(self.audit.seen)))
        if self._around() != before:
            raise Failure(f"outside of out changed: {sorted(before ^ self._around())[:5]}")
        if peak.growth > MEMORY:
            raise Failure(f"took {peak.growth / 2**20:.0f} MB")
        return outcome

    def _outcome(self) -> str:
        from ssld.cli.parse import sentence_of
        from ssld.common.errors import InputError
        from zoo.errors import InputError as ZooInputError

        try:
            return self.kind.use(self.input, self.out) or "read"
        except (InputError, ZooInputError, OSError) as error:
            raw, said = str(error), sentence_of(error)
            if not raw.strip():
                raise Failure(f"says nothing: {error!r}") from error
            if isinstance(error, (InputError, ZooInputError)) and raw.count("\n") > 3:
                raise Failure(f"{raw.count(chr(10))} lines: {said[:300]}") from error
            if re.search(r"MemoryError|allocate|out of memory", said, re.IGNORECASE):
                raise Failure(f"would have taken {ROOM / 2**30:.0f} GB: {said[:500]}") from error
            return "refused"

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.trace)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _around(self) -> set[tuple[str, int, int]]:
        """Files that nobody may touch: name, size and time of each."""
        found = set()
        for place, folders, files in os.walk(self.folder):
            if Path(place) == self.folder:
                folders[:] = [x for x in folders if x not in ("out", "cache")]
            for name in files:
                status = os.lstat(os.path.join(place, name))
                found.add((os.path.join(place, name), status.st_size, status.st_mtime_ns))
        return found


@dataclass
class _Peak:
    growth: int = 0


@contextmanager
def _peak() -> Iterator[_Peak]:
    """Growth of the resident memory, at its highest."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, peak = int(_status("VmRSS")), _Peak()
    try:
        yield peak
    finally:
        peak.growth = int(_status("VmHWM")) - before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def trusted(name: str, count: int, folder: Path) -> str:
    """What is wrong with a kind's first `count` inputs, or with as many as SSLD_MUTATIONS says;
    nothing where all are taken as a user may hope."""
    asked = int(os.environ.get("SSLD_MUTATIONS") or count)
    report = hunt(name, 0, asked, folder=folder)
    print(f"{name}: {report.tried} in {report.seconds:.1f} s, {dict(report.outcomes)}")
    if report.failures:
        return "\n\n".join(report.failures)
    seen = report.outcomes
    if seen.total() != asked or not seen["read"] or not seen["refused"] + seen["unreadable"]:
        return f"{name}: no fair trial, {dict(seen)} of {asked}"
    return ""


def show(name: str, seed: int) -> None:
    """One input, not watched, for a debugger: written to a folder that stays, and used."""
    folder = Path(tempfile.mkdtemp(prefix="foreign-"))
    box = Box(name, folder, sys.stderr)
    box.write(seed)
    print("\n".join(str(path) for path in sorted(box.input.rglob("*"))))
    print(box.try_one(seed))


def main() -> None:
    name, first, *count = sys.argv[1:]
    if not count:
        show(name, int(first))
        return
    with tempfile.TemporaryDirectory(prefix="foreign-") as folder:
        report = hunt(name, int(first), int(count[0]), folder=Path(folder))
    print("\n\n".join(report.failures))
    print(f"{name}: {report.tried} in {report.seconds:.0f} s, {dict(report.outcomes)}")
    print(f"{report.failed.total()} failures in {len(report.failures)} ways")


if __name__ == "__main__":
    from sandbox import main as again  # as the module that workers import

    again()
