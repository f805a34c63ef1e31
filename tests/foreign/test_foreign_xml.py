"""VOC's xml as strangers' tools write it: encodings, layouts, words; and as attackers do."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from foreign_sets import picture, xml
from PIL import Image

from downstream.detection.data.boxes import open_boxes
from ssld.common.errors import InputError


def refused(path: object, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_boxes(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def save_xml(folder: Path, contents: list[bytes]) -> str:
    for i, content in enumerate(contents):
        picture(folder / f"im{i}.jpg")
        (folder / f"im{i}.xml").write_bytes(content)
    return str(folder)


def declared(encoding: str | None, name: str = "鱼", **more: str) -> str:
    head = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding else ""
    return head + xml(name, **more)


@pytest.mark.parametrize(
    "stated, real",
    [("gbk", "gbk"), ("GB2312", "gb2312"), ("gb18030", "gb18030"), ("utf-8", "utf-8"),
     ("utf-8", "utf-8-sig"), ("utf-8", "gbk"), ("gbk", "utf-8"), (None, "gbk"), (None, "utf-8"),
     ("utf-16", "utf-16"), ("utf-8", "utf-16-le"), ("nonsense", "utf-8"), ("big5", "big5"),
     ("punycode", "utf-8"), ("Shift_JIS", "utf-8")],
)  # fmt: skip
def test_xml_of_any_encoding(tmp_path, stated, real):
    name = "魚" if real == "big5" else "鱼"
    path = save_xml(
        tmp_path, [declared(stated, name).encode(real), declared("utf-8", name).encode()]
    )
    source = open_boxes(path)
    assert source.class_names == [name] and source.report.boxes == 2
    wrong = {(None, "gbk"), ("utf-8", "gbk")}
    assert any("look at the names" in x for x in source.report.remarks) is ((stated, real) in wrong)


@pytest.mark.parametrize("name", ["猫", "联通", "下", "Bäume", "é", "naïve café"])
def test_short_names_that_fit_two_encodings(tmp_path, name):
    latin = name.encode("gbk", "ignore").decode("gbk") != name
    encoding = "iso-8859-1" if latin else "gbk"
    assert open_boxes(
        save_xml(tmp_path / "a", [declared(encoding, name).encode(encoding)])
    ).class_names == [name]
    undeclared = declared(None, name).encode(encoding)
    if latin or name == "联通":
        assert open_boxes(save_xml(tmp_path / "b", [undeclared])).class_names == [name]


@pytest.mark.parametrize("word", ["True", "1", "yes", " TRUE "])
def test_difficult_in_words(tmp_path, word):
    path = save_xml(tmp_path, [declared("utf-8", difficult=word).encode(), declared(None).encode()])
    assert open_boxes(path).report.crowd == 1
    (tmp_path / "im1.xml").write_text(declared("utf-8", difficult="perhaps"))
    refused(path, "im1.xml: object 1: difficult is 'perhaps'; give true or false")


def test_xml_beside_the_pictures_by_split(tmp_path):
    save_xml(tmp_path / "train", [declared(None).encode()] * 2)
    save_xml(tmp_path / "valid", [declared(None).encode()])
    assert len(open_boxes(f"{tmp_path}::train")) == 2
    assert len(open_boxes(f"{tmp_path}::valid")) == 1
    assert len(open_boxes(str(tmp_path / "train"))) == 2


def test_an_xml_of_two_pictures_names_one(tmp_path):
    path = save_xml(tmp_path, [declared(None, image="C:\\x\\im0.png").encode()])
    picture(tmp_path / "im0.png")
    assert open_boxes(path).sample_id(0) == "im0.png"
    (tmp_path / "im0.xml").write_text(declared(None, image="other.jpg"))
    refused(path, "im0.xml: is of im0.jpg or of im0.png .* 'other.jpg' is none of them")


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in itertools.pairwise("abcdefghijkl")
)


@pytest.mark.parametrize(
    "text, match",
    [
        (BOMB + "]>" + xml("&l;"), "defines entities"),
        ('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + xml("&e;"), "defines entities"),
        ("<a>" * 100_000, "cannot be read as XML"),
        ("", "cannot be read as XML"),
        (xml().replace("<width>120", "<width>²"), None),
        (xml(box=("1e999", 1, 2, 3)), "xmin is inf"),
        (xml(box=(1, 1, 1e12, 3)), "xmax is 1000000000000.0"),
    ],
    ids=["laughs", "external", "deep", "empty", "superscript", "infinite", "far"],
)
def test_hostile_xml(tmp_path, text, match):
    path = save_xml(tmp_path, [declared(None).encode(), text.encode()])
    if match is None:
        assert len(open_boxes(path)) == 2
    else:
        refused(path, f"im1.xml: .*{match}")


def test_entities_in_utf_16_are_no_way_around(tmp_path):
    refused(save_xml(tmp_path, [(BOMB + "]>" + xml("&l;")).encode("utf-16")]), "defines entities")


def test_a_twin_that_is_no_picture_beside_voc(tmp_path):
    path = save_xml(tmp_path, [declared(None).encode()] * 2)
    (tmp_path / "._im0.xml").write_bytes(b"\0\5\26\7")
    Image.new("L", (4, 4)).save(tmp_path / "._im0.png")
    assert len(open_boxes(path)) == 2
