"""Addresses: where every image of every source lies, and a manifest that reads them back."""

from __future__ import annotations

import io
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssld.common.errors import InputError
from ssld.data.loading import ViewBatches, eval_batches
from ssld.data.source import hold_out
from ssld.data.sources import key, open_source
from ssld.data.storage import Address
from ssld.data.transforms import EvalView


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def save(path: str, data: bytes) -> str:
    with fsspec.open(path, "wb", auto_mkdir=True) as file:
        file.write(data)
    return path


def table(file_name, /, **columns) -> str:
    with fsspec.open(str(file_name), "wb") as file:
        pq.write_table(pa.table(columns), file)
    return str(file_name)


@pytest.fixture(params=["local", "remote"])
def galleries(request, tmp_path) -> list[str]:
    """A folder, a tar of tars, a manifest with bytes, one with paths and one with ranges."""
    root = str(tmp_path) if request.param == "local" else f"memory://galleries{id(tmp_path)}"
    for i in range(3):
        save(f"{root}/folder/c/{i}.png", png(i))
    inner = tar({"a.png": png(10), "b.png": png(11)})
    packed = save(f"{root}/packed.tar", tar({"n1.tar": inner, "c.png": png(12)}))
    blobs = table(f"{root}/blobs.parquet", sample_id=["x", "y"], bytes=[png(20), png(21)])
    paths = table(f"{root}/paths.parquet", sample_id=["z"], path=["folder/c/0.png"])
    c = next(i for i in range(3) if open_source(packed).sample_id(i) == "packed/c")
    _, offset, size = open_source(packed).address(c)
    ranges = table(
        f"{root}/ranges.parquet",
        sample_id=["p", "q", "r"],
        path=["packed.tar", "blobs.parquet", "folder/c/1.png"],
        offset=[offset, 1, None],
        size=pa.array([size, None, 99], pa.int32()),
    )
    return [f"{root}/folder", packed, blobs, paths, ranges]


def selection(path, galleries: list[str]) -> tuple[str, dict[str, bytes]]:
    """A manifest of every image of every gallery, and what it must read."""
    rows, expected = [], {}
    for number, gallery in enumerate(galleries):
        source = open_source(gallery)
        for i in range(len(source)):
            name = f"{number}/{source.sample_id(i)}"
            rows.append((name, *source.address(i)))
            expected[name] = source.read(i)
    names, paths, offsets, sizes = (list(column) for column in zip(*rows, strict=True))
    columns = {"sample_id": names, "path": paths, "offset": offsets, "size": sizes}
    return table(path, **columns), expected


def test_a_manifest_of_addresses_reads_the_same_bytes(tmp_path, galleries):
    path, expected = selection(tmp_path / "selected.parquet", galleries)
    source = pickle.loads(pickle.dumps(open_source(path)))
    assert {source.sample_id(i): source.read(i) for i in range(len(source))} == expected
    assert len(expected) == 12
    again, same = selection(tmp_path / "again.parquet", [path])
    assert list(same.values()) == list(expected.values())
    columns = ["path", "offset", "size"]
    assert pq.read_table(again, columns=columns) == pq.read_table(path, columns=columns)


def test_what_the_addresses_are(galleries):
    folder, packed, blobs, paths, ranges = (open_source(path) for path in galleries)
    root = galleries[0].rpartition("/")[0]
    assert folder.address(1) == Address(f"{root}/folder/c/1.png", None, None)
    with fsspec.open(galleries[1], "rb") as file:
        data = file.read()
    for i in range(3):
        where, offset, size = packed.address(i)
        assert where == galleries[1] and data[offset : offset + size] == packed.read(i)
    assert blobs.address(1) == (f"{root}/blobs.parquet", 1, None)
    assert paths.address(0) == (f"{root}/folder/c/0.png", None, None)
    assert ranges.address(0)[0] == galleries[1]
    assert ranges.address(1) == blobs.address(1) and ranges.address(2) == folder.address(1)
    assert [ranges.size(i) for i in range(3)] == [len(png(12)), None, None]
    said = [ranges.location(i) for i in range(3)]
    assert said[0] == f"{root}/packed.tar at byte {ranges.address(0).offset} (p)"
    assert said[1:] == [f"{root}/blobs.parquet row 1 (q)", f"{root}/folder/c/1.png"]


def test_addresses_are_absolute_and_links_stay(tmp_path, monkeypatch):
    save(f"{tmp_path}/real/0.png", png(0))
    save(f"{tmp_path}/s.tar", tar({"0.png": png(0)}))
    table(tmp_path / "m.parquet", sample_id=["a", "b"], path=["link/0.png", "/else/../1.png"])
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert open_source("link").address(0).path == f"{tmp_path}/link/0.png"
    assert open_source("s.tar").address(0).path == f"{tmp_path}/s.tar"
    assert [open_source("m.parquet").address(i).path for i in (0, 1)] == [
        f"{tmp_path}/link/0.png", "/1.png",
    ]  # fmt: skip


