"""From a command to its first step, with millions of images: seconds and MB of a process.

    python benchmarks/startup.py --rows 5200000 --files 1280000         # 3 GB of disk, minutes
    python benchmarks/startup.py --rows 5200000 --kinds parquet tar     # some of them

The images are made, not real: a thousand different pictures of 64 px under as many names as are
asked for, in `--work`; a temporary folder is removed at the end. `parquet` and `csv` name `--rows`
files with their class, of which all exist (by linked folders); `parquet-bytes` has the pictures in
it; `tar` are shards of WebDataset; `folder` has `--files` files (hard links) in a thousand folders.
`small` is a folder of a thousand. Each is given to `ssld distill` as `data.labeled`, from a teacher
of random weights, until the first step is taken, twice: the second time finds the cache of the
first. `bare` is a script that imports the same packages, builds the same two networks and takes
such a step on the folder of a thousand. The run also teaches up to 1,000 held-out images before it
begins, of a folder of a thousand 50.

A second is one of CPU time, of the process and its children, so that other work on the machine
does not enter; MB are the largest resident set (VmHWM) of each
process. With `--processes`, under torchrun, the second line of a kind is that of process 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PICTURES, CLASSES, SIDE, BATCH = 1000, 1000, 64, 8
STUDENT, TEACHER = "test_resnet", "resnet10t"
KINDS = ("small", "parquet", "csv", "parquet-bytes", "tar", "folder")
PACKAGES = ("torch", "torch.utils.data", "torchvision.transforms.v2", "timm", "accelerate", "numpy",
            "pyarrow.parquet", "fsspec", "safetensors.torch", "PIL.Image", "simplejpeg", "tqdm",
            "yaml", "jsonargparse", "filelock", "psutil", "huggingface_hub")  # fmt: skip
"""What `ssld distill` imports."""


def picture(number: int) -> bytes:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(file, "JPEG")
    return file.getvalue()


def name(number: int) -> str:
    """As in ImageNet."""
    return f"n{number % CLASSES:08d}/n{number % CLASSES:08d}_{number // CLASSES}.JPEG"


def make_files(folder: Path, count: int) -> Path:
    for wnid in range(min(CLASSES, count)):
        first = folder / name(wnid)
        first.parent.mkdir(parents=True)
        first.write_bytes(picture(wnid))
        for number in range(wnid + CLASSES, count, CLASSES):
            os.link(first, folder / name(number))
    return folder


def columns(first: int, last: int) -> dict[str, Any]:
    """Rows whose files exist: folder `k` is a link to the folder of all pictures."""
    rows = range(first, last)
    return {
        "sample_id": [name(i) for i in rows],
        "path": [f"{i // PICTURES:05d}/{name(i % PICTURES)}" for i in rows],
        "label": [f"n{i % CLASSES:08d}" for i in rows],
    }


def in_parts(count: int) -> Iterator[tuple[int, int]]:
    return ((k, min(count, k + 100_000)) for k in range(0, count, 100_000))


def link_pictures(folder: Path, pictures: Path, count: int) -> None:
    folder.mkdir()
    for k in range(-(-count // PICTURES)):
        (folder / f"{k:05d}").symlink_to(pictures)


def make_parquet(folder: Path, pictures: Path, count: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    link_pictures(folder, pictures, count)
    kind = pa.schema([(x, pa.string()) for x in ("sample_id", "path", "label")])
    with pq.ParquetWriter(folder / "manifest.parquet", kind) as writer:
        for part in in_parts(count):
            writer.write_table(pa.table(columns(*part), schema=kind))
    return folder / "manifest.parquet"


def make_parquet_bytes(folder: Path, _: Path, count: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    tiny = [picture(i) for i in range(PICTURES)]
    kind = pa.schema([("sample_id", pa.string()), ("bytes", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(folder / "set.parquet", kind) as writer:
        for first, last in in_parts(count):
            rows = range(first, last)
            ids, labels = [name(i) for i in rows], [i % CLASSES for i in rows]
            made = [ids, [tiny[i % PICTURES] for i in rows], labels]
            writer.write_table(pa.table(made, schema=kind), row_group_size=10_000)
    return folder / "set.parquet"


def make_csv(folder: Path, pictures: Path, count: int) -> Path:
    link_pictures(folder, pictures, count)
    with open(folder / "list.csv", "w") as file:
        file.write("path,label\n")
        for part in in_parts(count):
            made = columns(*part)
            pairs = zip(made["path"], made["label"], strict=True)
            file.writelines(f"{path},{label}\n" for path, label in pairs)
    return folder / "list.csv"


def make_tar(folder: Path, _: Path, count: int) -> Path:
    folder.mkdir()
    tiny = [picture(i) for i in range(PICTURES)]
    for shard, (first, last) in enumerate(in_parts(count)):
        with open(folder / f"train-{shard:05d}.tar", "wb") as file:
            for i in range(first, last):
                for ending, data in ((".jpg", tiny[i % PICTURES]), (".cls", b"%d" % (i % CLASSES))):
                    info = tarfile.TarInfo(f"{i:08d}{ending}")
                    info.size = len(data)
                    file.write(info.tobuf(tarfile.USTAR_FORMAT))
                    file.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
            file.write(bytes(2 * tarfile.BLOCKSIZE))
    return folder


MAKERS: dict[str, Callable[[Path, Path, int], Path]] = {
    "parquet": make_parquet,
    "csv": make_csv,
    "parquet-bytes": make_parquet_bytes,
    "tar": make_tar,
}


def spent() -> dict[str, float]:
    """What this process has taken until now."""
    own, below = (resource.getrusage(x) for x in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(x.ru_utime + x.ru_stime for x in (own, below))
    # Not ru_maxrss, which an exec inherits.
    status = Path("/proc/self/status").read_text()
    return {"seconds": seconds, "mb": int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6}


def finish(report: str) -> None:
    Path(f"{report}.{os.environ.get('RANK', '0')}").write_text(json.dumps(spent()))


def child(report: str, words: list[str]) -> None:
    """`ssld WORDS` until the first step is taken."""
    from ssld.cli.run import main

    def with_trainer() -> None:
        from ssld.engine.trainer import Trainer

        step = Trainer.train_step

        def first(self: Any, *given: Any) -> None:
            step(self, *given)
            finish(report)
            self.run.accelerator.wait_for_everyone()
            os._exit(0)

        Trainer.train_step = first  # type: ignore[method-assign]

    from ssld.cli import run

    before = run.work_of

    def work_of(*given: Any) -> Any:
        with_trainer()
        return before(*given)

    run.work_of = work_of
    raise SystemExit(main(words))


def bare(report: str, folder: str) -> None:
    """The same by hand."""
    import importlib

    for package in PACKAGES:
        importlib.import_module(package)
    import timm
    import torch
    from accelerate import Accelerator
    from PIL import Image
    from torchvision.transforms import v2

    device = Accelerator(cpu=True).device
    student, teacher = (timm.create_model(x, num_classes=CLASSES).to(device)
                        for x in (STUDENT, TEACHER))  # fmt: skip
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    files = sorted(Path(folder).rglob("*.JPEG"))
    view = v2.Compose([v2.RandomResizedCrop(SIDE), v2.ToImage(), v2.ToDtype(torch.float, True)])
    batch = torch.stack([view(Image.open(file).convert("RGB")) for file in files[:BATCH]])
    with torch.no_grad():
        targets = teacher.eval()(batch).softmax(1)
    torch.nn.functional.cross_entropy(student(batch), targets).backward()
    optimizer.step()
    finish(report)


def launch(work: Path, role: str, words: list[str], processes: int = 1) -> list[dict[str, float]]:
    """What each process took."""
    report = work / "report"
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*start, __file__, role, str(report), *words]
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    files = [Path(f"{report}.{rank}") for rank in range(processes)]
    if not all(file.is_file() for file in files):
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    taken = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return taken


def words_of(work: Path, source: Path) -> list[str]:
    return ["distill", "--out", str(work / "run"), "--overwrite", "--data.labeled", str(source),
            "--steps", "10", "--batch_size", str(BATCH), "--augment.size", str(SIDE),
            "--student.arch", STUDENT, "--teacher.arch", TEACHER, "--teacher.verify", "false",
            "--teacher.checkpoint", str(work / "teacher.safetensors"),
            "--teacher.input_size", str(SIDE), "--data.workers", "0",
            "--trackers", "[]"]  # fmt: skip


def write_teacher(work: Path) -> None:
    import timm
    from safetensors.torch import save_file

    network = timm.create_model(TEACHER, num_classes=CLASSES)
    save_file(network.state_dict(), work / "teacher.safetensors")


def source_of(kind: str, work: Path, rows: int, files: int) -> Path:
    if kind == "small":
        return work / "pictures"
    place = work / kind
    shutil.rmtree(place, ignore_errors=True)  # what an earlier call kept
    if kind == "folder":
        return make_files(place, files)
    return MAKERS[kind](place, work / "pictures", rows)


def measure(work: Path, given: Any) -> None:
    if not (work / "pictures").exists():
        make_files(work / "pictures", PICTURES)
        write_teacher(work)
    row = "| {} | {} | {:.1f} | {:.0f} |"
    print("| what | images | CPU s | MB |", "|---|---|---|---|", sep="\n")
    for _ in range(2):  # the first one reads the packages from the disk
        (taken,) = launch(work, "bare", [str(work / "pictures")])
    print(row.format("bare", PICTURES, taken["seconds"], taken["mb"]), flush=True)
    for kind in given.kinds:
        source = source_of(kind, work, given.rows, given.files)
        count = {"small": PICTURES, "folder": given.files}.get(kind, given.rows)
        for time_ in ("first", "again"):
            for rank, taken in enumerate(
                launch(work, "child", words_of(work, source), given.processes)
            ):
                label = f"{kind}, {time_}" + (f", process {rank}" if given.processes > 1 else "")
                print(row.format(label, f"{count:,}", taken["seconds"], taken["mb"]), flush=True)
        if not given.keep and kind != "small":
            shutil.rmtree(work / kind)


def main() -> None:
    from measure import parser

    words = parser(__doc__)
    words.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    words.add_argument("--rows", type=int, default=5_200_000)
    words.add_argument("--files", type=int, default=1_280_000)
    words.add_argument("--processes", type=int, default=1)
    words.add_argument("--work", type=Path)
    words.add_argument("--keep", action="store_true")
    given = words.parse_args()
    with contextlib.ExitStack() as held:
        work = given.work
        if work is None:
            work = Path(held.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        measure(work.resolve(), given)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["bare"]:
        bare(*sys.argv[2:4])
    else:
        main()
