"""A long list is parsed once a machine, and is what it would be without a cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from given import labels, put

from ssld.common.errors import InputError
from ssld.data import text_list
from ssld.data.sources import open_source
from ssld.engine.start import fingerprint

NAMES = [
    "a/1.png",
    "ü/日本.png",
    "b/x, y.png",
    "gs://bucket/z.png",
    "a/n\nl.png",
    f"l/{'x' * 200}.png",
]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ssld"


def written(folder: Path, names: list[str], label: str = "dog") -> str:
    put(folder / "a/1.png")
    rows = [f'"{name}",{label if i % 2 else ""},7' for i, name in enumerate(names)]
    put(folder / "list.csv", "\n".join(["path,label,size", *rows, ""]).encode())
    return str(folder / "list.csv")


def seen(path: str) -> list:
    source = open_source(path)
    rows = [
        (source.sample_id(i), source.address(i), source.location(i)) for i in range(len(source))
    ]
    account = source.account
    return [rows, labels(source), source.class_names, account.notes, fingerprint([source])]


def test_the_cached_list_is_the_parsed_one(tmp_path, cache, monkeypatch):
    path = written(tmp_path, [*NAMES, str(tmp_path / "c/3.png"), "/elsewhere/4.png"])
    parsed = seen(path)
    assert not cache.exists()  # a short list needs none
    monkeypatch.setattr(text_list, "LONG_BYTES", 0)
    assert seen(path) == parsed
    assert [x.suffix for x in cache.iterdir()] == [".arrow"]
    monkeypatch.setattr(text_list, "_parsed", None)  # it is not parsed again
    assert seen(path) == parsed
    monkeypatch.setattr(text_list, "SMALL_BYTES", 0)  # as of names of more than 2 GB
    monkeypatch.setattr(text_list, "SMALL_ROWS", 3)
    assert seen(path) == parsed


def test_another_folder_has_its_own_places(tmp_path, cache, monkeypatch):
    path = written(tmp_path, ["1", "2"])
    for name in ("one", "two"):
        for number in (1, 2):
            put(tmp_path / name / f"{number}.{'png' if name == 'one' else 'jpg'}", number)
    parsed = [seen(f"{path}::{tmp_path / name}") for name in ("one", "two")]
    monkeypatch.setattr(text_list, "LONG_BYTES", 0)
    assert [seen(f"{path}::{tmp_path / name}") for name in ("one", "two")] == parsed
    shutil.rmtree(tmp_path / "one")  # what the cache does not know
    with pytest.raises(InputError, match="none of its images is there"):
        open_source(f"{path}::{tmp_path / 'one'}")


def test_a_changed_list_is_read_anew_though_size_and_time_are_the_same(
    tmp_path, cache, monkeypatch
):
    monkeypatch.setattr(text_list, "LONG_BYTES", 0)
    path = written(tmp_path, NAMES, "dog")
    before, times = open_source(path), os.stat(path)
    written(tmp_path, NAMES, "cat")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(path).st_size == times.st_size
    assert (before.class_names, open_source(path).class_names) == (["dog"], ["cat"])


def test_a_faulty_list_says_the_same_each_time(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(text_list, "LONG_BYTES", 0)
    path = written(tmp_path, ["a/1.png", "b.png", "./b.png"])
    for _ in range(2):
        with pytest.raises(InputError, match="'b.png' is there twice, as image 2 and 3"):
            open_source(path)
    assert not list(cache.iterdir())


def test_a_damaged_cache_is_named(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(text_list, "LONG_BYTES", 0)
    path = written(tmp_path, NAMES)
    open_source(path)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{file.name} is damaged .*; delete it"):
        open_source(path)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    path = written(tmp_path, NAMES)
    parsed = seen(path)
    put(tmp_path / "file", b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(text_list, "LONG_BYTES", 0)
    assert seen(path) == parsed


def test_a_list_that_changes_while_it_is_read_is_not_kept(tmp_path, cache, monkeypatch):
    path = written(tmp_path, NAMES)
    parsed = text_list._parsed

    def slowly(file: str):
        table = parsed(file)
        written(tmp_path, NAMES[:1])
        return table

    monkeypatch.setattr(text_list, "LONG_BYTES", 0)
    monkeypatch.setattr(text_list, "_parsed", slowly)
    with pytest.raises(InputError, match="changed while it was read"):
        open_source(path)
    assert not list(cache.iterdir())
