"""A small world to curate: what is planted in its gallery is known."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter, ImageOps

from ssld.curate.near_duplicates import sift

EDITS = {
    "jpeg": lambda image: image,
    "mirror": ImageOps.mirror,
    "crop": lambda image: image.crop((20, 15, image.width, image.height - 10)),
    "small": lambda image: image.resize((image.width // 2, image.height // 2)),
    "turned": lambda image: image.rotate(6, resample=Image.Resampling.BICUBIC),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
}


def picture(seed: int) -> Image.Image:
    """Something with as much structure as a photograph: soft colours and hard edges."""
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.uniform(0, 255, (6, 8, 3)), (168, 128), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(soft, 0, 255).astype(np.uint8)
    for _ in range(30):
        centre = rng.integers(0, (168, 128)).tolist()
        axes = rng.integers(3, 22, 2).tolist()
        colour = rng.integers(0, 256, 3).tolist()
        cv2.ellipse(pixels, centre, axes, int(rng.integers(180)), 0, 360, colour, -1, cv2.LINE_AA)
    return Image.fromarray(pixels)


@contextlib.contextmanager
def features_once() -> Iterator[None]:
    """Of the same pixels, which all curations of a module look at: SIFT is most of their work, and
    `tests/curate/test_sift.py` says that it is a function of the pixels."""
    whole, known = sift.features_of, {}

    def remembered(pixels: np.ndarray) -> sift.Features:
        key = pixels.shape, pixels.tobytes()
        if key not in known:
            known[key] = whole(pixels)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sift, "features_of", remembered)
        yield


@dataclass(frozen=True)
class World:
    """Folders of images, and what each planted gallery file is."""

    root: Path
    leaks: set[str]
    """Files of the gallery that are edited or exact copies of protected ones."""
    labeled: set[str]
    """Files of the gallery that are in the labeled set."""
    unreadable: set[str]
    copies: set[str]
    """Of each of these there is a better or equal twin in the gallery."""
    others: set[str]

    def folder(self, name: str) -> Path:
        return self.root / name

    def settings(self, out: Path, teacher: Path | None, **changes: Any) -> list[str]:
        """Words of a command line."""
        chosen = {
            "out": out,
            "gallery": self.folder("gallery"),
            "protected": self.folder("protected"),
            "labeled": self.folder("labeled"),
            "teacher.checkpoint": teacher,
            "teacher.verify": "false",
            "select.k": 100,
            "batch_size": 8,
            "workers": 0,
            "shard_size": 7,
            **changes,
        }
        return [f"--{key}={value}" for key, value in chosen.items() if value is not None]


def save(image: Image.Image, path: Path, quality: int = 90) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality) if path.suffix == ".jpg" else image.save(path)
    return path.name


def make(root: Path, clean: int = 14) -> World:
    """Six protected and six labeled images, and a gallery with something of both."""
    gallery = root / "gallery"
    leaks, labeled = set(), set()
    for i, edit in enumerate(EDITS.values()):
        protected = picture(i)
        save(protected, root / "protected" / f"v{i}.jpg")
        leaks.add(save(edit(protected), gallery / f"img{3 * i:02d}.jpg", quality=70))
        save(picture(100 + i), root / "labeled" / "abc"[i % 3] / f"t{i}.jpg")
    shutil.copy(root / "protected/v0.jpg", gallery / "a exact é.jpg")
    Image.open(root / "protected/v1.jpg").save(gallery / "zpixels.png")
    leaks |= {"a exact é.jpg", "zpixels.png"}
    shutil.copy(root / "labeled/a/t0.jpg", gallery / "t0 renamed.jpg")
    labeled.add("t0 renamed.jpg")
    others = {save(picture(200 + i), gallery / f"new{i:02d}.jpg") for i in range(clean)}
    shutil.copy(gallery / "new00.jpg", gallery / "twin of new00.jpg")
    (gallery / "empty.jpg").write_bytes(b"")
    (gallery / "cut.jpg").write_bytes((gallery / "new01.jpg").read_bytes()[:900])
    flat = {save(Image.new("RGB", (90, 70), (40, 60, 200)), gallery / "flat.png")}
    return World(
        root, leaks, labeled, {"empty.jpg", "cut.jpg"}, {"twin of new00.jpg"}, others | flat
    )


def table(out: Path, name: str) -> list[dict[str, Any]]:
    """Rows of one of the tables of a curation."""
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def names(rows: list[dict[str, Any]], column: str) -> set[str]:
    """File names of a column of locations."""
    return {Path(row[column].rpartition(":")[2]).name for row in rows}


def tables(out: Path) -> dict[str, bytes]:
    """Every table, byte for byte."""
    files = [*out.glob("*.parquet"), *out.glob("index/*.parquet"), *out.glob("scores/*.parquet")]
    found = {str(path.relative_to(out)): path.read_bytes() for path in files}
    return found | {"manifest.json": (out / "manifest.json").read_bytes()}


def as_tar(folder: Path, tar: Path, order: list[str]) -> None:
    """Pack files of a folder in a given order."""
    with tarfile.open(tar, "w") as archive:
        for name in order:
            data = (folder / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
