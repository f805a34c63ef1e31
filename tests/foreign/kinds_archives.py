"""Tar shards, tars in tars and Parquet manifests as sources of images; bundles of releases."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

from kinds_images import bases, foreign_image, views_of
from mutations import as_json, changed, damaged
from sandbox import Kind

NAMES = (
    *("../../escaped.jpg", "/tmp/escaped.jpg", "a/../../b.png", "./x.jpg", "x..jpg", ".jpg", ""),
    *("a" * 300 + ".png", "a\\b.jpg", "\udcff.jpg", "é.png", "$x_{.jpg", "._0.jpg", "a/b/c/d.jpg"),
    *("0.JPG", "0.seg.png", "0.cls.cls", "0.json.gz", "x.tar", "inner.tar", "\n.jpg", "nul\0.jpg"),
)
TYPES = (*(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE),)
TYPES += (tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z", b"x", b"g", b"L", b"K")
LABELS = (b"3", b"cat", b"-1", b"", b"\xff\xfe", b"1e3", b"9" * 5000, b"1\n2", b"\0", b"$x_{")
PAX = (
    {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**12), "GNU.sparse.major": "1"},
    {"size": "-5"},
    {"size": str(2**70)},
    {"path": "../../escaped.jpg"},
    {"linkpath": "/etc/passwd"},
    {"mtime": "nan"},
    {"hdrcharset": "BINARY"},
)


@functools.cache
def small_images() -> list[bytes]:
    return [data for ending, data in bases() if ending in ("jpg", "png", "webp")][:12]


def tar_of(rng: random.Random, members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=form, errors="surrogateescape") as archive:
        for info, content in members:
            try:
                archive.addfile(info, io.BytesIO(content))
            except (ValueError, OSError):  # not in this format
                continue
    return file.getvalue()


def member(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def samples(rng: random.Random, prefix: str = "") -> list[tuple[tarfile.TarInfo, bytes]]:
    """Images with labels in two ways, some members of which are odd."""
    found = []
    for i in range(rng.choice((1, 2, 3))):
        data = foreign_image(rng) if rng.random() < 0.2 else rng.choice(small_images())
        found.append(member(f"{prefix}{i:04d}.{rng.choice(('jpg', 'png', 'webp'))}", data))
        found.append(member(f"{prefix}{i:04d}.cls", b"%d" % i))
        if rng.random() < 0.5:
            tree = {"label": i, "caption": "a cat", "url": "http://x/y.jpg"}
            content = as_json(rng, changed(rng, tree) if rng.random() < 0.5 else tree)
            found.append(member(f"{prefix}{i:04d}.json", content))
    for _ in range(rng.choice((0, 1, 1, 2))):
        _make_odd(rng, found)
    return found


def _make_odd(rng: random.Random, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    number = rng.randrange(len(members))
    info, content = members[number]
    what = rng.randrange(8)
    if what == 0:
        info.name = rng.choice(NAMES)
    elif what == 1:
        info.type = rng.choice(TYPES)
        info.linkname = rng.choice((*NAMES, members[0][0].name, info.name))
    elif what == 2:
        members.append((info, content))
    elif what == 3:
        info.pax_headers = dict(rng.choice(PAX))
    elif what == 4:
        info.size = rng.choice((0, 1, len(content) // 2))
    elif what == 5:
        members[number] = member(info.name, rng.choice(LABELS))
    elif what == 6:
        members.insert(0, member(rng.choice(NAMES), content))
    else:
        rng.shuffle(members)


def write_tar(rng: random.Random, folder: Path) -> None:
    data = tar_of(rng, samples(rng))
    data = damaged(rng, data) if rng.random() < 0.6 else data
    (folder / "x.tar").write_bytes(data)


def write_tars(rng: random.Random, folder: Path) -> None:
    """A tar that holds tars."""
    inner = tar_of(rng, samples(rng, rng.choice(("", "./", "a/"))))
    inner = damaged(rng, inner) if rng.random() < 0.4 else inner
    own = samples(rng) if rng.random() < 0.3 else []
    more = [member("n2.tar", inner)] if rng.random() < 0.5 else []
    outer = [member(rng.choice(("n1.tar", "./n1.tar", "a/n1.tar", "n1.TAR")), inner), *more, *own]
    for _ in range(rng.choice((0, 1))):
        _make_odd(rng, outer)
    data = tar_of(rng, outer)
    (folder / "x.tar").write_bytes(damaged(rng, data) if rng.random() < 0.4 else data)


def write_zip(rng: random.Random, folder: Path) -> None:
    file = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", kind) as archive, warnings.catch_warnings(action="ignore"):
        for info, content in samples(rng, rng.choice(("", "./", "a/b/", "train/"))):
            try:
                archive.writestr(info.name or "a.jpg", content)
            except UnicodeEncodeError:
                continue
    data = bytearray(file.getvalue())
    for _ in range(rng.choice((0, 0, 1, 4))):  # in what its table of contents says
        start = data.find(b"PK\1\2")
        data[rng.randrange(start, len(data))] = rng.choice((0, 1, 255, rng.randrange(256)))
    content = bytes(data)
    (folder / "x.zip").write_bytes(damaged(rng, content) if rng.random() < 0.3 else content)


def write_list(rng: random.Random, folder: Path) -> None:
    """A CSV beside its images."""
    (folder / "m").mkdir()
    rows = [["path", "label"]] * rng.choice((0, 1))
    for i in range(3):
        (folder / f"m/{i}.jpg").write_bytes(rng.choice(small_images()))
        rows.append([rng.choice((f"m/{i}.jpg", f"m\\{i}.jpg", rng.choice(NAMES))), str(i)])
    for _ in range(rng.choice((0, 1, 2))):
        row = list(rng.choice(rows))
        row[rng.randrange(len(row))] = rng.choice((*map(str, VALUES), *NAMES, '"', "a,b", "9" * 99))
        rows[rng.randrange(len(rows))] = row + ["x"] * rng.choice((0, 0, 1))
    separator = rng.choice((",", ",", ";", "\t", " "))
    text = rng.choice(("\n", "\r\n", "\r")).join(separator.join(row) for row in rows)
    data = text.encode("utf-8", "surrogateescape")
    if rng.random() < 0.4:  # Excel's
        data = text.encode(rng.choice(("utf-8-sig", "utf-16")), "replace")
    name = rng.choice(("a.csv", "a.tsv", "a.txt"))
    (folder / name).write_bytes(damaged(rng, data) if rng.random() < 0.4 else data)


def use_source(folder: Path, out: Path) -> str | None:
    from ssld.data.sources import open_source

    return views_of(open_source(str(next(iter(sorted(folder.iterdir()))))))


VALUES: tuple[Any, ...] = (None, "", "../x.jpg", "/dev/zero", "a", 0, 1, -1, 2**40, 1.5, b"x")


def write_manifest(rng: random.Random, folder: Path) -> None:
    """Parquet with the columns of a manifest or of a data set of a hub, beside its images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [rng.choice(small_images()) for _ in range(3)]
    columns: dict[str, list[Any]] = {"sample_id": ["a", "b", "c"], "label": ["x", "y", "x"]}
    if rng.random() < 0.5:
        columns["bytes"] = list(images)
    else:
        columns["path"] = ["m/0.jpg", "m/1.jpg", "m/blob.bin"]
        if rng.random() < 0.5:
            columns |= {"offset": [None, None, 0], "size": [None, None, len(images[2])]}
    if rng.random() < 0.2:
        columns["image"] = [{"bytes": x, "path": "a.jpg"} for x in images]
    table = _columns_changed(rng, columns)
    file = io.BytesIO()
    try:
        pq.write_table(pa.table(table), file, compression=rng.choice(("snappy", "none", "zstd")))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pq.write_table(pa.table({"sample_id": ["a"]}), file)
    data = file.getvalue()
    (folder / "a.parquet").write_bytes(damaged(rng, data) if rng.random() < 0.5 else data)
    (folder / "m").mkdir()
    for name, image in zip(("0.jpg", "1.jpg", "blob.bin"), images, strict=True):
        (folder / "m" / name).write_bytes(image)


