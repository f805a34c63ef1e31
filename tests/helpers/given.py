"""What people give: pictures, tars and tables, as the tests of this folder make them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(shade: int, kind: str = "PNG") -> bytes:
    """An image of one grey."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), shade, np.uint8)).save(file, kind)
    return file.getvalue()


def put(path: Path, data: bytes | int = 0) -> Path:
    """A file with its folders; a number stands for a picture of that grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(data) if isinstance(data, int) else data)
    return path


def tar(path: Path, members: list[tuple[str, bytes | str]], **options: Any) -> str:
    """A tar; text is what a member is a link to: `=NAME` hard, `>NAME` symbolic."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type = tarfile.LNKTYPE if content[0] == "=" else tarfile.SYMTYPE
                info.linkname = content[1:]
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


def table(path: Path, names: list[str] | None = None, /, **columns: Any) -> str:
    """A Parquet file; `names` are those of `label`'s classes, as the hub's library states them."""
    made = pa.table(columns)
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        label = "label" if "label" in columns else "fine_label"
        said = {"info": {"features": {label: feature, "image": {"_type": "Image"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(said)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return str(path)


def labels(source: Any) -> dict[str, Any]:
    """Sample id -> label."""
    return {source.sample_id(i): source.label(i) for i in range(len(source))}
