"""COCO panoptic annotations become the masks that a loop over segments gives."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.preflight import inspect
from ssld.common.errors import InputError
from ssld.data.decode import Unreadable

CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 17, "name": "cat", "isthing": 1, "color": [100, 100, 100]},
    {"id": 200, "name": "rug", "isthing": 0, "color": [0, 200, 60]},
]
SEGMENTS = [
    [(5, 1), (70_000, 1), (300, 200)],
    [(5, 17), (16_777_215, 200)],
]


def tree() -> dict:
    return {
        "images": [
            {"id": 40 + i, "file_name": f"{i:012}.jpg", "height": 12, "width": 16} for i in range(3)
        ],
        "annotations": [
            {
                "image_id": 40 + i,
                "file_name": f"{i:012}.png",
                "segments_info": [
                    {"id": s, "category_id": c, "iscrowd": int(s == 300)} for s, c in segments
                ],
            }
            for i, segments in enumerate(SEGMENTS)
        ],
        "categories": copy.deepcopy(CATEGORIES),
    }


def segment_ids(i: int) -> np.ndarray:
    values = [0, *(s for s, _ in SEGMENTS[i])]
    return np.random.default_rng(i).choice(values, (12, 16))


def save_ids(path: Path, ids: np.ndarray) -> None:
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)


def build(root: Path, annotations: dict | None = None) -> str:
    """As COCO's zips unpack: annotations/panoptic_val.json and .../panoptic_val/, val/."""
    for i in range(3):
        path = root / f"val/{i:012}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(path)
    for i in range(2):
        save_ids(root / f"annotations/panoptic_val/{i:012}.png", segment_ids(i))
    path = root / "annotations/panoptic_val.json"
    path.write_text(json.dumps(annotations or tree()))
    return str(path)


def expected(i: int, number: dict[int, int]) -> np.ndarray:
    """A loop over segments, as panopticapi's panoptic2semantic_segmentation.py has it."""
    ids, mask = segment_ids(i), np.full((12, 16), 255)
    for segment, category in SEGMENTS[i]:
        mask[ids == segment] = number[category]
    return mask


def test_segments_of_things_and_stuff_become_their_category(tmp_path):
    source = open_masks(build(tmp_path))
    assert source.class_names == ["person", "cat", "rug"] and source.layout == "COCO panoptic"
    assert source.palette.tolist() == [entry["color"] for entry in CATEGORIES]
    for i in range(2):
        assert np.array_equal(source.mask(i), expected(i, {1: 0, 17: 1, 200: 2}))
    assert (source.mask(0) == 255).any(), "unlabelled pixels are ignored"
    assert source.location(1) == str(tmp_path / "val/000000000001.jpg")
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.mask(1), source.mask(1))


def test_the_report_counts_and_names_images_without_annotation(tmp_path):
    report = inspect(open_masks(build(tmp_path)))
    report.check()
    both = np.stack([expected(i, {1: 0, 17: 1, 200: 2}) for i in range(2)])
    assert [c.pixels for c in report.classes] == [int((both == k).sum()) for k in range(3)]
    assert [c.id for c in report.classes] == [1, 17, 200]
    assert report.ignored_pixels == (both == 255).sum()
    assert report.without_mask.places == ["000000000002.jpg"]


def test_classes_in_the_networks_order(tmp_path):
    source = open_masks(build(tmp_path), ["rug", "person", "cat"])
    assert np.array_equal(source.mask(0), expected(0, {1: 1, 17: 2, 200: 0}))
    with pytest.raises(InputError, match="lacks dog and has cat besides"):
        open_masks(build(tmp_path), ["rug", "person", "dog"])


def test_repeated_display_colours_are_no_error(tmp_path):
    annotations = tree()
    annotations["categories"][1]["color"] = annotations["categories"][0]["color"]
    source = open_masks(build(tmp_path, annotations))
    assert np.array_equal(source.mask(1), expected(1, {1: 0, 17: 1, 200: 2}))
    assert len({tuple(colour) for colour in source.palette.tolist()}) == 3


