"""FGVC-Aircraft, CIFAR-100, DTD and SUN397 as manifests, made once.

A manifest is a source like any other (`ssld/data/manifest.py`), so the other commands read these
data sets too. They lie in `root`: `aircraft-train.parquet`, `aircraft-val.parquet`,
`aircraft-test.parquet`, and so on. Images stay where they are, but for CIFAR-100, which has none:
its pixels are written into the manifest as PNG.

Archives are checked before anything in them is read. torchvision has MD5 sums only, and none of
Aircraft; the sums here are those of tensorflow/datasets (`url_checksums/`) and Keras
(`datasets/cifar100.py`), and for Aircraft the MD5 of mlverse/torchvision.

What imports torch, pyarrow or PIL is imported where a manifest is made, as every transfer run asks
this module whether its data is there before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock

from downstream.transfer.config import TransferConfig, TransferDataConfig
from ssld.common.errors import InputError, one_line
from ssld.common.files import cannot_write, write_atomically
from ssld.engine.run_folder import check_out

SPLITS = ("train", "val", "test")
VAL_EVERY = 10
"""Of the training images of each class, one in this many is for validation where the data set has
no such part. Ours: the SSLD paper searches "on validation set" (section 4.6) and says no more."""


@dataclass(frozen=True)
class Archive:
    url: str
    digest: str
    """`sha256:...`, or `md5:...` where no other is known."""
    makes: str
    """What is there afterwards, below `root`; the archive is unpacked into the folder around it."""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Row:
    """An image."""

    sample_id: str
    label: str
    path: str | None = None
    """Relative to `root`; None where there are pixels."""
    pixels: Any = None
    """uint8 [h, w, 3]."""


@dataclass(frozen=True)
class Known:
    """A data set."""

    archives: list[Archive]
    rows: Callable[[Path, str], list[Row]]
    """`root` and part -> its images."""
    parts: tuple[str, ...]
    """That it has by itself, of `SPLITS`."""


def resolve_and_check(config: TransferConfig) -> TransferConfig:
    """`resolve`, then what every run checks before torch is imported."""
    config = resolve(config)
    check_out(config)
    return config


def resolve(config: TransferConfig) -> TransferConfig:
    """The settings with `data.labeled` and `data.val` for the data set that is named, if any; makes
    its manifests where they are not there yet.

    Raises:
        InputError: the data set is not there, or not what was published.
    """
    data = config.data
    if data.dataset is None:
        return config
    made = manifests(data)
    parts = {"search": (["train"], "val"), "final": (["train", "val"], "test")}[data.protocol]
    labeled, val = [str(made[part]) for part in parts[0]], [str(made[parts[1]])]
    resolved = replace(data, dataset=None, labeled=labeled, val=val)
    return replace(config, data=resolved)


def manifests(data: TransferDataConfig) -> dict[str, Path]:
    """A manifest of each of `SPLITS`, made where one is missing."""
    assert data.dataset and data.root
    root, known = Path(data.root), DATASETS[data.dataset]
    paths = {split: root / f"{data.dataset}-{split}.parquet" for split in SPLITS}
    if not root.is_dir() and not data.download:
        raise InputError(f"data.root {root}: no such folder; name that of {data.dataset}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        alone = FileLock(root / ".ssld.lock").acquire()
    except OSError as error:
        raise cannot_write(root, error) from error
    with alone:
        if not all(path.is_file() for path in paths.values()):
            for archive in known.archives:
                _fetch(archive, root, data.dataset, data.download)
            _make(paths, root, data.dataset, known)
    return paths


def _make(paths: dict[str, Path], root: Path, dataset: str, known: Known) -> None:
    try:
        rows = {part: known.rows(root, part) for part in known.parts}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"data.root {root}: {dataset} cannot be read ({one_line(error)}); unpack it anew"
        ) from error
    if "val" not in rows:
        rows["train"], rows["val"] = _hold_out(rows["train"])
    for split in SPLITS:
        _write(paths[split], rows[split])


def _fetch(archive: Archive, root: Path, dataset: str, download: bool) -> None:
    if (root / archive.makes).exists():
        return
    file = root / archive.name
    if not file.is_file() and not download:
        raise InputError(
            f"data.root {root} has neither {archive.makes} nor {archive.name} of {dataset}: get "
            f"{archive.url}, or give --data.download"
        )
    if not file.is_file():
        _download(archive, root)
    kind, _, expected = archive.digest.partition(":")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, kind).hexdigest()
    if digest != expected:
        raise InputError(
            f"{file} is not what was published: its {kind} is {digest[:12]}..., not "
            f"{expected[:12]}...; delete it and get {archive.url} again"
        )
    _unpack(file, root / archive.makes)


def _download(archive: Archive, root: Path) -> None:
    from torchvision.datasets.utils import download_url  # torch, see above

    parts = root / ".download"
    try:
        download_url(archive.url, str(parts), archive.name)
        (parts / archive.name).replace(root / archive.name)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{archive.url} cannot be fetched ({one_line(error)}); get it by other means and put "
            f"it into {root}"
        ) from error


def _unpack(file: Path, made: Path) -> None:
    """All of it, or nothing: `made` is put in its place last."""
    folder = made.parent
    temporary = folder / f".{file.name}.unpacked"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        shutil.unpack_archive(file, temporary, filter=None if file.suffix == ".zip" else "data")
        for path in sorted(temporary.iterdir(), key=lambda x: x.name == made.name):
            if not (folder / path.name).exists():
                path.replace(folder / path.name)
        shutil.rmtree(temporary)
    except (OSError, shutil.ReadError) as error:
        raise cannot_write(folder, error) from error


def _hold_out(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Most images of each class, and every tenth."""
    train, val = [], []
    by_class = groupby(sorted(rows, key=lambda x: (x.label, x.sample_id)), lambda x: x.label)
    for _, of_class in by_class:
        for i, row in enumerate(of_class, 1):
            (train if i % VAL_EVERY else val).append(row)
    return train, val


