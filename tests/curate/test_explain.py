"""`ssld curate explain`: one image's fate in words, from tables written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from written import index, pair, scores, write

from ssld.common.errors import InputError
from ssld.curate.config import ExplainConfig
from ssld.curate.explain import explain
from ssld.curate.tables import REASONS

GALLERY = [
    "/g/kept.jpg",
    "/g/copied é.jpg",
    "/g/labeled.jpg",
    "/g/key.jpg",
    "/g/twin.jpg",
    "/g/inside.jpg",
    "/g/weak.jpg",
    "/g/late.jpg",
    "/g/seen late.jpg",
    "/g/broken.jpg",
    "/g/a/same.jpg",
    "/g/b/same.jpg",
    "s3://x/shard-0.tar:n01/img_7",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    index(out, "gallery", GALLERY, {"/g/broken.jpg": "not an image"})
    index(out, "protected", ["/p/v.jpg", "/p/lonely.jpg"])
    index(out, "labeled", ["/t/label.jpg", "/p/v.jpg"])
    scores(out, [(3, 0.6) if "broken" not in name else None for name in GALLERY])
    pairs = [
        pair("/g/copied é.jpg", "/p/v.jpg", 31, 0.91, mirrored=True, cosine=0.97),
        *(pair("/g/copied é.jpg", f"/p/{i}.jpg", i) for i in range(7)),
        pair("/g/kept.jpg", "/p/v.jpg", 20, 0.9, overridden=True, verdict="clear"),
        pair("/g/seen late.jpg", "/p/v.jpg", 0),
        pair("/g/labeled.jpg", "/p/v.jpg", 99, exact="bytes"),
    ]
    write(out, "pairs", pairs)
    fates = {
        "/g/copied é.jpg": {"reason": "protected", "protected": "/p/v.jpg"},
        "/g/labeled.jpg": {"reason": "labeled", "other": "/t/label.jpg"},
        "/g/key.jpg": {"reason": "excluded_key"},
        "/g/twin.jpg": {"reason": "copy", "other": "/g/kept.jpg"},
        "/g/inside.jpg": {"reason": "inside", "other": "/g/kept.jpg"},
        "/g/weak.jpg": {"reason": "min_score", "score": 0.25},
        "/g/late.jpg": {"reason": "beyond_k", "score": 0.5},
        "/g/seen late.jpg": {"reason": "beyond_k", "score": 0.55},
        "/g/broken.jpg": {"reason": "unreadable", "other": "not an image", "class": None},
    }
    rows = [{"path": path, "class": 3, "score": 0.6, **fate} for path, fate in fates.items()]
    assert {row["reason"] for row in rows} == set(REASONS)
    write(out, "dropped", rows)
    write(out, "selected", [{"location": "/g/kept.jpg", "class": 3, "rank": 1, "score": 0.625}])
    settings = {"select": {"k": 1, "min_score": 0.3}}
    names = ["cat", "dog", "owl", "bee"]
    (out / "manifest.json").write_text(json.dumps({"settings": settings, "label_names": names}))
    return out


@pytest.fixture
def said(out, capsys):
    """What is printed of an image."""

    def run(path: str, folder: Path = out) -> str:
        explain(ExplainConfig(path=path, out=str(folder)))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("kept.jpg", "kept: rank 1 of at most 1 in class 3 (bee), score 62.5%"),
        ("copied é.jpg", "dropped: near-duplicate of a protected image, /p/v.jpg"),
        ("/g/labeled.jpg", "dropped: same file or pixels as a labeled image, /t/label.jpg"),
        ("key.jpg", "dropped: its key is in select.exclude_keys"),
        ("twin.jpg", "dropped: same file or pixels as another gallery image, /g/kept.jpg"),
        ("inside.jpg", "better scored image of the selection, /g/kept.jpg"),
        ("weak.jpg", "below select.min_score, which is 0.3: score 25.0% in class 3 (bee)"),
        (
            "/g/late.jpg",
            "dropped: rank 3 of class 3 (bee), k is 1: not compared with the protected images, "
            "since it was not needed",
        ),
        ("seen late.jpg", "dropped: rank 2 of class 3 (bee), k is 1\n"),
        ("broken.jpg", "dropped: cannot be read (not an image)"),
    ],
)
def test_every_fate_has_its_words(said, name, fate):
    assert fate in said(name)


def test_nearest_protected_images_are_those_with_most_evidence(said):
    found = said("copied é.jpg")
    lines = found.split("compared with\n")[1].splitlines()
    assert lines[0].split() == ["protected", "cosine", "inliers", "mirrored", "NCC", "verdict"]
    assert lines[2].split() == ["/p/v.jpg", "0.97", "31", "yes", "0.91", "duplicate"]
    assert lines[3].split() == ["/p/6.jpg", "0.50", "6", "no", "-", "clear"]
    assert lines[7] == "and 3 more"


def test_size_classes_and_who_decided(said):
    found = said("kept.jpg")
    assert "gallery image, 160 x 120 px, RGB, 1,234 bytes, sha256 0000" in found
    assert "class 3 (bee)        60.0%" in found and "class 4" not in found
    assert "clear (your override)" in found
    assert "left out as copies or near-duplicates of it: 2" in found
    assert "duplicate (same bytes)" in said("/g/labeled.jpg")


def test_sets_that_share_an_image_are_told_apart(said):
    found = said("v.jpg")
    assert found.count("/p/v.jpg\n") == 1
    assert "protected image, 160" in found and "labeled image, 160" in found
    assert "2 gallery images are near-duplicates of it" in found
    assert found.index("/g/labeled.jpg ") < found.index("/g/copied é.jpg ")
    assert "no gallery image is a near-duplicate of it" in said("lonely.jpg")
    assert "left out of the gallery, the same file or pixels: /g/labeled.jpg" in said("label.jpg")


def test_end_of_a_path_is_a_whole_name_where_it_can_be(said):
    assert said("n01/img_7").startswith("s3://x/shard-0.tar:n01/img_7\n")
    assert said("late.jpg").startswith("/g/late.jpg\n")  # not /g/seen late.jpg
    assert said("b/same.jpg").startswith("/g/b/same.jpg\n")
    assert said("pied é.jpg").startswith("/g/copied é.jpg\n")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("same.jpg", "may be 2 images: /g/a/same.jpg, /g/b/same.jpg; give more of it"),
        (".jpg", "may be 15 images: .*, ...; give more of it"),
        ("insid.jpg", "no such image in .*; did you mean /g/inside.jpg"),
        ("lonly.jpg", "did you mean /p/lonely.jpg"),
        ("", "no such image"),
        ("zzz", "no such image in [^;]*$"),
    ],
)
def test_unknown_or_unclear_paths(said, path, complaint):
    with pytest.raises(InputError, match=complaint):
        said(path)


def test_before_the_selection(said, tmp_path):
    with pytest.raises(InputError, match="run `ssld curate` with it first"):
        said("a.jpg", tmp_path)
    index(tmp_path, "gallery", ["/g/a.jpg"])
    index(tmp_path, "protected", ["/p/a.jpg"])
    assert "nothing is selected yet\n" in said("/g/a.jpg", tmp_path)
    assert "was not compared with it yet" in said("/p/a.jpg", tmp_path)
    write(tmp_path, "pairs", [pair("/g/a.jpg", "/p/a.jpg", 30)])
    assert "it is a near-duplicate of the protected image /p/a.jpg" in said("/g/a.jpg", tmp_path)
    write(tmp_path, "pairs", [pair("/g/a.jpg", "/p/a.jpg", 3)])
    assert "no near-duplicate of a protected image, as far as seen" in said("/g/a.jpg", tmp_path)
