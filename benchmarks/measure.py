"""What the scripts beside this file share: arguments, commands, the machine, CSVs, Markdown tables,
means over seeds, plain axes, and the packs that they read: tars of photographs, lossless sheets."""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from downstream.ab.statistics import t_interval
from ssld.report.plots import COLOURS

if TYPE_CHECKING:
    from ssld.models.config import TeacherConfig

Rows = list[dict[str, str]]
CLASSIFIER = "mobilenetv2_100.imagenet1k.fp16.safetensors"
"""An ImageNet-1k MobileNetV2 (google-coral/test_data, Apache-2.0), 71 % top-1."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the first line of a script's header for `--help`."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def ssld(*words: object) -> None:
    """Run a command, echoed."""
    arguments = [str(word) for word in words]
    print("$ ssld", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ssld", *arguments], check=True)


def study(
    doc: str | None,
    runs: str,
    out: Path,
    *,
    run: Callable[[list[str], Path], None],
    collect: Callable[[Path, Path], None],
    shown: Sequence[Callable[[Path], None]],
) -> None:
    """The command line of a study that takes hours: `run` makes its runs, those that are named or
    all; `collect` writes CSVs of them, and shows these.

    Args:
        runs, out: folders of the runs and of the CSVs, by default.
        run: (names, runs).
        collect: (runs, out).
        shown: (out), tables and figures of the CSVs.
    """
    words = parser(doc)
    words.add_argument("what", choices=("run", "collect"))
    words.add_argument("names", nargs="*", help="what to run, by default all")
    words.add_argument("--runs", default=runs, help="empty: from the CSVs alone")
    words.add_argument("--out", type=Path, default=out)
    given = words.parse_args()
    if given.what == "run":
        run(given.names, Path(given.runs))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    if given.runs:
        collect(Path(given.runs), given.out)
    for show_one in shown:
        show_one(given.out)


def machine(threads: int | None = None) -> str:
    """Of the numbers that follow; its load where nothing limits the threads."""
    name = platform.processor() or platform.machine()
    if threads:
        return f"{name}, {threads} threads"
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"


def seconds(work: Callable[[], object]) -> float:
    """Of a call: on a GPU's clock, else of CPU time, into which other processes do not enter."""
    import torch  # most scripts here do without

    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def untrained_teacher(arch: str, size: int, folder: Path) -> TeacherConfig:
    """Random weights in a file of `folder`: speed does not depend on them.

    Args:
        size: of its images in px.
    """
    import timm  # most scripts here do without, and without torch
    from safetensors.torch import save_file

    from ssld.models.config import TeacherConfig

    file = folder / "teacher.safetensors"
    save_file(timm.create_model(arch).state_dict(), file)
    return TeacherConfig(arch=arch, checkpoint=str(file), input_size=size, verify=False)


def peak_kib() -> int:
    """Largest resident memory so far. Not `ru_maxrss`, which a new process inherits."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def read(file: Path) -> Rows:
    """Empty where there is none."""
    if not file.is_file():
        return []
    with file.open(newline="") as source:
        return list(csv.DictReader(source))


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def values(rows: Rows, column: str = "top1", **where: str) -> list[float]:
    """Percent, one for each seed."""
    chosen = [row for row in rows if all(row[key] == x for key, x in where.items())]
    return [100 * float(row[column]) for row in chosen if row[column]]


def places(rows: Rows, axis: str) -> list[str]:
    """The values of an axis, in the order of the file."""
    return list(dict.fromkeys(row[axis] for row in rows))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation of a sample."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def less(
    rows: Rows,
    column: str,
    here: Mapping[str, str],
    there: Mapping[str, str],
    *,
    scale: float = 100,
    digits: int = 1,
) -> str:
    """The difference of two places, seed by seed, with its 95 % interval (Student's t), bold where
    0 is outside; nothing where there is none."""
    both = []
    for where in (here, there):
        own = [row for row in rows if row[column] and where.items() <= row.items()]
        both.append({row["seed"]: float(row[column]) for row in own})
    gaps = [scale * (both[0][seed] - both[1][seed]) for seed in both[0] if seed in both[1]]
    if here == there or not gaps:
        return ""
    text, interval = f"{statistics.mean(gaps):+.{digits}f}", t_interval(gaps)
    if interval is None:
        return text
    text += f" [{interval.low:+.{digits}f} to {interval.high:+.{digits}f}]"
    return text if interval.low <= 0 <= interval.high else f"**{text}**"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {' | '.join(head)} |\n" + "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def show(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, each row as soon as it is there."""
    for line in markdown(head, rows):
        print(line, flush=True)


def plain(axes: Any, grid: str = "y") -> Any:
    """matplotlib's Axes with grey lines behind the data, no frame above and to the right."""
    axes.grid(axis=grid, color="#e6e8eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_intervals(axes: Any, rows: Sequence[tuple[str, float, tuple[float, float]]]) -> None:
    """Differences, each with its name and interval; grey where the interval has 0 in it."""
    for i, (_, mean, (low, high)) in enumerate(rows):
        colour = COLOURS[0] if low > 0 else COLOURS[1] if high < 0 else "#888888"
        errors = [[mean - low], [high - mean]]
        axes.errorbar(mean, i, xerr=errors, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def files_of(pack: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a tar.

    Raises:
        ValueError: a member is no plain file below the pack's folder.
    """
    with tarfile.open(pack) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise ValueError(f"{pack}: {member.name!r} is no plain file below its folder")
            file = archive.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def write_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sheets(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """uint8 [n, 32, 32, 3], int64 [n] and the names of the classes, out of an npz of sheets."""
    pack, tiles = np.load(path), []
    for name in sorted(key for key in pack.files if key.startswith("sheet_")):
        sheet = np.asarray(Image.open(io.BytesIO(pack[name].tobytes())).convert("RGB"))
        rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
        cut = sheet.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4)
        tiles.append(cut.reshape(-1, 32, 32, 3))
    labels = pack["labels"].astype(np.int64)
    return np.concatenate(tiles)[: len(labels)], labels, list(map(str, pack["classes"]))
