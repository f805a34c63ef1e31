"""Tars inside a tar: every image at its offset in the outer file, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import fsspec
import pyarrow.parquet as pq
import pytest

from ssld.common.errors import InputError
from ssld.data import tar as shards
from ssld.data.sources import open_source

LONG = "a" * 60 + "/" + "b" * 120


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tar(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def read(path: str) -> dict[str, bytes]:
    source = pickle.loads(pickle.dumps(open_source(path)))
    found = {source.sample_id(i): source.read(i) for i in range(len(source))}
    assert len(found) == len(source)
    assert [source.size(i) for i in range(len(source))] == [len(data) for data in found.values()]
    return found


def save(folder, data: bytes, name: str = "o.tar") -> str:
    path = f"{folder}/{name}"
    with fsspec.open(path, "wb") as file:
        file.write(data)
    return path


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("where", ["local", "remote"])
def test_images_are_read_out_of_inner_tars(tmp_path, where, format):
    folder = str(tmp_path) if where == "local" else f"memory://tars{format}"
    inner = {
        "n1.tar": tar({"n1_1.JPEG": b"1", "n1_2.JPEG": b"2" * 511, f"{LONG}.png": b"3"}, format),
        "n2.tar": tar({"./n2_1.JPEG": b"4" * 513, "readme.txt": b"no image"}, format),
        "sub/n3.TAR": tar({"x.png": b"5" * 10240}, format),
        "text.tar": tar({"a.txt": b"no image at all"}, format),
        "none.tar": tar({}, format),
        "._n1.tar": b"what macOS packs beside n1.tar",
    }
    path = save(folder, tar(inner, format))
    assert read(path) == {
        "o/n1/n1_1": b"1",
        "o/n1/n1_2": b"2" * 511,
        f"o/n1/{LONG}": b"3",
        "o/n2/n2_1": b"4" * 513,
        "o/sub/n3/x": b"5" * 10240,
    }
    source = open_source(path)
    assert source.class_names is None and source.label(0) is None
    assert source.location(0) == f"{path}:n1/n1_1"


def test_labels_and_images_on_both_levels(tmp_path):
    n1 = tar({"a.png": b"a", "a.cls": b"3\n", "b.json": json.dumps({"label": 4}).encode()})
    n2 = tar({"b.jpg": b"b", "a.png": b"A", "a.seg.png": b"mask"})
    path = save(tmp_path, tar({"a.png": b"own", "n1.tar": n1, "a.cls": b"5", "n2.tar": n2}))
    source = open_source(path)
    found = {source.sample_id(i): (source.label(i), source.read(i)) for i in range(len(source))}
    assert found == {
        "o/n1/a": (3, b"a"),
        "o/n2/b": (None, b"b"),
        "o/n2/a": (None, b"A"),
        "o/n2/a [.seg.png]": (None, b"mask"),
        "o/a": (5, b"own"),
    }


def test_packed_and_plain_tars_give_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP", 7)  # several groups, none of whole tars
    folders = {f"n{c}": {f"n{c}_{k}": b"%d.%d" % (c, k) for k in range(c)} for c in range(9)}
    packed = {f"{f}.tar": tar({f"{k}.png": v for k, v in x.items()}) for f, x in folders.items()}
    plain = {f"{f}/{k}.png": v for f, x in folders.items() for k, v in x.items()}
    (tmp_path / "plain").mkdir()
    expected = read(save(tmp_path / "plain", tar(plain)))
    assert read(save(tmp_path, tar(packed))) == expected and len(expected) == 36


def test_inner_tars_that_are_not_whole(tmp_path):
    whole = tar({"a.png": b"a" * 700, "b.png": b"b" * 5000, "c.png": b"c" * 600})
    cases = {
        "within b": (whole[:4000], "ends within b.png"),
        "within a header": (whole[:1600], "not a whole tar file"),
        "nothing": (b"", "not a whole tar file"),
        "less than a block": (b"hello", "not a whole tar file"),
        "no tar": (b"hello" * 999, "not a whole tar file"),
        "a broken header": (whole[:1536] + b"\1" * 512 + whole[2048:], "bad header at byte 1536"),
    }
    for data, said in cases.values():
        path = save(tmp_path, tar({"n0.tar": whole, "n1.tar": data, "n2.tar": whole}))
        with pytest.raises(InputError, match=said) as error:
            open_source(path)
        assert str(error.value).startswith(f"{path}: n1.tar: ") and "\n" not in str(error.value)
    assert not list((tmp_path / "cache" / "ssld").iterdir())


def test_an_outer_tar_that_ends_early(tmp_path):
    data = tar({"n0.tar": tar({"a.png": b"a"}), "n1.tar": tar({"b.png": b"b"})})
    with pytest.raises(InputError, match="o.tar: ends within n1.tar; fetch it again"):
        open_source(save(tmp_path, data[:15000]))


def test_whole_images_are_enough_without_an_end_mark(tmp_path):
    inner = tar({"a.png": b"a" * 512, "b.png": b"b" * 100})
    cut = inner[: 3 * 512 + 100]  # neither padding nor the two empty blocks
    assert list(read(save(tmp_path, tar({"n1.tar": cut, "n2.tar": inner})))) == [
        "o/n1/a", "o/n1/b", "o/n2/a", "o/n2/b",
    ]  # fmt: skip


def test_what_is_refused(tmp_path):
    inner = tar({"a.png": b"a"})
    cases = [
        ({"n1.tar": tar({"n2.tar": inner})}, "n1.tar: holds the tar n2.tar, and only two levels"),
        ({"n1.tar": inner, "./n1.TAR": inner}, "holds ./n1.TAR twice"),
        ({"n1.tar": tar({"a.txt": b""})}, "no image in this shard .*: pack it anew"),
        ({"n1.tar": tar({"a.json": b"{"})}, "n1.tar: a.json is not JSON"),
        ({"n1.tar": tar({"a.cls": b"\xff"})}, "n1.tar: a.cls is not text"),
    ]
    for members, said in cases:
        with pytest.raises(InputError, match=said):
            open_source(save(tmp_path, tar(members)))


def test_an_index_of_before_is_not_used(tmp_path):
    path = save(tmp_path, tar({"a.png": b"a", "n1.tar": tar({"b.png": b"b"})}))
    assert list(read(path)) == ["o/n1/b", "o/a"]
    (index,) = (tmp_path / "cache" / "ssld").iterdir()
    old = index.with_name(f"{index.name.partition('.')[0]}.shard.parquet")
    pq.write_table(pq.read_table(index).slice(1), old)  # inner tars were passed over
    index.unlink()
    assert list(read(path)) == ["o/n1/b", "o/a"]


def test_indexing_a_large_tar_shows_its_rate(tmp_path, monkeypatch, capsys):
    data = tar({"n1.tar": tar({"a.png": b"a"}), "n2.tar": tar({"a.png": b"a"})})
    open_source(save(tmp_path, data, "small.tar"))
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == f"{tmp_path}/small.tar: 2 images, no labels\n"
    monkeypatch.setattr(shards, "PROGRESS_BYTES", 1000)
    open_source(save(tmp_path, data, "large.tar"))
    shown = capsys.readouterr()
    assert shown.out == "" and "indexing large.tar: 100%" in shown.err and "B/s" in shown.err
