"""Zip archives of images, as zip, macOS, Windows and Python write them, and odd ones."""

from __future__ import annotations

import pickle
import subprocess
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from given import labels, picture, put

from ssld.common.errors import InputError
from ssld.data.sources import describe, open_source, read_address
from ssld.engine.start import fingerprint


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pack(path: Path, members: dict[str, bytes | int], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, picture(data) if isinstance(data, int) else data)
    return str(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("root", ["", "pets/", "data/pets/"])
def test_with_and_without_a_root_folder(tmp_path, root, method):
    members = {f"{root}cat/1.png": 1, f"{root}dog/2.png": 2, f"{root}dog/sub/3.png": 3}
    beside = {
        f"__MACOSX/{root}cat/._1.png": b"x",
        f"{root}.DS_Store": b"x",
        f"{root}read.txt": b"x",
    }
    path = pack(tmp_path / "pets.zip", members | beside, method)
    source = pickle.loads(pickle.dumps(open_source(path)))
    assert labels(source) == {"cat/1.png": "cat", "dog/2.png": "dog", "dog/sub/3.png": "dog"}
    assert source.class_names == ["cat", "dog"] and source.labeled().all()
    for i in range(3):
        assert source.read(i) == read_address(source.address(i)) == picture(i + 1)
        assert source.size(i) == len(picture(i + 1))
    assert fingerprint([source])
    said = describe(source)
    assert "2 hidden" in said and "1 .txt" in said
    assert (f"3 of them below the folder ({root})" in said) == bool(root)


def test_one_folder_of_images(tmp_path):
    source = open_source(pack(tmp_path / "a.zip", {"photos/1.png": 1, "photos/2.png": 2}))
    assert labels(source) == {"1.png": None, "2.png": None} and source.class_names is None
    assert source.location(1) == f"{tmp_path}/a.zip:photos/2.png"


def test_splits(tmp_path):
    members = {f"set/{split}/{c}/{i}.png": i for i, split in enumerate(["train", "valid", "test"])
               for c in "ab"}  # fmt: skip
    path = pack(tmp_path / "set.zip", members)
    with pytest.raises(InputError, match=r"holds the splits test, train, valid, .*set.zip::train"):
        open_source(path)
    assert labels(open_source(f"{path}::train")) == {"a/0.png": "a", "b/0.png": "b"}
    assert list(labels(open_source(f"{path}::val"))) == ["a/1.png", "b/1.png"]
    with pytest.raises(InputError, match="no split is named so"):
        open_source(f"{path}::extra")
    alone = pack(tmp_path / "alone.zip", {"train/a/1.png": 1, "train/b/1.png": 1})
    assert labels(open_source(f"{alone}::train")) == labels(open_source(alone))


def test_as_the_tools_of_systems_write_it(tmp_path):
    put(tmp_path / "in/größe/1.png", 1)
    put(tmp_path / "in/b/2.png", 2)
    done = subprocess.run(["python3", "-m", "zipfile", "-c", "../p.zip", "größe", "b"],
                          cwd=tmp_path / "in", check=True)  # fmt: skip
    assert done.returncode == 0
    assert open_source(f"{tmp_path}/p.zip").class_names == ["b", "größe"]
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:  # UTF-8 without saying so
        info = zipfile.ZipInfo("größe/1.png".encode().decode("cp437"))
        archive.writestr(info, picture(1))
        archive.writestr("b/2.png", picture(2))
    data = (
        (tmp_path / "mac.zip").read_bytes().replace(info.filename.encode(), "größe/1.png".encode())
    )
    assert data
    path = pack(tmp_path / "windows.zip", {"a\\1.png": 1, "b\\2.png": 2})
    assert open_source(path).class_names == ["a", "b"]


def test_names_without_the_flag_of_utf8(tmp_path):
    pack(tmp_path / "a.zip", {"größe/1.png": 1, "b/2.png": 2})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = data.find(magic)
        while start >= 0:
            data[start + at + 1] &= ~0x8 & 255  # bit 11, as the Archive Utility of macOS leaves it
            start = data.find(magic, start + 4)
    (tmp_path / "a.zip").write_bytes(data)
    assert open_source(f"{tmp_path}/a.zip").class_names == ["b", "größe"]


def test_names_that_lead_out_and_twice(tmp_path):
    members = {"../../a.png": 1, "/etc/b.png": 1, "C:\\c.png": 1, "d/../../e.png": 1, "x/ok.png": 2}
    path = pack(tmp_path / "slip.zip", members)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/ok.png", picture(9))
    source = open_source(path)
    assert list(labels(source)) == ["ok.png"] and source.read(0) == picture(9)
    assert source.account.counts["whose name leads out of the archive"] == 4
    assert source.account.counts["replaced by a later file of the same name"] == 1


def test_a_selection_points_into_an_archive(tmp_path):
    path = pack(tmp_path / "a.zip", {"a/1.png": 1, "b/2.png": 2})
    source = open_source(path)
    where = [source.address(i) for i in range(2)]
    columns = {"sample_id": ["x", "y"], "path": [x.path for x in where],
               "offset": [x.offset for x in where], "size": pa.nulls(2, pa.int64())}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "chosen.parquet")
    chosen = pickle.loads(pickle.dumps(open_source(f"{tmp_path}/chosen.parquet")))
    assert [chosen.read(i) for i in range(2)] == [picture(1), picture(2)]
    pq.write_table(pa.table(columns | {"offset": [0, 7]}), tmp_path / "beyond.parquet")
    with pytest.raises(InputError, match="a.zip file 7, but it ends before"):
        open_source(f"{tmp_path}/beyond.parquet")


