"""What the top k per class costs: time and memory of `ssld.curate.select.topk` on many rows.

    python benchmarks/topk.py                      # 14.2 M rows, 1000 classes, k = 4000

Class sizes fall as 1 / rank (the largest has 1.9 M of 14.2 M, half of the classes less than k), or
are all alike (`--classes_like even`, which holds most images). Each method runs in a process of its
own, so that its peak of memory is its own: Python, numpy and what makes up the rows included. Time
counts the method alone, on one thread. The baseline is np.lexsort over all rows; a method whose
outcome is not that of the baseline says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from measure import parser, peak_kib, show

from ssld.curate.select.topk import Entries, TopK

BATCH = 4096
"""Rows made or read at a time."""
Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""row int64, cls int32, score float32, tie_breaker uint64."""


class Clock:
    """Adds up what happens inside `with`: seconds of CPU and wall."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __enter__(self) -> None:
        self.cpu -= time.process_time()
        self.wall -= time.perf_counter()

    def __exit__(self, *_) -> None:
        self.cpu += time.process_time()
        self.wall += time.perf_counter()


def synthetic(args: argparse.Namespace) -> Iterator[Rows]:
    """Probabilities crowd at 1, where float32 makes many of them equal."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, args.classes + 1) ** (args.classes_like == "power")
    edges = np.cumsum(rng.permutation(weight / weight.sum()))[:-1]
    for start in range(0, args.rows, BATCH):
        n = min(BATCH, args.rows - start)
        cls = np.searchsorted(edges, rng.random(n)).astype(np.int32)
        score = 1 - rng.random(n, np.float32) ** 3
        yield np.arange(start, start + n), cls, score, rng.integers(0, 2**64, n, np.uint64)


def ssld(batches: Iterator[Rows], args: argparse.Namespace, clock: Clock) -> Entries:
    with clock:
        top = TopK(args.k, args.classes)
    for rows in batches:
        with clock:
            top.add(*rows)
    with clock:
        return top.result()[0]


def gathered(batches: Iterator[Rows], args: argparse.Namespace) -> Rows:
    """All rows at once, without a second copy of them."""
    kinds = (np.int64, np.int32, np.float32, np.uint64)
    row, cls, score, tie_breaker = (np.empty(args.rows, kind) for kind in kinds)
    start = 0
    for rows in batches:
        part = slice(start, start + len(rows[0]))
        row[part], cls[part], score[part], tie_breaker[part] = rows
        start = part.stop
    return row, cls, score, tie_breaker


def lexsort(batches: Iterator[Rows], args: argparse.Namespace, clock: Clock) -> Entries:
    row, cls, score, tie_breaker = gathered(batches, args)
    with clock:
        order = np.lexsort((row, tie_breaker, -score, cls))
        sizes = np.bincount(cls, minlength=args.classes)
        within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = order[within < args.k]
        return Entries(row[order], cls[order], score[order], tie_breaker[order])


NAMES = ("row", "cls", "score", "tie_breaker")
METHODS: dict[str, Callable[[Iterator[Rows], argparse.Namespace, Clock], Entries]] = {
    "np.lexsort": lexsort,
    "ssld": ssld,
}


def measure(args: argparse.Namespace) -> None:
    """One method, in this process: prints its numbers as JSON."""
    clock, whole = Clock(), Clock()
    with whole:
        best = METHODS[args.method](synthetic(args), args, clock)
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(getattr(best, name).tobytes())
    numbers = {
        "cpu": clock.cpu,
        "wall": clock.wall,
        "rest": whole.cpu - clock.cpu,
        "megabytes": peak_kib() / 1000,
        "images": len(best),
        "digest": digest.hexdigest(),
    }
    print(json.dumps(numbers))


def in_a_process(args: argparse.Namespace, method: str) -> dict:
    """`measure` in a fresh process with one thread."""
    given = [f"--{name}={value}" for name, value in vars(args).items() if value is not None]
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, __file__, *given, f"--method={method}"]
    done = subprocess.run(command, env=os.environ | single, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--rows", type=int, default=14_200_000)
    words.add_argument("--classes", type=int, default=1000)
    words.add_argument("--k", type=int, default=4000)
    words.add_argument("--classes_like", choices=["power", "even"], default="power")
    words.add_argument("--method", choices=METHODS, help="run this one, print JSON")
    args = words.parse_args()
    if args.method:
        return measure(args)
    print(
        f"{args.rows:,} rows, {args.classes} classes ({args.classes_like}), k = {args.k}; numpy "
        f"{np.__version__}, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start\n"
    )
    head = ("method", "CPU seconds", "wall", "CPU of making rows", "peak MB", "images")
    show(head, rows(args))


def rows(args: argparse.Namespace) -> Iterator[list[str]]:
    expected = None
    for name in METHODS:
        x = in_a_process(args, name)
        expected = expected or x["digest"]
        differs = "" if x["digest"] == expected else ", NOT THE SAME"
        seconds = [f"{x[key]:.2f}" for key in ("cpu", "wall", "rest")]
        yield [name, *seconds, f"{x['megabytes']:.0f}", f"{x['images']:,}{differs}"]


if __name__ == "__main__":
    main()
