"""`report.html` of a curation from tables written by hand: what it counts, shows and survives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from written import index, pair, scores, write

from ssld.curate.near_duplicates import matching
from ssld.curate.near_duplicates.sift import features
from ssld.curate.report import pairs as curation_pairs
from ssld.curate.report.page import write_report
from ssld.curate.report.pairs import Evidence, Rule
from ssld.curate.tables import Curation

EVIL = "/g/<img src=x onerror=alert(1)></script>é 画像.jpg"
LABELS = ["cat", "<b>dog</b>", "owl"]


def photograph(seed: int) -> np.ndarray:
    """Something with corners."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return cv2.resize(small, (256, 192), interpolation=cv2.INTER_CUBIC)


def encoded(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def edited(seed: int) -> np.ndarray:
    return np.ascontiguousarray(photograph(seed)[20:180, 30:250])


IMAGES = {
    **{f"/p/{i}.png": encoded(photograph(i)) for i in range(2)},
    "/g/copy.png": encoded(edited(0)),
    "/g/mirrored.png": encoded(np.ascontiguousarray(edited(0)[:, ::-1])),
    EVIL: encoded(edited(1)),
    "/g/other.png": encoded(photograph(7)),
    "/g/kept.png": encoded(photograph(8)),
}
GALLERY = [*(name for name in IMAGES if name.startswith("/g/")), "/g/gone.png", "/g/cut.png"]


def measured(gallery: str, protected: str, **more) -> dict:
    """A pair as the real matching sees it."""
    both = (features(IMAGES[name]) for name in (gallery, protected))
    _, _, match = matching.inlier_points(*both)
    found = {"mirrored": match.mirrored, "affine": match.affine}
    return pair(gallery, protected, match.inliers, match.ncc, **found, **more)


@pytest.fixture(autouse=True, scope="module")
def thresholds():
    """Those that the numbers of this file are written for."""
    patch = pytest.MonkeyPatch()
    patch.setattr(matching, "SURE_INLIERS", 15)
    patch.setattr(matching, "MIN_NCC", 0.7)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pairs(thresholds) -> list[dict]:
    return [
        measured("/g/copy.png", "/p/0.png"),
        measured("/g/mirrored.png", "/p/0.png"),
        measured(EVIL, "/p/1.png", overridden=True, verdict="clear"),
        measured("/g/other.png", "/p/1.png"),
        pair("/g/kept.png", "/p/1.png", 14, 0.6, affine=[1, 0, 0, 0, 1, 0]),
        pair("/g/gone.png", "/p/1.png", 15, 0.1, affine=[1, 0, 0, 0, 1, 0]),
    ]


MANIFEST = {
    "settings": {"select": {"k": 2}, "duplicates": {"policy": "copy"}},
    "warnings": ["2 protected images have <too little> structure"],
    "achieved_k": [1, 1, 0],
    "label_names": LABELS,
    "leakage": [{"a": "gallery", "b": "protected", "exact": 3, "near": None}],
    "projected": {"index": 2.5},
    "versions": {"python": "3.11"},
}


def stages(out: Path, pairs: list[dict]) -> list:
    """What writes each table, in order."""
    dropped = [
        {"path": "/g/copy.png", "reason": "protected", "protected": "/p/0.png", "class": 1},
        {"path": "/g/mirrored.png", "reason": "protected", "protected": "/p/0.png", "class": 1},
        {"path": "/g/gone.png", "reason": "protected", "protected": "/p/1.png", "class": 0},
        {"path": "/g/other.png", "reason": "inside", "other": "/g/kept.png", "class": 0},
        {"path": "/g/cut.png", "reason": "unreadable", "other": "Premature end"},
    ]
    selected = [
        {"location": "/g/kept.png", "class": 0, "rank": 1, "score": 0.9},
        {"location": EVIL, "class": 1, "rank": 1, "score": 0.8},
    ]
    inside = [{"gallery": "/g/other.png", "kept": "/g/kept.png", "inliers": 9, "cosine": 0.9}]
    inside[0] |= {"verdict": "duplicate", "mirrored": False, "affine": [1, 0, 0, 0, 1, 0]}
    sets = {"gallery": GALLERY, "protected": ["/p/0.png", "/p/1.png"]}
    bad = {"/g/cut.png": "Premature <end> of file"}
    return [
        lambda: [index(out, name, locations, bad) for name, locations in sets.items()],
        lambda: scores(out, [*[(1, 0.5)] * (len(GALLERY) - 1), None]),
        lambda: write(out, "pairs", pairs),
        lambda: write(out, "inside", inside),
        lambda: write(out, "selected", selected),
        lambda: write(out, "dropped", dropped),
        lambda: (out / "manifest.json").write_text(json.dumps(MANIFEST)),
    ]


def read(location: str) -> bytes:
    if location not in IMAGES:
        raise FileNotFoundError(2, "No such file or directory", location)
    return IMAGES[location]


def data_of(page: str) -> dict:
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


@pytest.fixture(scope="module")
def out(tmp_path_factory, pairs) -> Path:
    out = tmp_path_factory.mktemp("whole")
    for stage in stages(out, pairs):
        stage()
    lines = [*({"gallery": x, "protected": "/p/0.png", "verdict": "clear"} for x in (EVIL, "/g/a"))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "overrides.jsonl").write_text(f'{text}{{"gallery": 1\nnull\n', encoding="utf-8")
    write_report(out, read)
    return out


@pytest.fixture(scope="module")
def page(out) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_lead_and_stages_add_up(page):
    said = text_of(page)
    assert "Of 7 gallery images, 2 were kept. 3 near-duplicates of protected images were" in said
    steps = ["in the gallery 7", "cannot be read -1 6", "scored by the teacher 6"]
    steps += ["near-duplicate of a protected image -3 3", "of the selection -1 2", "selected 2"]
    places = [said.index(step) for step in steps]
    assert places == sorted(places)


def test_everything_of_the_manifest_is_said(page):
    said = text_of(page)
    for words in (
        "2 protected images have &lt;too little&gt; structure",
        "3 exact, near: not looked for",
        "0 of 3 classes have 2 images. 3 are short, 1 of them empty: owl (0)",
        "index 2.5 h -",
        "Premature &lt;end&gt; of file",
        "python 3.11",
        "/p/0.png 2 ",  # near-duplicates of this protected image
    ):
        assert words in said, words


def test_names_are_never_markup(page):
    assert "<img src=x" not in page and "</script>é" not in page and "<b>dog" not in page
    assert EVIL in [name for drawn in data_of(page)["pairs"] for name in drawn["names"]]


def test_page_needs_no_network(page):
    addresses = re.findall(r'(?:src|href)="([^"]{1,40})', page)
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "@import" not in page


def test_least_certain_come_first(page):
    found = data_of(page)["pairs"]
    assert {found[0]["names"][0], found[1]["names"][0]} == {"/g/kept.png", "/g/gone.png"}
    assert {found[0]["verdict"], found[1]["verdict"]} == {"clear", "duplicate"}
    assert [drawn["overridden"] for drawn in found].count(True) == 1
    assert "/g/other.png" not in [drawn["names"][0] for drawn in found]  # nothing in common


def test_map_lays_inliers_onto_each_other(page):
    drawn = {drawn["names"][0]: drawn for drawn in data_of(page)["pairs"]}
    for name, mirrored in (("/g/copy.png", False), ("/g/mirrored.png", True)):
        assert drawn[name]["mirrored"] is mirrored
        a, b, c, d, e, f = drawn[name]["affine"]
        x1, y1, x2, y2 = np.array(drawn[name]["lines"]).T
        assert len(x1) > 15
        assert np.abs(a * x1 + b * y1 + c - x2).max() < 6
        assert np.abs(d * x1 + e * y1 + f - y2).max() < 6


def test_a_picture_is_stored_once_and_a_missing_one_says_so(page):
    found = data_of(page)
    numbers = {}
    for drawn in found["pairs"]:
        numbers.update(zip(drawn["pictures"], drawn["names"], strict=True))
    assert len(set(numbers.values())) == len(numbers)
    why = {name: found["pictures"][n]["why"] for n, name in numbers.items()}
    assert "No such file" in why.pop("/g/gone.png")
    assert set(why.values()) == {""}
    assert "cannot be read now: No such file or directory" in text_of(page)  # among the examples


def test_earlier_overrides_stay_in_what_is_exported(page):
    kept = data_of(page)["overrides"]
    assert [row["gallery"] for row in kept] == [EVIL, "/g/a"]
    assert set(kept[0]) == {"gallery", "protected", "verdict"}


def test_same_bytes_again(out, page):
    write_report(out, read)
    assert (out / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("done", range(8))
def test_every_stage_has_a_page(tmp_path, pairs, done):
    def gone(location: str) -> bytes:
        raise KeyError(location)

    for stage in stages(tmp_path, pairs)[:done]:
        stage()
    write_report(tmp_path, gone)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (data_of(page)["recount"] is None) == (done < 3)
    first = ("Nothing has been done", "7 gallery images found", "7 gallery images found")
    wanted = (*first, *["Among 7 gallery images: 3 near-duplicates"] * 2, *["Of 7"] * 3)
    assert wanted[done] in text_of(page)


def test_without_index_the_log_tells_the_hours(tmp_path):
    lines = [{"stage": "projected", "hours": {"index": 1.5}}]
    lines += [{"stage": "index gallery", "seconds": 3600, "process": i} for i in (0, 0, 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(f'{text}{{"stage": "ind')
    write_report(tmp_path, read)
    assert "index 1.5 h 1.5 h" in text_of((tmp_path / "report.html").read_text())


def evidence(tmp_path: Path, rows: list[dict], structureless=()) -> Evidence:
    write(tmp_path, "pairs", rows)
    return Evidence(pq.read_table(tmp_path / "pairs.parquet"), structureless, Rule("copy"))


def test_certainty_is_the_distance_from_the_threshold(tmp_path):
    rows = [
        pair("14, unlike", "p", 14, 0.3),
        pair("15, unlike", "p", 15, 0.2),
        pair("like, barely", "p", 9, 0.72),
        pair("9, unlike", "p", 9, 0.1),
        pair("40, alike", "p", 40, 0.9),
        pair("200", "p", 200, 0.9),
        pair("exact", "p", 0, exact="bytes", verdict="duplicate"),
    ]
    order = evidence(tmp_path, rows).order()
    names = [rows[i]["gallery"] for i in order]
    assert set(names[:2]) == {"14, unlike", "15, unlike"}
    assert names[2:] == ["like, barely", "9, unlike", "40, alike", "200", "exact"]


def test_what_inliers_do_not_decide_stays_as_it_is(tmp_path):
    rows = [
        pair("at the threshold", "p", 6, 0.7),  # as float32 it is a little less
        pair("flat", "q", 0, cosine=0.95, verdict="duplicate"),
        pair("flat, unlike", "q", 16, cosine=0.2, verdict="clear"),
        pair("exact", "p", 0, exact="pixels", verdict="duplicate"),
        pair("word", "p", 30, 0.9, overridden=True, verdict="clear"),
    ]
    for structureless in ((), ("q",)):
        found = evidence(tmp_path, rows, structureless)
        assert found.fixed.tolist() == [False, True, True, True, True]
        assert found.by_cosine.tolist() == [False, True, True, False, False]


def many(count: int) -> list[dict]:
    """Random pairs, some images with several, some not for inliers to decide."""
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(count):
        inliers = int(min(rng.geometric(0.08) - 1, 150))
        ncc = round(float(rng.uniform(-0.2, 1)), 4) if inliers >= 5 else None
        names = f"/g/{rng.integers(count // 3)}", f"/p/{rng.integers(50)}"
        rows.append(pair(*names, inliers, ncc))
        if rng.random() < 0.02:
            rows[-1] |= {"exact": "bytes", "verdict": "duplicate"}
    return rows


def recounted(found: dict, sure: int, least: int, ncc: int) -> tuple[int, int]:
    """What page.js does."""
    total = np.array(found["always"])
    for images, selected, *points in found["images"]:
        pairs = zip(points[::2], points[1::2], strict=True)
        if any(i >= sure or (i >= least and x >= ncc) for i, x in pairs):
            total += [images, selected]
    return int(total[0]), int(total[1])


def test_recount_is_that_of_all_pairs(tmp_path):
    rows = many(3000)
    write(tmp_path, "pairs", rows)
    selected = {f"/g/{i}" for i in range(0, 1000, 3)}
    table = Curation(tmp_path).pairs
    assert table is not None
    found = curation_pairs.recount(table, Evidence(table, (), Rule("copy")), selected)
    now = {row["gallery"] for row in rows if row["verdict"] == "duplicate"}
    assert found["now"] == len(now) == recounted(found, 15, 5, 70)[0]
    for sure, least, ncc in [(15, 5, 70), (5, 5, 0), (60, 60, 100), (30, 12, 95), (9, 5, 33)]:
        gone = set()
        for row in rows:
            weak = row["inliers"] >= least and (row["ncc"] or -1) >= ncc / 100
            if row.get("exact") or row["inliers"] >= sure or weak:
                gone.add(row["gallery"])
        assert recounted(found, sure, least, ncc) == (len(gone), len(gone & selected))


def test_many_pairs_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(curation_pairs, "SHOWN", 30)
    rows = many(20_000)
    rows += [pair("/g/word", "/p/word", 140, 0.99, overridden=True, verdict="clear")]
    write(tmp_path, "pairs", rows)
    write_report(tmp_path, read)  # no picture is to be had
    page = (tmp_path / "report.html").read_text()
    found = data_of(page)
    assert len(page) < 1_000_000
    assert len(found["pairs"]) == 31  # with the one that somebody decided
    assert found["pairs"][-1]["names"] == ["/g/word", "/p/word"]
    assert [x["verdict"] for x in found["pairs"][:-1]].count("clear") == 15
    assert "the 30 closest to a threshold are here" in text_of(page)
