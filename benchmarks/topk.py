"""What the top k per class costs: time and memory of `ssld.curate.select.topk` on many rows.

    python benchmarks/topk.py                      # 14.2 M rows, 1000 classes, k = 4000
    python benchmarks/topk.py --folder /somewhere  # also from Parquet tables written there, 1.3 GB

Class sizes fall as 1 / rank (the largest has 1.9 M of 14.2 M, half of the classes less than k), or
are all alike (`--classes_like even`, which holds most images). Each method runs in a process of its
own, so that its peak of memory is its own: Python, numpy and what makes up the rows included. Time
counts the method alone, on one thread. The baseline is np.lexsort over all rows; polars and duckdb
run too where they are installed. A method whose outcome is not that of the baseline says so.

From Parquet: class and probability from the `scores` table (10 of each per image, of which the
first is taken), sha256 from the `index` table, in files of 4,096 rows (`shard_size`) as a curation
leaves them; reading is stated separately.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ssld.curate.select.topk import Entries, TopK

BATCH = 4096
"""Rows made or read at a time."""
Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""row int64, cls int32, score float32, tie uint64."""


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


def from_parquet(args: argparse.Namespace) -> Iterator[Rows]:
    import pyarrow.parquet as pq

    for part in sorted((args.folder / "scores").iterdir()):
        score = pq.ParquetFile(part).read(["row", "classes", "probabilities"], use_threads=False)
        index = pq.ParquetFile(args.folder / "index" / part.name).read(use_threads=False)
        tens = (score[name].combine_chunks() for name in ("classes", "probabilities"))
        first = (column.flatten().to_numpy()[::10] for column in tens)
        sha256 = np.frombuffer(index["sha256"].combine_chunks().buffers()[1], ">u8")
        yield score["row"].to_numpy(), *first, sha256[::4].astype(np.uint64)


