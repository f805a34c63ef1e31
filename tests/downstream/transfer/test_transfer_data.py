"""Aircraft, CIFAR-100, DTD and SUN397 as manifests, from small archives laid out as published."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100

from downstream.transfer import known_datasets as transfer_data
from downstream.transfer.config import TransferConfig, TransferDataConfig
from ssld.cli.parse import parse
from ssld.common.errors import InputError
from ssld.data.source import Source
from ssld.data.sources import open_source

PARTS = ("train", "val", "test")


def colour(number: int) -> np.ndarray:
    return np.full((8, 9, 3), number, np.uint8)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colour(number)).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(file: Path, content: dict[str, bytes | str]) -> str:
    """Write an archive; returns its sha256 as `Archive.digest` has it."""
    whole = {k: x.encode() if isinstance(x, str) else x for k, x in content.items()}
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as opened:
            for name, data in whole.items():
                opened.writestr(name, data)
    else:
        with tarfile.open(file, "w:gz") as opened:
            for name, data in whole.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                opened.addfile(member, io.BytesIO(data))
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def aircraft() -> list[dict[str, bytes | str]]:
    data, names = "fgvc-aircraft-2013b/data", ["707-320", "F/A-18", "Spitfire"]
    content: dict[str, bytes | str] = {f"{data}/variants.txt": "\n".join(names) + "\n"}
    for i, part in enumerate(PARTS):
        lines = [f"{100 * i + j:07d} {name}" for j, name in enumerate(names)]
        content[f"{data}/images_variant_{part}.txt"] = "\n".join(lines) + "\n"
        for j in range(3):
            content[f"{data}/images/{100 * i + j:07d}.jpg"] = jpeg(100 * i + j)
    return [content]


def dtd() -> list[dict[str, bytes | str]]:
    content: dict[str, bytes | str] = {}
    for i, part in enumerate(PARTS):
        rows = [(name, 100 * i + j) for j, name in enumerate(["banded", "woven"])]
        names = [f"{name}/{name}_{number:04d}.jpg" for name, number in rows]
        content[f"dtd/labels/{part}1.txt"] = "\n".join(names) + "\n"
        content |= {f"dtd/images/{x}": jpeg(n) for x, (_, n) in zip(names, rows, strict=True)}
    return [content]


def sun397() -> list[dict[str, bytes | str]]:
    images: dict[str, bytes | str] = {"SUN397/ClassName.txt": "/a/abbey\n/b/bar/indoor\n"}
    lists: dict[str, bytes | str] = {}
    for i, (part, count) in enumerate((("Training", 20), ("Testing", 2))):
        paths = []
        for j in range(count):
            paths.append(f"/{'a/abbey' if j % 2 else 'b/bar/indoor'}/sun_{i}{j:02d}.jpg")
            images[f"SUN397{paths[-1]}"] = jpeg(100 * i + j)
        lists[f"{part}_01.txt"] = "\r\n".join(paths) + "\r\n"
    return [images, lists]


def cifar100() -> list[dict[str, bytes | str]]:
    content: dict[str, bytes | str] = {}
    for part, count, first in (("train", 40, 0), ("test", 4, 200)):
        pixels = np.stack([np.full(3072, first + i, np.uint8) for i in range(count)])
        labels = [i % 2 for i in range(count)]
        entry: dict[str, Any] = {"data": pixels, "fine_labels": labels}
        content[f"cifar-100-python/{part}"] = pickle.dumps(entry)
    meta = {"fine_label_names": ["apple", "bear"]}
    content["cifar-100-python/meta"] = pickle.dumps(meta)
    return [content]


MADE = {"aircraft": aircraft, "dtd": dtd, "sun397": sun397, "cifar100": cifar100}


@pytest.fixture(params=MADE)
def known(request, tmp_path, monkeypatch) -> tuple[str, Path]:
    """The name of a data set, and a folder with its archives."""
    name: str = request.param
    data = transfer_data.DATASETS[name]
    archives = data.archives
    contents = MADE[name]()
    digests = [pack(tmp_path / x.name, y) for x, y in zip(archives, contents, strict=True)]
    pinned = [replace(x, digest=y) for x, y in zip(archives, digests, strict=True)]
    entry = replace(data, archives=pinned)
    monkeypatch.setitem(transfer_data.DATASETS, name, entry)
    if name == "cifar100":  # its files have sums of their own
        for attribute, file in (("train_list", "train"), ("test_list", "test")):
            monkeypatch.setattr(CIFAR100, attribute, [[file, md5(contents[0], file)]])
        monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(contents[0], "meta")})
    return name, tmp_path


def md5(content: dict[str, Any], file: str) -> str:
    return hashlib.md5(content[f"cifar-100-python/{file}"]).hexdigest()


def config(name: str, root: Path, **data: Any) -> TransferConfig:
    found: Any = TransferDataConfig(dataset=name, root=str(root), **data)  # type: ignore[arg-type]
    tree = {"out": "o", "steps": 1, "backbone": {"name": "test_resnet"}, "data": vars(found)}
    return parse("ssld transfer", TransferConfig, [], settings=("F.yaml", tree))


def sources(paths: str | list[str]) -> list[Source]:
    return [open_source(path) for path in paths]


def shade(source: Source, i: int) -> int:
    with Image.open(io.BytesIO(source.read(i))) as image:
        return int(np.asarray(image).astype(float).mean().round())


def test_parts_labels_and_pixels(known):
    name, root = known
    final = transfer_data.resolve(config(name, root)).data
    search = transfer_data.resolve(config(name, root, protocol="search")).data
    train, val = sources(final.labeled)
    (test,) = sources(final.val)
    assert search.labeled == [final.labeled[0]] and search.val == [final.labeled[1]]
    sizes = {"aircraft": (3, 3, 3), "dtd": (2, 2, 2), "sun397": (18, 2, 2), "cifar100": (36, 4, 4)}
    assert (len(train), len(val), len(test)) == sizes[name]
    names = {"aircraft": ["707-320", "F/A-18", "Spitfire"], "dtd": ["banded", "woven"]}
    names |= {"sun397": ["abbey", "bar/indoor"], "cifar100": ["apple", "bear"]}
    assert all(source.class_names == names[name] for source in (train, val, test))
    ids = [x.sample_id(i) for x in (train, val, test) for i in range(len(x))]
    assert len(set(ids)) == len(ids) == sum(sizes[name])
    expected = {"aircraft": 201, "dtd": 201, "sun397": 101, "cifar100": 201}[name]
    place = next(i for i in range(len(test)) if shade(test, i) == expected)
    assert test.label(place) == names[name][1 if name != "sun397" else 0]
    if name in ("sun397", "cifar100"):  # every tenth of each class is for validation
        held = sorted(str(val.label(i)) for i in range(len(val)))
        assert held == sorted(names[name] * (len(val) // 2))


def test_what_is_made_is_kept_and_needs_no_archive(known):
    name, root = known
    made = transfer_data.manifests(config(name, root).data)
    before = {path: path.stat().st_mtime_ns for path in made.values()}
    for archive in transfer_data.DATASETS[name].archives:
        (root / archive.name).unlink()
    assert transfer_data.manifests(config(name, root).data) == made
    assert {path: path.stat().st_mtime_ns for path in made.values()} == before
    made["val"].unlink()  # killed between two of them
    transfer_data.manifests(config(name, root).data)
    assert made["val"].is_file() and not list(root.glob(".*tmp")) + list(root.glob(".*unpacked"))


def test_another_archive_is_refused_and_nothing_of_it_read(known):
    name, root = known
    archive = transfer_data.DATASETS[name].archives[-1]
    with (root / archive.name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        InputError, match=r"is not what was published: its sha256 is \w{12}"
    ) as said:
        transfer_data.resolve(config(name, root))
    assert archive.url in str(said.value) and not (root / archive.makes).exists()
    assert not list(root.glob("*.parquet"))


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such folder; name that of dtd"):
        transfer_data.resolve(config("dtd", tmp_path / "none"))
    with pytest.raises(
        InputError, match=r"has neither dtd/dtd nor dtd-r1.0.1.tar.gz of dtd: get h"
    ):
        transfer_data.resolve(config("dtd", tmp_path))

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", unreachable)
    with pytest.raises(InputError, match=r"cannot be fetched \(no route to host\)"):
        transfer_data.resolve(config("dtd", tmp_path, download=True))


def test_sums_are_pinned():
    for known in transfer_data.DATASETS.values():
        for archive in known.archives:
            kind, _, value = archive.digest.partition(":")
            assert len(value) == {"sha256": 64, "md5": 32}[kind] and archive.url.startswith("http")


BAD = {
    "neither": ({}, "give data.dataset and data.root, or data.labeled"),
    "both": ({"dataset": "dtd", "root": "x", "labeled": ["y"]}, "and not both"),
    "root": ({"dataset": "dtd"}, "data.root is missing: name the folder of dtd"),
    "val": ({"dataset": "dtd", "root": "x", "val": ["y"]}, "data.val is given beside"),
    "unlabeled": ({"labeled": ["x"], "unlabeled": ["y"]}, "transfer reads labels"),
    "name": ({"dataset": "cifar10", "root": "x"}, "cifar10"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    data, said = BAD[case]
    tree = {"out": "o", "steps": 1, "backbone": {"name": "test_resnet"}, "data": data}
    with pytest.raises(InputError, match=said):
        parse("ssld transfer", TransferConfig, [], settings=("F.yaml", tree))
