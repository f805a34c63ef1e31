"""Folders, manifests and shards: the same images whichever way they come."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssld.common.errors import InputError
from ssld.data.decode import Unreadable, decode
from ssld.data.folder import FolderSource
from ssld.data.patterns import expand
from ssld.data.sources import open_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def contents(source) -> list[tuple]:
    return [
        (source.sample_id(i), source.label(i), int(decode(source.read(i))[0, 0, 0]))
        for i in range(len(source))
    ]


def save(path: str, data: bytes) -> None:
    with fsspec.open(path, "wb", auto_mkdir=True) as file:
        file.write(data)


@pytest.mark.parametrize(
    "where", ["{tmp}", "{tmp}/", "file://{tmp}", "memory://f/g", "memory://h/"]
)
def test_folder_nested_with_odd_names(tmp_path, where):
    folder = where.format(tmp=tmp_path)
    names = ["b/zwei Wörter/ü 1.PNG", "b/2.jpeg", "a/x.png", "loose 日本.png", "a/.hidden.png"]
    for i, name in enumerate([*names, ".trash/old.png"]):
        save(f"{folder.rstrip('/')}/{name}", png(i))
    save(f"{folder.rstrip('/')}/a/notes.txt", b"no image")
    source = open_source(folder)
    assert contents(pickle.loads(pickle.dumps(source))) == [
        ("a/x.png", "a", 2),
        ("b/2.jpeg", "b", 1),
        ("b/zwei Wörter/ü 1.PNG", "b", 0),
        ("loose 日本.png", None, 3),
    ]
    assert source.class_names == ["a", "b"] and source.account.counts == {"hidden": 2, ".txt": 1}
    assert [source.size(i) for i in range(4)] == [len(source.read(i)) for i in range(4)]
    assert source.location(0) == f"{folder.rstrip('/')}/a/x.png"
    save(source.location(0), b"other")
    with pytest.raises(Unreadable, match="changed since the run began"):
        source.read(0)


def test_a_store_that_does_not_tell_sizes(tmp_path):
    save(f"{tmp_path}/a.png", png(3))
    source = FolderSource(f"file://{tmp_path}", {"a.png": None})
    assert contents(source) == [("a.png", None, 3)] and source.size(0) is None


def test_what_is_no_remote_folder_says_so():
    save("memory://odd/text.txt", b"x")
    save("memory://odd/text.md", b"x")
    save("memory://odd/.hidden/a.png", b"x")
    cases = {
        "memory://nowhere": "no such file or folder",
        "memory://odd": "no image in this folder .it has 1 hidden .*, 1 .md .*put some there",
        "memory://odd/text.txt": "no column holds names of images",
        "memory://odd/text.md": "not a folder",
        "memory://odd/*.tar": "no such shards",
        "nothing://odd": "cannot be reached",
    }
    for path, said in cases.items():
        with pytest.raises(InputError, match=said) as error:
            open_source(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_what_is_no_source_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "text.md").write_text("x")
    cases = {
        "nowhere": "no such file or folder",
        "empty": "no image in this folder: put some there, or name another",
        "text.txt": "no column holds names of images",
        "text.md": "not a folder",
        "no.parquet": "no such file",
        "no.tar": "no such file",
        "no-{0..1}.tar": "no such file",
    }
    for name, said in cases.items():
        with pytest.raises(InputError, match=said) as error:
            open_source(str(tmp_path / name))
        assert str(tmp_path) in str(error.value)


def write(folder, **columns) -> str:
    path = f"{folder}/manifest.parquet"
    with fsspec.open(path, "wb") as file:
        pq.write_table(pa.table(columns), file)
    return path


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("column", ["path", "bytes"])
def test_manifest(tmp_path, where, column):
    folder = str(tmp_path) if where == "local" else "memory://manifest"
    for i in range(3):
        with fsspec.open(f"{folder}/img {i}.png", "wb") as file:
            file.write(png(i))
    values = {"path": [f"img {i}.png" for i in range(3)], "bytes": [png(i) for i in range(3)]}
    path = write(folder, sample_id=["x", "y", "z"], label=[2, 0, None], **{column: values[column]})
    source = open_source(path)
    expected = [("x", 2, 0), ("y", 0, 1), ("z", None, 2)]
    assert contents(source) == expected
    assert contents(pickle.loads(pickle.dumps(source))) == expected


def test_manifest_labels_may_be_names_or_absent(tmp_path):
    path = write(tmp_path, sample_id=["x", "y"], label=["dog", "cat"], bytes=[png(0), png(1)])
    assert open_source(path).class_names == ["cat", "dog"]
    source = open_source(write(tmp_path, sample_id=["x", "y"], bytes=[png(0), png(1)]))
    assert source.class_names is None and source.label(0) is None


def test_bad_manifests(tmp_path):
    cases = [
        (dict(sample_id=["a", "a"], path=["1", "2"]), "'a' occurs more than once"),
        (dict(sample_id=["a", None], path=["1", "2"]), "row 1 has no sample_id"),
        (dict(path=["1"]), "needs `sample_id`"),
        (dict(sample_id=["a"], label=[1]), "one of `path` and `bytes`"),
        (dict(sample_id=["a"], path=["1"], label=[0.5]), "label is double"),
        (dict(sample_id=pa.array([], pa.string()), path=pa.array([], pa.string())), "no rows"),
    ]
    for columns, said in cases:
        with pytest.raises(InputError, match=said):
            open_source(write(tmp_path, **columns))
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        open_source(str(tmp_path / "manifest.parquet"))


def shard(path: str, members: dict[str, bytes]) -> str:
    with fsspec.open(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("where", ["local", "remote"])
def test_shards(tmp_path, where):
    folder = str(tmp_path) if where == "local" else "memory://shards"
    shard(f"{folder}/s-08.tar", {"d/0.png": png(0), "d/0.cls": b"7", "1.png": png(1)})
    shard(f"{folder}/s-09.tar", {"0.json": json.dumps({"label": 3}).encode(), "0.png": png(2)})
    source = open_source(f"{folder}/s-{{08..09}}.tar")
    expected = [("s-08/d/0", 7, 0), ("s-08/1", None, 1), ("s-09/0", 3, 2)]
    assert contents(source) == expected
    assert contents(pickle.loads(pickle.dumps(source))) == expected
    shard(f"{folder}/.hidden-09.tar", {})
    assert contents(open_source(f"{folder}/s-*.tar")) == expected
    assert contents(open_source(f"{folder}/*-0[89].tar")) == expected
    if where == "remote":  # Path.glob has hidden ones, too
        save(f"{folder}/deeper/t.tar", b"not one of them")
        assert contents(open_source(folder)) == contents(open_source(f"{folder}/")) == expected
    else:
        (tmp_path / ".hidden-09.tar").unlink()
        assert contents(open_source(folder)) == expected
        url = open_source(f"file://{folder}")
        assert contents(url) == expected and url.shards[0] == f"file://{folder}/s-08.tar"


def test_a_changed_shard_is_indexed_anew(tmp_path):
    path = shard(f"{tmp_path}/s.tar", {"0.png": png(0)})
    assert len(open_source(path)) == 1
    shard(path, {"0.png": png(5), "1.png": png(6)})
    assert [shade for _, _, shade in contents(open_source(path))] == [5, 6]


def test_bad_shards(tmp_path):
    whole = shard(f"{tmp_path}/s.tar", {"0.png": png(0) * 99})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:2000])
    (tmp_path / "text.tar").write_text("hello")
    shard(f"{tmp_path}/none.tar", {"a.txt": b"x"})
    assert whole
    for name in ("cut", "text", "none"):
        with pytest.raises(InputError, match=f"{name}.tar"):
            open_source(f"{tmp_path}/{name}.tar")
    assert not list((tmp_path / "cache" / "ssld").glob(".*"))


def test_brace_ranges():
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{0..1}/{2..3}.tar") == ["0/2.tar", "0/3.tar", "1/2.tar", "1/3.tar"]