def write_tables(args: argparse.Namespace) -> None:
    """The columns of ssld/curate/tables.py that are read, with the same rows as `synthetic`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ssld.curate.tables import INDEX, SCORES

    wanted = pa.schema([SCORES.field(name) for name in ("row", "classes", "probabilities")])
    only_sha = pa.schema([INDEX.field("sha256")])
    for name in ("scores", "index"):
        (args.folder / name).mkdir(parents=True)  # refuses to mix with those of before
    rng = np.random.default_rng(1)
    for part, (row, cls, score, tie) in enumerate(synthetic(args)):
        top = (cls[:, None] + np.arange(10, dtype=np.int32)) % args.classes
        rest = np.sort(rng.random((len(row), 9), np.float32))[:, ::-1] * (1 - score)[:, None]
        tens = (top, np.concatenate([score[:, None], rest], axis=1))
        lists = [pa.FixedSizeListArray.from_arrays(x.ravel(), 10) for x in tens]
        scores = pa.table([pa.array(row), *lists], schema=wanted)
        pq.write_table(scores, args.folder / f"scores/{part:05d}.parquet", compression="zstd")
        sha = np.concatenate([tie[:, None], rng.integers(0, 2**64, (len(row), 3), np.uint64)], 1)
        sha = pa.py_buffer(sha.astype(">u8").tobytes())
        column = pa.Array.from_buffers(pa.binary(32), len(row), [None, sha])
        index = pa.table([column], schema=only_sha)
        pq.write_table(index, args.folder / f"index/{part:05d}.parquet", compression="zstd")


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
    row, cls, score, tie = (np.empty(args.rows, kind) for kind in kinds)
    start = 0
    for rows in batches:
        part = slice(start, start + len(rows[0]))
        row[part], cls[part], score[part], tie[part] = rows
        start = part.stop
    return row, cls, score, tie


def lexsort(batches: Iterator[Rows], args: argparse.Namespace, clock: Clock) -> Entries:
    row, cls, score, tie = gathered(batches, args)
    with clock:
        order = np.lexsort((row, tie, -score, cls))
        sizes = np.bincount(cls, minlength=args.classes)
        within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = order[within < args.k]
        return Entries(row[order], cls[order], score[order], tie[order])


def polars(batches: Iterator[Rows], args: argparse.Namespace, clock: Clock) -> Entries:
    pl = importlib.import_module("polars")
    frame = pl.DataFrame(dict(zip(NAMES, gathered(batches, args), strict=True)))
    with clock:
        ranked = frame.sort("cls", "score", "tie", "row", descending=[False, True, False, False])
        best = ranked.filter(pl.int_range(pl.len()).over("cls") < args.k)
        return Entries(*(best[name].to_numpy() for name in NAMES))


def duckdb(batches: Iterator[Rows], args: argparse.Namespace, clock: Clock) -> Entries:
    import pyarrow as pa

    table = pa.table(dict(zip(NAMES, gathered(batches, args), strict=True)))
    connection = importlib.import_module("duckdb").connect()
    connection.execute("set threads to 1").register("t", table)
    over = "row_number() over (partition by cls order by score desc, tie, row)"
    with clock:
        best = connection.execute(
            f"select * from t qualify {over} <= {args.k} order by cls, score desc, tie, row"
        ).fetchnumpy()
        return Entries(*(best[name] for name in NAMES))


NAMES = ("row", "cls", "score", "tie")
METHODS: dict[str, Callable[[Iterator[Rows], argparse.Namespace, Clock], Entries]] = {
    "np.lexsort": lexsort,
    "ssld": ssld,
    "ssld, Parquet": ssld,
    "polars": polars,
    "duckdb": duckdb,
}


def measure(args: argparse.Namespace) -> None:
    """One method, in this process: prints its numbers as JSON."""
    clock, whole = Clock(), Clock()
    batches = from_parquet(args) if "Parquet" in args.method else synthetic(args)
    with whole:
        best = METHODS[args.method](batches, args, clock)
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(getattr(best, name).tobytes())
    status = Path("/proc/self/status").read_text()  # unlike getrusage's, without the parent's peak
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
    print(
        json.dumps(
            {
                "cpu": clock.cpu,
                "wall": clock.wall,
                "rest": whole.cpu - clock.cpu,
                "megabytes": peak,
                "images": len(best),
                "digest": digest.hexdigest(),
            }
        )
    )


def in_a_process(args: argparse.Namespace, method: str) -> dict:
    """`measure` in a fresh process with one thread."""
    given = [f"--{name}={value}" for name, value in vars(args).items() if value is not None]
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    command = [sys.executable, __file__, *given, f"--method={method}"]
    done = subprocess.run(command, env=os.environ | single, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the top k per class.")
    parser.add_argument("--rows", type=int, default=14_200_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, default=4000)
    parser.add_argument("--classes_like", choices=["power", "even"], default="power")
    parser.add_argument("--folder", type=Path, help="write Parquet tables here and read them")
    parser.add_argument("--method", choices=METHODS, help="run this one, print JSON")
    args = parser.parse_args()
    if args.method:
        measure(args)
        return
    names = [name for name in METHODS if name.startswith("ssld") or "." in name]
    names += [name for name in ("polars", "duckdb") if importlib.util.find_spec(name)]
    if args.folder:
        write_tables(args)
    else:
        names.remove("ssld, Parquet")
    print(
        f"{args.rows:,} rows, {args.classes} classes ({args.classes_like}), k = {args.k}; numpy "
        f"{np.__version__}, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start\n"
    )
    print("| method | CPU seconds | wall | CPU of reading or making rows | peak MB | images |")
    print("|---|---|---|---|---|---|")
    expected = None
    for name in names:
        found = in_a_process(args, name)
        expected = expected or found["digest"]
        differs = "" if found["digest"] == expected else ", NOT THE SAME"
        print(
            f"| {name} | {found['cpu']:.2f} | {found['wall']:.2f} | {found['rest']:.2f} "
            f"| {found['megabytes']:.0f} | {found['images']:,}{differs} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
