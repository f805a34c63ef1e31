"""Lists of images as text, as pandas, Excel, Kaggle, Caffe and others write them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from given import labels, picture, put

from ssld.common.errors import InputError
from ssld.data.labels import has_labels
from ssld.data.sources import describe, open_source, read_address
from ssld.engine.start import fingerprint


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    """0.png to 2.png in img/, and one with a comma and a space in its name."""
    for i in range(3):
        put(tmp_path / f"set/img/{i}.png", i)
    put(tmp_path / "set/img/a, b.png", 7)
    return tmp_path / "set"


NAMES = {"img/0.png": "cat", "img/1.png": "dog", "img/2.png": None}
NUMBERS = {"img/0.png": 1, "img/1.png": 10, "img/2.png": None}
NONE = dict.fromkeys(NAMES)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "path,label\nimg/0.png,cat\nimg/1.png,dog\nimg/2.png,\n", NAMES),
        ("pandas.csv", ",path,label\n0,img/0.png,cat\n1,img/1.png,dog\n2,img/2.png,\n", NAMES),
        ("twice.csv", "Unnamed: 0,filename,class\n0,img/0.png,cat\n1,img/1.png,dog\n2,img/2.png,\n",
         NAMES),
        ("gaps.csv", "path,label\nimg/0.png,1.0\nimg/1.png,10.0\nimg/2.png,\n", NUMBERS),
        ("bare.csv", "img/0.png,1\nimg/1.png,10\nimg/2.png,-1\n", NUMBERS),
        ("index.csv", "0,img/0.png,1\n1,img/1.png,10\n2,img/2.png,-1\n", NUMBERS),
        ("only.csv", "0,img/0.png\n1,img/1.png\n2,img/2.png\n", NONE),
        ("swapped.csv", "label,image\ncat,img/0.png\ndog,img/1.png\n,img/2.png\n", NAMES),
        ("excel.csv", "\ufeffX;Label\r\nimg/0.png;cat\r\nimg/1.png;dog\r\nimg/2.png;\r\n", NAMES),
        ("sep.csv", "sep=;\nfile_path;label\nimg/0.png;cat\nimg/1.png;dog\nimg/2.png;\n", NAMES),
        ("t.tsv", "Image\tCategory\nimg/0.png\tcat\nimg/1.png\tdog\nimg/2.png\t\n", NAMES),
        ("windows.csv", "img_path,label\nimg\\0.png,cat\n.\\img\\1.png,dog\n./img/2.png,\n", NAMES),
        ("caffe.txt", "img/0.png 1\nimg/1.png 10\n", {"img/0.png": 1, "img/1.png": 10}),
        ("spaces.txt", "img/a, b.png 1\nimg/1.png 10\n", {"img/a, b.png": 1, "img/1.png": 10}),
        ("plain.txt", "img/0.png\nimg/1.png\n\nimg/2.png\n", NONE),
        ("commas.txt", "img/0.png\nimg/a, b.png\n", {"img/0.png": None, "img/a, b.png": None}),
        ("quoted.csv", 'path,label\n"img/a, b.png","cat, tabby"\nimg/1.png,dog\n',
         {"img/a, b.png": "cat, tabby", "img/1.png": "dog"}),
        ("mixed.csv", "path,label\nimg/0.png,0\nimg/1.png,A\n",
         {"img/0.png": "0", "img/1.png": "A"}),
        ("kaggle.csv", "id,breed,target\nimg/0,pug,1\nimg/1,pug,10\nimg/2,x,\n", NUMBERS),
        ("none.csv", "path\nimg/0.png\nimg/1.png\nimg/2.png\n", NONE),
    ],
)  # fmt: skip
def test_what_a_list_says(root, name, text, expected):
    (root / name).write_bytes(text.encode())
    source = pickle.loads(pickle.dumps(open_source(str(root / name))))
    assert labels(source) == expected
    for i in range(len(source)):
        assert source.read(i) == read_address(source.address(i))
    assert source.read(1)[:8] == picture(1)[:8]
    assert fingerprint([source]) and has_labels([source]) == any(
        value is not None for value in expected.values()
    )


def test_excels_unicode_text_and_tabs(root):
    (root / "u.txt").write_bytes("path\tlabel\nimg/0.png\tgröße\n".encode("utf-16"))
    assert labels(open_source(str(root / "u.txt"))) == {"img/0.png": "größe"}


def test_where_images_lie(root, tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("image_id,label\n0.png,3\n1.png,4\n")  # Kaggle
    source = open_source(f"{tmp_path}/train.csv::{root}/img")
    assert labels(source) == {"0.png": 3, "1.png": 4} and source.read(1) == picture(1)
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=r"train.csv::FOLDER"):
        open_source(f"{tmp_path}/train.csv")
    monkeypatch.chdir(root / "img")
    with pytest.raises(InputError, match=r"0.png \(but below the working directory\): say where"):
        open_source("../../train.csv")
    monkeypatch.chdir(tmp_path)
    assert open_source("train.csv::set/img").read(0) == picture(0)
    absolute = f"path,label\n{root}/img/0.png,1\n{root}/img/1.png,2\n"
    (root / "abs.csv").write_text(absolute)
    (tmp_path / "abs.csv").write_text(absolute)
    assert labels(open_source(str(root / "abs.csv"))) == {"img/0.png": 1, "img/1.png": 2}
    assert open_source("abs.csv").read(1) == picture(1)


def test_a_missing_image_is_one_unreadable_image(root):
    (root / "a.csv").write_text("path,label\nimg/0.png,1\nimg/gone.png,2\n")
    source = open_source(str(root / "a.csv"))
    with pytest.raises(OSError):
        source.read(1)


def test_columns_that_are_not_read_are_named(root):
    (root / "a.csv").write_text("path,breed,width\nimg/0.png,pug,5\nimg/1.png,pug,5\n")
    said = describe(open_source(str(root / "a.csv")))
    assert "no labels; 2 column(s) that are no `label` by their name (breed)" in said


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", b"", "no row names an image"),
        ("a.csv", b"path,label\n", "no row names an image"),
        ("a.csv", b"path,label\nimg/0.png,1\nimg/0.png,2\n",
         "'img/0.png' is there twice, as image 1 and 2"),
        ("a.csv", b"path,label\nimg/0.png,1\n,2\n", "image number 2 has no path"),
        ("a.csv", b"path,label\nimg/a, b.png,1\n", "row 2 has 3 cells and the first has 2"),
        ("a.csv", b"img/0.png,1;2\nimg/1.png,3;4\n", "could be cut at ',' and ';'"),
        ("a.csv", b"img/0.png,1,5\nimg/1.png,3,6\n", "no header and 2 columns beside the paths"),
        ("a.csv", b"img/0.png,img/1.png\n", "two columns hold names of images"),
        ("a.csv", b"label,size\ncat,3\n", "none of its columns (label, size) is called path"),
        ("a.csv", b"filename,class,xmin,ymin\nimg/0.png,a,1,2\n", "a list of boxes"),
        ("a.csv", "path,label\nimg/0.png,größe\n".encode("cp1252"), "not a list in UTF-8"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", "not a list in UTF-8"),
        ("a.txt", b"some notes\nabout nothing\n", "no header, and no column holds"),
        ("a.csv", b'path,label\n"img/0.png,1\n', "no row names an image|cells|twice|none of"),
    ],
)  # fmt: skip
def test_what_is_no_list_says_so(root, name, text, said):
    import re

    (root / name).write_bytes(text)
    with pytest.raises(InputError, match=said if "|" in said else re.escape(said)) as error:
        open_source(str(root / name))
    assert str(error.value).startswith(str(root / name)) and "\n" not in str(error.value)


def test_one_image_and_a_pattern_of_images(root):
    (root / "img/more").mkdir()
    shutil.copy(root / "img/0.png", root / "img/more/[1].PNG")
    found = {"img/*.png": 4, "img/more/[1].PNG": 1, "img/0.png": 1, "**/*.[pP]*": 5}
    for pattern, count in found.items():
        source = open_source(f"{root}/{pattern}")
        assert len(source) == count
        assert source.read(0) == Path(source.location(0)).read_bytes()
    (root / "img/notes.txt").write_text("x")
    for pattern in ("img/*", "*"):
        with pytest.raises(InputError, match="not all of one kind; give their folder"):
            open_source(f"{root}/{pattern}")
    with pytest.raises(InputError, match="nothing fits this pattern"):
        open_source(f"{root}/img/*.jpg")


def test_the_image_of_a_pattern_here(root, monkeypatch):
    monkeypatch.chdir(root / "img")
    assert [open_source(x).sample_id(0) for x in ("0.png", "./0.png", "0*")] == ["0.png"] * 3
