"""The packs that the scripts beside this file read: tars of photographs and lossless sheets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

CLASSIFIER = "mobilenetv2_100.imagenet1k.fp16.safetensors"
"""An ImageNet-1k MobileNetV2 (google-coral/test_data, Apache-2.0), 71 % top-1."""


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


def write(path: Path, content: bytes) -> Path:
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