def _write(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"sample_id": [row.sample_id for row in rows]}
    columns["label"] = [row.label for row in rows]
    if rows[0].path is None:
        columns["bytes"] = pa.array([_png(row.pixels) for row in rows], pa.binary())
    else:
        columns["path"] = [row.path for row in rows]
    write_atomically(path, lambda file: pq.write_table(pa.table(columns), file))


def _png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _aircraft(root: Path, part: str) -> list[Row]:
    """3,334 training, 3,333 validation and 3,333 test images of 100 variants."""
    data, rows = "fgvc-aircraft-2013b/data", []
    for line in _lines(root / data / f"images_variant_{part}.txt"):
        name, label = line.strip().split(" ", 1)
        path = f"{data}/images/{name}.jpg"
        rows.append(Row(path, label, path))
    return rows


def _dtd(root: Path, part: str) -> list[Row]:
    """1,880 images of 47 textures each, the first of ten splits."""
    names = [line.strip() for line in _lines(root / f"dtd/dtd/labels/{part}1.txt")]
    paths = [f"dtd/dtd/images/{name}" for name in names]
    return [Row(path, name.split("/")[0], path) for path, name in zip(paths, names, strict=True)]


def _cifar100(root: Path, part: str) -> list[Row]:
    """50,000 training and 10,000 test images of 100 classes."""
    from torchvision.datasets import CIFAR100  # torch, see above

    images = CIFAR100(root, train=part == "train")
    pairs = zip(images.data, images.targets, strict=True)
    return [
        Row(f"{part}/{i:05d}", images.classes[label], pixels=pixels)
        for i, (pixels, label) in enumerate(pairs)
    ]


def _sun397(root: Path, part: str) -> list[Row]:
    """19,850 training and 19,850 test images of 397 classes, the first of ten partitions (Xiao et
    al. 2010, section 3); the class is the folder below that of its first letter, as in
    torchvision."""
    name = {"train": "Training_01.txt", "test": "Testing_01.txt"}[part]
    rows = []
    for line in (root / "SUN397-partitions" / name).read_text(encoding="utf-8").split():
        path = line.removeprefix("/")
        rows.append(Row(path, "/".join(path.split("/")[1:-1]), f"SUN397/{path}"))
    return rows


OXFORD, SUN = "https://www.robots.ox.ac.uk/~vgg/data", "vision.princeton.edu/projects/2010/SUN"
AIRCRAFT_ARCHIVE = Archive(
    f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
    "md5:d4acdd33327262359767eeaa97a4f732",
    "fgvc-aircraft-2013b",
)
CIFAR100_ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    "cifar-100-python",
)
DTD_ARCHIVE = Archive(
    f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
    "sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
    "dtd/dtd",
)
SUN397_IMAGES = Archive(
    f"http://{SUN}/SUN397.tar.gz",
    "sha256:f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
    "SUN397",
)
SUN397_PARTITIONS = Archive(
    f"https://{SUN}/download/Partitions.zip",
    "sha256:e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
    "SUN397-partitions/Training_01.txt",
)
DATASETS = {
    "aircraft": Known([AIRCRAFT_ARCHIVE], _aircraft, SPLITS),
    "cifar100": Known([CIFAR100_ARCHIVE], _cifar100, ("train", "test")),
    "dtd": Known([DTD_ARCHIVE], _dtd, SPLITS),
    "sun397": Known([SUN397_IMAGES, SUN397_PARTITIONS], _sun397, ("train", "test")),
}
