"""Tars as people pack them: dots, links, twins, long names, holes, and names of several tars."""

from __future__ import annotations

import json
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from given import labels, picture, tar

from ssld.common.errors import InputError
from ssld.data import patterns
from ssld.data.patterns import expand
from ssld.data.sources import open_source

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_labels_of_keys_with_dots_find_their_image(tmp_path, capsys):
    members = [(f"cam{i}.v2.jpg", picture(i)) for i in range(3)]
    members += [(f"cam{i}.v2.cls", str(i).encode()) for i in range(3)]
    assert labels(open_source(tar(tmp_path / "d.tar", members))) == {
        "d/cam0": 0, "d/cam1": 1, "d/cam2": 2,
    }  # fmt: skip
    assert "3 images, labels are numbers; 3 labels by names up to the last dot (cam0.v2)" in (
        capsys.readouterr().err
    )


def test_many_images_of_one_key_each_have_their_own_label(tmp_path):
    days = [f"shop_2024.01.{day:02d}" for day in range(1, 4)]
    members = [(f"{day}.png", picture(1)) for day in days]
    members += [(f"{day}.cls", day[-2:].encode()) for day in reversed(days)]
    members += [("other.png", picture(2)), ("other.cls", b"7")]
    assert labels(open_source(tar(tmp_path / "d.tar", members))) == {
        "d/shop_2024": 1,
        "d/shop_2024 [.01.02.png]": 2,
        "d/shop_2024 [.01.03.png]": 3,
        "d/other": 7,
    }


def test_fields_of_a_webdataset_sample_share_its_label(tmp_path):
    members = [
        ("a.left.png", picture(1)), ("a.right.png", picture(2)), ("a.cls", b"4"),
        ("b.img.png", picture(3)), ("b.target.cls", b"5"),
        ("c.png", picture(4)), ("c.meta.json", json.dumps({"label": 6}).encode()),
        ("e.png", picture(4)), ("e.json", json.dumps({"label": 8.0}).encode()),
    ]  # fmt: skip
    assert labels(open_source(tar(tmp_path / "w.tar", members))) == {
        "w/a": 4, "w/a [.right.png]": 4, "w/b": 5, "w/c": 6, "w/e": 8,
    }  # fmt: skip


def test_nothing_is_dropped_without_a_count(tmp_path, capsys):
    members = [
        ("a.png", picture(1)), ("lost.cls", b"3"), ("a.txt", b"words"), ("a.npy", b"x"),
        ("._a.png", picture(9)), ("__MACOSX/a.png", picture(9)), (".hidden/b.png", picture(9)),
        ("a.json", b'{"caption": "x"}'), ("a.png", picture(5)), ("A.png", picture(6)),
    ]  # fmt: skip
    source = open_source(tar(tmp_path / "x.tar", members))
    assert labels(source) == {"x/a": None, "x/A": None}
    assert source.read(0) == picture(5), "the later member of the same name, as tar unpacks"
    line = capsys.readouterr().err
    for part in (
        "2 images, no labels; left out: 3 hidden (._a.png)",
        "1 label without an image (lost)",
        "1 replaced by a later file of the same name (a)",
        "1 .json without a label (a.json)",
        "1 .txt (a.txt)",
        "1 .npy (a.npy)",
    ):
        assert part in line, line


def test_names_that_differ_in_capitals_are_all_kept(tmp_path):
    members = [("a.png", picture(1)), ("a.PNG", picture(2)), ("a.Png", picture(3))]
    source = open_source(tar(tmp_path / "c.tar", members))
    assert [source.read(i) for i in range(3)] == [picture(i) for i in (1, 2, 3)]
    assert len(set(labels(source))) == 3


@pytest.mark.parametrize("format", FORMATS)
def test_links_are_resolved_or_counted(tmp_path, capsys, format):
    members = [
        ("early.png", ">d/first.png"),  # before what it points to
        ("d/first.png", picture(1)),
        ("d/hard.png", "=d/first.png"),
        ("d/soft.png", ">first.png"),
        ("soft2.png", ">./d/soft.png"),
        ("d/first.cls", b"3"),
        ("d/hard.cls", "=d/first.cls"),
        ("round1.png", ">round2.png"),
        ("round2.png", ">round1.png"),
        ("out.png", ">../../etc/passwd"),
        ("gone.png", "=nowhere.png"),
        ("folder", ">d"),
        ("._soft.png", ">d/first.png"),
    ]
    source = open_source(tar(tmp_path / "l.tar", members, format=format))
    assert labels(source) == {
        "l/d/first": 3, "l/early": None, "l/d/hard": 3, "l/d/soft": None, "l/soft2": None,
    }  # fmt: skip
    assert all(source.read(i) == picture(1) for i in range(5))
    line = capsys.readouterr().err
    assert "5 links resolved" in line
    assert "4 link that leads to no file of this tar (round1.png -> round2.png)" in line
    assert "1 link to what is no image or label (folder)" in line and "1 hidden" in line


