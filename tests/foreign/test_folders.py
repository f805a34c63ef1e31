"""Folders as people have them: links, twins, splits, endings and names that are none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from given import labels, picture, put, table, tar

from ssld.common.errors import InputError
from ssld.data import folder as folder_source
from ssld.data.sources import open_source


def said(capsys, path: Path) -> str:
    """The one line about a source."""
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith(f"{path}: ")]
    assert len(lines) == 1
    return lines[0].removeprefix(f"{path}: ")


def test_an_innocent_folder_is_a_short_line_said_once(tmp_path, capsys, monkeypatch):
    for name in ("a/1.png", "b/2.png", "b/3.PNG"):
        put(tmp_path / name)
    open_source(str(tmp_path))
    open_source(str(tmp_path))
    assert said(capsys, tmp_path) == "3 images, 2 classes"
    monkeypatch.setenv("RANK", "1")  # another process of the run
    put(tmp_path / "b/4.png")
    open_source(str(tmp_path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("target", [".", "..", "../..", "{root}", "../b/deeper"])
def test_a_link_into_a_circle_is_followed_never(tmp_path, capsys, target):
    root = tmp_path / "root"
    for name in ("a/1.png", "b/deeper/2.png"):
        put(root / name)
    put(tmp_path / "outside.png")
    os.symlink(target.format(root=root), root / "a/self")
    assert labels(open_source(str(root))) == {"a/1.png": "a", "b/deeper/2.png": "b"}
    assert "1 linked folder that was read already or holds this one (a/self)" in said(capsys, root)


def test_links_that_lead_outside_are_followed_once(tmp_path, capsys):
    put(tmp_path / "store/x/1.png")
    put(tmp_path / "store/loop/2.png")
    os.symlink("..", tmp_path / "store/loop/up")
    root = tmp_path / "root"
    put(root / "own/3.png")
    for name, target in (("cats", "x"), ("zoo", "x"), ("loops", "loop")):
        os.symlink(tmp_path / "store" / target, root / name)
    os.symlink(tmp_path / "store/x/1.png", root / "own/link.png")
    os.symlink("nowhere.png", root / "own/broken.png")
    found = open_source(str(root))
    assert labels(found) == {
        "cats/1.png": "cats",
        "loops/2.png": "loops",
        "own/3.png": "own",
        "own/broken.png": "own",  # reading it says so
        "own/link.png": "own",
    }
    line = said(capsys, root)
    assert "2 of the images are links" in line and "3 linked folder(s) followed (cats)" in line
    assert "3 linked folder that was read already or holds this one (zoo)" in line
    assert found.size(3) == -1


def test_what_systems_put_beside_pictures_is_no_image(tmp_path, capsys):
    put(tmp_path / "a/1.png")
    twins = (
        "a/._1.png",
        "__MACOSX/a/1.png",
        "a/@eaDir/1.png/thumb.jpg",
        ".ipynb_checkpoints/1.png",
    )
    for name in (*twins, "a/.DS_Store", "$RECYCLE.BIN/1.png"):
        put(tmp_path / name)
    put(tmp_path / "a/Thumbs.db", b"x")
    assert labels(open_source(str(tmp_path))) == {"a/1.png": "a"}
    line = said(capsys, tmp_path)
    assert (
        line.startswith("1 image, 1 class; left out: 6 hidden (") and "1 .db (a/Thumbs.db)" in line
    )


def test_endings_are_read_or_counted_and_named(tmp_path, capsys):
    for name, kind in (("a.JPE", "JPEG"), ("b.avif", "AVIF"), ("c.jp2", "JPEG2000")):
        put(tmp_path / name, picture(9, kind))
    put(tmp_path / "d.jpg_large", picture(9, "JPEG"))
    put(tmp_path / "e", picture(9, "JPEG"))
    put(tmp_path / "f.txt", b"words")
    assert len(open_source(str(tmp_path))) == 3
    line = said(capsys, tmp_path)
    assert "1 .jpg_large (d.jpg_large, an image by its content: rename such files)" in line
    assert "1 without an ending (e, an image by its content" in line and "1 .txt (f.txt)" in line


def test_many_endings_stay_one_line(tmp_path, capsys):
    put(tmp_path / "a.png")
    for i in range(30):
        put(tmp_path / f"x.e{i}", b"")
    open_source(str(tmp_path))
    line = said(capsys, tmp_path)
    assert line.endswith("22 of 22 other kinds") and len(line) < 300


def test_a_name_that_is_not_utf8_is_left_out_and_named(tmp_path, capsys):
    put(tmp_path / "a/1.png")
    for name in (b"caf\xe9.png", b"d\xff/1.png"):
        path = os.fsencode(tmp_path) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(tmp_path / "a/1.png", path)
    assert labels(open_source(str(tmp_path))) == {"a/1.png": "a"}
    assert "left out: 2 with a name that is not UTF-8 (" in said(capsys, tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    put(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert len(open_source(str(tmp_path))) == 1
    assert "1 no file but a pipe, socket or device (b.png)" in said(capsys, tmp_path)


@pytest.mark.parametrize("others", [(), ("val", "annotations"), ("Testing",), ("valid2017",)])
def test_splits_are_refused_and_one_can_be_named(tmp_path, others):
    for split in ("train", "test", *others):
        for name in ("ape", "bee"):
            put(tmp_path / split / name / "1.png")
    with pytest.raises(InputError, match="holds the splits .*test.*, train") as error:
        open_source(f"{tmp_path}/")
    assert f"give one of them, as {tmp_path}/::train" in str(error.value)
    expected = {"ape/1.png": "ape", "bee/1.png": "bee"}
    assert labels(open_source(f"{tmp_path}::train")) == expected
    assert labels(open_source(f"{tmp_path}::training")) == expected
    with pytest.raises(InputError, match="::extra: no split is named so .* which holds"):
        open_source(f"{tmp_path}::extra")


@pytest.mark.parametrize(
    "names", [("train", "bus", "car"), ("test",), ("train", "test", "bus", "car", "van"), ("vale",)]
)
def test_classes_that_are_called_train_are_no_splits(tmp_path, names):
    for name in names:
        put(tmp_path / name / "1.png")
    assert open_source(str(tmp_path)).class_names == sorted(names)


def test_splits_of_files_are_refused_too(tmp_path):
    for split in ("train", "validation"):
        rows = {"sample_id": [split], "bytes": [picture(1)]}
        table(tmp_path / f"tables/data/{split}-00000-of-00001.parquet", **rows)
        (tmp_path / "tars").mkdir(exist_ok=True)
        tar(tmp_path / f"tars/set-{split}-000.tar", [(f"{split}.png", picture(1))])
    for folder in ("tables", "tars"):
        with pytest.raises(InputError, match="files of the splits train, validation"):
            open_source(str(tmp_path / folder))
        for split in ("validation", "val"):
            (name,) = labels(open_source(f"{tmp_path / folder}::{split}"))
            assert "validation" in name
    with pytest.raises(InputError, match="files of the splits"):
        open_source(f"{tmp_path}/tars/*.tar")
    assert len(open_source(f"{tmp_path}/tars/*train*.tar")) == 1


def test_home_and_what_is_no_source(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "pictures/1.png")
    put(tmp_path / "x.tar.gz", b"x")
    put(tmp_path / "deep/er/x.tar", b"x")
    put(tmp_path / "x.zip", b"x")
    put(tmp_path / "x.7z", b"x")
    assert len(open_source("~/pictures")) == 1
    cases = {
        "~/nothing": "no such file or folder; check the path",
        "~/*": "a pattern is one of images, of .parquet, .arrow or .tar files",
        "~/nothing::train": "no such folder; FOLDER::SPLIT",
        "~/x.tar.gz": "uncompress it to a .tar",
        "~/x.zip": "not a whole zip archive",
        "~/x.7z": "unpack it",
        "~/deep": f"give their folder, such as {tmp_path}/deep/er",
        "~/none-*.parquet": "no such files",
    }
    for path, expected in cases.items():
        with pytest.raises(InputError) as error:
            open_source(path)
        assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("slow", [False, True])
def test_sizes_are_those_of_the_files(tmp_path, monkeypatch, slow):
    monkeypatch.setattr(folder_source, "_ASKED", 3)
    monkeypatch.setattr(folder_source, "_SLOW_SECONDS", 0 if slow else 1e9)
    for i in range(20):
        put(tmp_path / f"{i:02d}.png", b"x" * i)
    assert open_source(str(tmp_path)).sizes().tolist() == list(range(20))


def test_sizes_are_asked_for_when_they_are_wanted(tmp_path, monkeypatch):
    for i in range(5):
        put(tmp_path / f"{i}.png")
    asked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **k: asked.append(str(path)) or stat(path, **k))
    source = open_source(str(tmp_path))
    assert not [path for path in asked if path.endswith(".png")]
    assert source.size(0) == len(picture(0))
    assert len([path for path in asked if path.endswith(".png")]) == 5


def test_splits_of_a_remote_folder():
    import fsspec

    for split in ("train", "val"):
        with fsspec.open(f"memory://remote-splits/{split}/ape/1.png", "wb") as file:
            file.write(picture(1))
    with pytest.raises(InputError, match="holds the splits train, val"):
        open_source("memory://remote-splits")
    source = open_source("memory://remote-splits::val")
    assert labels(source) == {"ape/1.png": "ape"} and source.read(0) == picture(1)
