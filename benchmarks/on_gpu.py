"""Checks and benchmark tables of one GPU in one file; benchmarks/on_gpu.sh starts this.

Everything runs in this process, one after the other; the file is written after each section, so
that what ended is there if the machine is taken away. A section that raises, or takes longer than
its share of the ten minutes, is noted and the next one begins.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import runpy
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_checks
import timm
import torch
import torchvision
from measure import machine, parser

from ssld.common.files import write_atomically

HERE = Path(__file__).parent
CHECK_SECONDS, TABLE_SECONDS = 60, 75
"""The most that a section takes. All together stay below ten minutes, as few come near."""
ON_GPU = "--size 224 --precision bf16 --channels_last --steps 20 --rounds 3"
LARGE = [
    f"throughput.py --teacher resnext101_32x16d --student resnet50d --batch 256 {ON_GPU} --compile",
    f"throughput.py --teacher resnet50d --student mobilenetv3_large_100 --batch 256 {ON_GPU}",
    f"throughput.py --teacher resnet50d --student hrnet_w18 --batch 128 {ON_GPU}",
    "loader.py --count 320 --repeats 2 --workers 1 8",
    "many_students.py --batch 128 --size 224 --precision bf16 --steps 10 --rounds 3",
    "pseudo_label.py --images 60 --rounds 2",
    "sed.py",
    "stored_labels.py --batch 64 --size 224 --views 12",
]
"""The tables of docs/performance.md; the first pairs are those of the paper's students."""
SMALL = [
    "throughput.py --teacher test_resnet --student test_resnet --batch 2 --size 32 --steps 1 "
    "--rounds 1",
    "loader.py --count 192 --repeats 1 --sizes 48 --workers 0",
    "many_students.py --teachers test_resnet --students test_resnet test_efficientnet --batch 2 "
    "--size 32 --steps 1 --rounds 1",
    "pseudo_label.py --images 2 --size 48 --rounds 1",
    "sed.py --size 64 --ratio 1 --width 16 --proposals 20 --rounds 1",
    "stored_labels.py --teacher test_resnet --student test_resnet --size 32 --views 1 --steps 1 "
    "--rounds 1",
]


class OutOfTime(Exception):
    """A section has had its share."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """
    Raises:
        OutOfTime: when they are over.
    """

    def over(*_: object) -> None:
        raise OutOfTime(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def header() -> str:
    """What the numbers were measured on."""
    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else f"no GPU ({machine()})"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, " \
               f"timm {timm.__version__}, CUDA {torch.version.cuda or 'none'}"  # fmt: skip
    now = datetime.datetime.now(datetime.UTC)
    return f"# What a GPU shows\n\n{name}; {versions}; {now:%Y-%m-%d %H:%M} UTC\n"


class Sheet:
    """The file that grows, and how many of its sections went wrong."""

    def __init__(self, file: Path) -> None:
        self.file, self.text, self.wrong = file, header(), 0

    def section(self, title: str, work: Callable[[], Iterator[str]], seconds: int) -> None:
        """Do it, and write what it yields, with its seconds, and what it raised."""
        print(f"\n== {title}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start, lines = time.perf_counter(), []
        try:
            with at_most(seconds):
                for line in work():
                    lines.append(line)
                    print(line, flush=True)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            lines.append(f"\nFAILED: {type(error).__name__}: {error}")
        self.wrong += any("FAILED" in line for line in lines)
        took = time.perf_counter() - start
        body = "\n".join(lines)
        self.text += f"\n## {title}\n\n{body}\n\n{took:.0f} s.\n"
        write_atomically(self.file, self.text)


def checked(check: Callable[..., Iterator[gpu_checks.Finding]], small: bool) -> Iterator[str]:
    """The rows of a table."""
    yield "| what | found | at most | |\n|---|---|---|---|"
    for what, found, allowed in check(gpu_checks.SMALL if small else gpu_checks.LARGE):
        verdict = "ok" if gpu_checks.Finding(what, found, allowed).right else "FAILED"
        yield f"| {what} | {found:.3g} | {allowed:.3g} | {verdict} |"


def measured(line: str) -> Iterator[str]:
    """What a script beside this one prints."""
    script, *words = shlex.split(line)
    given, sys.argv = sys.argv, [script, *words]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(HERE / script), run_name="__main__")
    finally:
        sys.argv = given
        yield printed.getvalue().strip()


def main() -> int:
    words = parser(__doc__)
    words.add_argument("file", type=Path)
    words.add_argument("--small", action="store_true", help="small sizes, on a CPU too")
    given = words.parse_args()
    sheet = Sheet(given.file)
    for check in gpu_checks.CHECKS:
        title = check.__name__.replace("_", " ")
        sheet.section(title, lambda check=check: checked(check, given.small), CHECK_SECONDS)
    for line in SMALL if given.small else LARGE:
        title = f"`python benchmarks/{line}`"
        sheet.section(title, lambda line=line: measured(line), TABLE_SECONDS)
    print(f"\n{given.file}: {sheet.wrong} section(s) went wrong")
    return int(sheet.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