def test_links_of_a_tar_in_a_tar(tmp_path):
    inner = tar(tmp_path / "n.tar", [("a.png", picture(7)), ("b.png", "=a.png")])
    with open(inner, "rb") as file:
        path = tar(tmp_path / "o.tar", [("x.png", picture(1)), ("n.tar", file.read())])
    source = open_source(path)
    assert [source.read(i) for i in range(3)] == [picture(7), picture(7), picture(1)]
    assert list(labels(source)) == ["o/n/a", "o/n/b", "o/x"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_that_are_not_utf8(tmp_path, format):
    long = "x" * 150 + "/" + "日本" * 40
    members = [(f"{long}.png", picture(3)), (f"{long}.cls", b"2"), ("./deep/a.png", picture(4))]
    members += [(os.fsdecode(b"caf\xe9.png"), picture(5)), (os.fsdecode(b"caf\xe9.cls"), b"1")]
    source = open_source(tar(tmp_path / "l.tar", members, format=format))
    assert labels(source) == {f"l/{long}": 2, "l/./deep/a": None, "l/caf\\xe9": 1}
    assert [source.read(i) for i in range(3)] == [picture(i) for i in (3, 4, 5)]


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_members_are_named(tmp_path, capsys, format):
    with open(tmp_path / "hole.png", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(picture(1))
    (tmp_path / "whole.png").write_bytes(picture(2))
    path = tmp_path / "s.tar"
    words = [
        "tar",
        "-C",
        tmp_path,
        "-S",
        f"--format={format}",
        "-cf",
        path,
        "hole.png",
        "whole.png",
    ]
    subprocess.run(words, check=True)
    source = open_source(str(path))
    assert len(source) == 1 and source.read(0) == picture(2)
    assert "1 sparse file, unpack the tar (hole.png)" in capsys.readouterr().err


def test_labels_that_are_none(tmp_path):
    for value in ([1, 0], {"a": 1}, True, 0.5, "\ud800"):
        content = json.dumps({"label": value}).encode()
        with pytest.raises(InputError, match=r"x.tar: a.json: label is .*; give a class number"):
            open_source(tar(tmp_path / "x.tar", [("a.png", picture(1)), ("a.json", content)]))
    members = [("a.png", picture(1)), ("b.png", picture(2)), ("c.png", picture(3))]
    members += [("a.cls", b"\xef\xbb\xbf3\n"), ("b.cls", b"-1"), ("c.cls", b"")]
    source = open_source(tar(tmp_path / "y.tar", members))
    assert labels(source) == {"y/a": 3, "y/b": None, "y/c": None}
    assert source.labeled().tolist() == [True, False, False]


def test_images_beside_shards_are_counted(tmp_path, capsys):
    folder = tmp_path / "s"
    folder.mkdir()
    tar(folder / "1.tar", [("a.png", picture(1))])
    (folder / "._1.tar").write_bytes(b"twin")
    (folder / "b.png").write_bytes(picture(2))
    (folder / "more").mkdir()
    assert len(open_source(str(folder))) == 1
    line = capsys.readouterr().err
    assert "1 folder beside shards (more)" in line and "1 .png (b.png)" in line


def test_a_folder_may_be_called_tar(tmp_path):
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar/1.png").write_bytes(picture(1))
    assert list(labels(open_source(str(tmp_path / "x.tar")))) == ["1.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("x-{5..3}.tar", ["x-5.tar", "x-4.tar", "x-3.tar"]),
        ("x-{03..1}.tar", ["x-03.tar", "x-02.tar", "x-01.tar"]),
        ("x-{8..010..2}.tar", ["x-008.tar", "x-010.tar"]),
        ("x-{0..5..2}.tar", ["x-0.tar", "x-2.tar", "x-4.tar"]),
        ("{train,extra}-{0..1}.tar", ["train-0.tar", "train-1.tar", "extra-0.tar", "extra-1.tar"]),
        ("x{,-old}.tar", ["x.tar", "x-old.tar"]),
        ("{a,b-{0..1}}.tar", ["a.tar", "b-0.tar", "a.tar", "b-1.tar"]),
        ("x-{}.tar", ["x-{}.tar"]),
        ("x-{0..}.tar", ["x-{0..}.tar"]),
        ("x-{0..1.tar", ["x-{0..1.tar"]),
        ("x-}{.tar", ["x-}{.tar"]),
        ("x-{²..3}.tar", ["x-{²..3}.tar"]),
        ("x-{-1..1}.tar", ["x--1.tar", "x-0.tar", "x-1.tar"]),
    ],
)
def test_braces(pattern, expected):
    assert expand(pattern) == expected


def test_patterns_that_name_nothing_or_too_much(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(patterns, "MAX_FILES", 1000)
    cases = {
        "x-{5..3}.tar": "x-5.tar: no such file",
        "x-{0..999999999}.tar": "names more than 1,000 files",
        "x-{0..99999}{0..99999}.tar": "names more than 1,000 files",
        "*.tar": "no such shards",
        "x-[0-9].tar": "no such shards",
        "{a,b}*.tar": "no such shards",
    }
    for pattern, said in cases.items():
        with pytest.raises(InputError) as error:
            open_source(pattern)
        assert said in str(error.value) and "\n" not in str(error.value)
    tar(tmp_path / "x-{5..3}.tar", [("a.png", picture(1))])  # a file may be called so
    assert len(open_source("x-{5..3}.tar")) == 1


def test_mutated_tars_are_one_sentence(tmp_path):
    members = [("a.png", picture(1)), ("a.cls", b"1"), ("l.png", "=a.png")]
    members.append(("ü" * 90 + ".png", picture(2)))
    whole = Path(tar(tmp_path / "w.tar", members)).read_bytes()
    draw = random.Random(0)
    opened = 0
    for i in range(150):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data) // 2)] = draw.randrange(256)
        (tmp_path / f"{i}.tar").write_bytes(bytes(data))
        try:
            open_source(str(tmp_path / f"{i}.tar"))
            opened += 1
        except InputError as error:
            assert "\n" not in str(error)
    assert 0 < opened < 150