def _columns_changed(rng: random.Random, columns: dict[str, list[Any]]) -> dict[str, Any]:
    import pyarrow as pa

    found: dict[str, Any] = dict(columns)
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice(list(found))
        what = rng.randrange(6)
        if what == 0:
            del found[name]
            found = found or {"sample_id": ["a", "b", "c"]}
        elif what == 1:
            found[name] = [rng.choice(VALUES)] * 3
        elif what == 2:
            values = list(found[name])
            values[rng.randrange(3)] = rng.choice(VALUES)
            found[name] = values
        elif what == 3:
            found[rng.choice(("id", "img", "Label", "path", "bytes"))] = found[name]
        elif what == 4:
            kind = rng.choice((pa.int8(), pa.uint64(), pa.float64(), pa.binary(), pa.string()))
            found[name] = pa.array([1, 2, 3]).cast(kind) if kind != pa.binary() else [b"1"] * 3
        else:
            found[name] = [[x] for x in found[name]]
    return found


TINY = b"\x08\0\0\0\0\0\0\0{}      "
"""A safetensors file without tensors."""


def write_bundle(rng: random.Random, folder: Path) -> None:
    """What `ssld zoo bundle` writes, and worse."""
    from kinds_models import CONFIG

    files = {"model.safetensors": TINY, "config.json": json.dumps(CONFIG).encode()}
    sums = {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items()}
    manifest: Any = {"format": 1, "kind": "converted", "files": sums}
    if rng.random() < 0.5:
        manifest = changed(rng, manifest)
    members = [member(f"net/{name}", content) for name, content in files.items()]
    members.append(member("net/ssld.json", as_json(rng, manifest)))
    for _ in range(rng.choice((0, 1, 2))):
        _make_odd(rng, members)
    data = tar_of(rng, members)
    (folder / "x.tar").write_bytes(damaged(rng, data) if rng.random() < 0.4 else data)


def use_bundle(folder: Path, out: Path) -> None:
    from zoo.publish.bundle import unbundle
    from zoo.publish.local import place
    from zoo.release import verify

    for name in unbundle(folder / "x.tar", out / "zoo"):
        verify(out / "zoo" / name)
        place(out / "zoo" / name, out / "copy", say=str)


SOURCES = ("ssld.data.sources", "ssld.data.loading", "ssld.data.transforms")
KINDS = {
    "archives.tar": Kind(write_tar, use_source, SOURCES),
    "archives.tars": Kind(write_tars, use_source, SOURCES),
    "archives.parquet": Kind(write_manifest, use_source, SOURCES),
    "archives.zip": Kind(write_zip, use_source, SOURCES),
    "archives.list": Kind(write_list, use_source, SOURCES),
    "archives.bundle": Kind(write_bundle, use_bundle, ("zoo.publish.bundle", "zoo.publish.local")),
}