def test_a_part_has_the_addresses_of_its_source(tmp_path):
    save(f"{tmp_path}/s.tar", tar({f"{i}.png": png(i) for i in range(40)}))
    source = open_source(f"{tmp_path}/s.tar")
    kept, held = hold_out([source], 2)
    for part in (kept[0], held[0]):
        for i in range(len(part)):
            assert part.address(i) == source.address(int(part.sample_id(i).rpartition("/")[2]))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_ranges_and_rows(tmp_path, workers):
    packed = save(f"{tmp_path}/s.tar", tar({f"{i}.png": png(i) for i in range(20)}))
    ids, blobs = [f"{i}" for i in range(20)], [png(100 + i) for i in range(20)]
    rows = table(tmp_path / "rows.parquet", sample_id=ids, bytes=blobs)
    path, expected = selection(tmp_path / "selected.parquet", [packed, rows])
    os.truncate(packed, 20_000)
    make = ViewBatches([open_source(path)], EvalView(4, 1, "bilinear"))
    batches = eval_batches(make, batch_size=16, workers=workers)
    shades, lost = {}, []
    for batch in batches:
        lost += batch.unreadable
        shades |= dict(zip(batch.ids, batch.images[:, 0, 0, 0].tolist(), strict=True))
    assert list(shades) == list(expected) and len(lost) == 1
    assert lost[0][1] == "0/s/19" and f"{packed} at byte" in lost[0][2] and "ends" in lost[0][3]
    assert [shades[f"0/s/{i}"] for i in range(19)] == list(range(19))
    assert [shades[f"1/{i}"] for i in range(20)] == [100 + i for i in range(20)]


def test_pickling_takes_no_images_along(tmp_path):
    noise = np.random.default_rng(0).bytes(1_000_000)
    rows = table(tmp_path / "rows.parquet", sample_id=["a"], bytes=[noise])
    names = [f"{i}" for i in range(1000)]
    path = table(tmp_path / "m.parquet", sample_id=names, path=[rows] * 1000, offset=[0] * 1000)
    source = open_source(path)
    assert source.read(999) == noise
    assert len(pickle.dumps(source)) < 40_000
    assert pickle.loads(pickle.dumps(source)).read(5) == noise


def test_columns_that_mean_something_else(tmp_path):
    save(f"{tmp_path}/0.png", png(0))
    for columns in (
        dict(size=["4x5"]), dict(size=[7]), dict(size=[-1]), dict(offset=[None], size=[None]),
        dict(offset=pa.nulls(1, pa.int64()), size=[7]),
    ):  # fmt: skip
        source = open_source(
            table(tmp_path / "m.parquet", sample_id=["a"], path=["0.png"], **columns)
        )
        assert source.read(0) == png(0) and source.size(0) is None
        assert source.address(0) == (f"{tmp_path}/0.png", None, None)
    columns = dict(sample_id=["a"], bytes=[png(1)], offset=["x"], size=[3])
    assert open_source(table(tmp_path / "m.parquet", **columns)).read(0) == png(1)


def test_addresses_that_cannot_be(tmp_path):
    save(f"{tmp_path}/0.png", png(0))
    (tmp_path / "text.parquet").write_text("x")
    table(tmp_path / "paths.parquet", sample_id=["a"], path=["0.png"])
    table(tmp_path / "blobs.parquet", sample_id=["a"], bytes=[png(0)])
    cases = [
        (dict(path=["0.png"], offset=["x"], size=[1]), "column offset is string; .* int64"),
        (dict(path=["0.png"], offset=[0.0], size=[1]), "column offset is double"),
        (dict(path=["0.png"], offset=[0], size=["4x5"]), "column size is string"),
        (dict(path=["0.png"], offset=[-1], size=[1]), "column offset has negative numbers"),
        (dict(path=["0.png"], offset=[0]), "0.png has an offset but no size"),
        (dict(path=["0.png"], offset=[0], size=pa.nulls(1)), "0.png has an offset but no size"),
        (dict(path=["no.parquet"], offset=[0]), "points to .*no.parquet: no such file"),
        (dict(path=["text.parquet"], offset=[0]), "text.parquet: not a readable Parquet file"),
        (dict(path=["paths.parquet"], offset=[0]), "paths.parquet, which has no column bytes"),
        (dict(path=["blobs.parquet"], offset=[1]), "blobs.parquet row 1, but it ends before"),
    ]
    for columns, said in cases:
        path = table(tmp_path / "m.parquet", sample_id=["a"], **columns)
        with pytest.raises(InputError, match=said) as error:
            open_source(path)
        assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_keys():
    cases = {
        "n01440764/n01440764_10026.JPEG": "n01440764_10026",
        "fall11/n01440764/n01440764_10026": "n01440764_10026",
        "shard-000/0001 [.seg.png]": "0001",
        "a [b].jpg": "a [b]",
        "IMG.1234.webp": "IMG.1234",
        "photo.0001": "photo.0001",
        ".jpg": ".jpg",
    }
    assert {sample_id: key(sample_id) for sample_id in cases} == cases