def test_a_segment_that_the_json_does_not_know_is_named(tmp_path):
    path = build(tmp_path)
    ids = segment_ids(1)
    ids[3, 4] = 66_000
    save_ids(tmp_path / "annotations/panoptic_val/000000000001.png", ids)
    source = open_masks(path)
    said = r"1\.png: pixel \[3, 4\]: segment id 66000 is not in the segments_info .*val\.json"
    with pytest.raises(Unreadable, match=said):
        source.mask(1)
    assert inspect(source).unknown["a segment id"].count == 1
    with pytest.raises(InputError, match=r"000000000001\.png: 1 px: segment id 66000"):
        inspect(source).check()


def test_an_annotation_without_segments_is_all_unlabelled(tmp_path):
    annotations = tree()
    annotations["annotations"][1]["segments_info"] = []
    source = open_masks(build(tmp_path, annotations))
    save_ids(tmp_path / "annotations/panoptic_val/000000000001.png", np.zeros((12, 16), int))
    assert (source.mask(1) == 255).all()
    assert np.array_equal(source.mask(0), expected(0, {1: 0, 17: 1, 200: 2}))


def change(place: list, value) -> dict:
    annotations = tree()
    entry = annotations
    for key in place[:-1]:
        entry = entry[key]
    if value is None:
        del entry[place[-1]]
    else:
        entry[place[-1]] = value
    return annotations


SEGMENT = ["annotations", 0, "segments_info", 1]


@pytest.mark.parametrize(
    "place, value, said",
    [
        ([*SEGMENT, "category_id"], 99, r"annotations\[0\]\.segments_info\[1\]\.category_id is 99"),
        ([*SEGMENT, "category_id"], None, r"segments_info\[1\] has no field 'category_id'"),
        ([*SEGMENT, "id"], 5, r"segments_info\[1\]\.id is 5; give a new number"),
        ([*SEGMENT, "id"], 2**24, r"segments_info\[1\]\.id is 16777216"),
        (["annotations", 1, "image_id"], 7, r"annotations\[1\] has image_id 7, but no image"),
        (["annotations", 1, "image_id"], 40, r"\.image_id: .*0\.jpg has annotations\[0\], too"),
        (
            ["annotations", 1, "file_name"],
            "x.png",
            r"annotations\[1\]\.file_name: x\.png is not in",
        ),
        (
            ["images", 1, "file_name"],
            "x.jpg",
            r"annotations\[1\]\.file_name: x\.jpg is not in .*val",
        ),
        (["images", 2, "id"], None, r"images\[2\] has no field 'id'"),
        (["categories", 0, "name"], None, r"categories\[0\] has no field 'name'"),
        (["categories", 0, "id"], "1", r"categories\[0\]\.id is '1'; give a whole number"),
        (["categories", 1, "id"], 1, r"id 1 belongs to both 'person' .* and 'cat'"),
        (["categories"], None, r"has no list of objects 'categories'"),
        (["annotations"], [], r"annotations is empty, so nothing is labelled"),
        (["annotations", 0, "segments_info"], None, r"no segments_info, so this is no panoptic"),
    ],
)
def test_wrong_annotations_are_refused_with_their_place_and_field(tmp_path, place, value, said):
    path = build(tmp_path, change(place, value))
    with pytest.raises(InputError, match=said) as caught:
        open_masks(path)
    assert "panoptic_val.json" in str(caught.value)


def test_the_images_may_lie_elsewhere(tmp_path):
    path = build(tmp_path)
    (tmp_path / "val").rename(tmp_path / "pictures")
    with pytest.raises(
        InputError, match=r"give the folder of images as .*panoptic_val\.json::FOLD"
    ):
        open_masks(path)
    with pytest.raises(InputError, match="is no folder; check the path"):
        open_masks(f"{path}::{tmp_path / 'val'}")
    source = open_masks(f"{path}::{tmp_path / 'pictures'}")
    assert np.array_equal(source.mask(0), expected(0, {1: 0, 17: 1, 200: 2}))
    (tmp_path / "pictures").rename(tmp_path / "images")
    assert len(open_masks(path)) == 2


def test_a_json_that_is_none_and_missing_pngs_are_refused(tmp_path):
    path = build(tmp_path)
    (tmp_path / "annotations/panoptic_val").rename(tmp_path / "annotations/other")
    with pytest.raises(InputError, match=r"its PNGs are missing; unpack them into .*panoptic_val"):
        open_masks(path)
    Path(path).write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        open_masks(path)