def test_remote(tmp_path):
    import fsspec

    path = pack(tmp_path / "a.zip", {"a/1.png": 1, "b/2.png": 2})
    with fsspec.open("memory://zips/a.zip", "wb") as file:
        file.write(Path(path).read_bytes())
    assert open_source("memory://zips/a.zip").read(1) == picture(2)


def spoiled(path: str, where: bytes, change: int) -> str:
    data = bytearray(Path(path).read_bytes())
    data[data.find(where) + change] ^= 0x11
    Path(path).write_bytes(data)
    return path


def test_damage_is_one_unreadable_image(tmp_path):
    noise = bytes(range(256)) * 9
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        path = pack(tmp_path / "a.zip", {"a/1.png": noise, "b/2.png": 2}, method)
        if method != zipfile.ZIP_LZMA:  # which is not read at all
            spoiled(path, b"a/1.png", 60)
        with pytest.raises(OSError, match="in its archive|packed by method 14"):
            open_source(path).read(0)


def encrypted(path: str) -> str:
    data = bytearray(Path(path).read_bytes())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.find(magic) + at] |= 1
    Path(path).write_bytes(data)
    return path


def test_what_is_no_archive_of_images_says_so(tmp_path):
    whole = pack(tmp_path / "whole.zip", {"a/1.png": 1, "b/2.png": 2})
    (tmp_path / "half.zip").write_bytes(Path(whole).read_bytes()[:80])
    (tmp_path / "page.zip").write_bytes(b"<!doctype html>")
    cases = {
        pack(tmp_path / "none.zip", {"a.csv": b"x", "b.csv": b""}): r"no image .*\(it has 2 .csv",
        pack(tmp_path / "empty.zip", {}): "no image in this archive",
        encrypted(pack(tmp_path / "secret.zip", {"1.png": 1})): "is encrypted; unpack it",
        str(tmp_path / "half.zip"): "not a whole zip archive",
        str(tmp_path / "page.zip"): "not a whole zip archive",
        str(tmp_path / "gone.zip"): "no such file",
    }
    for path, said in cases.items():
        with pytest.raises(InputError, match=said) as error:
            open_source(path)
        assert str(error.value).startswith(path) and "\n" not in str(error.value)
