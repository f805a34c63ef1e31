"""Keypoints as files have them: names, sides, lines, visibilities; what is wrong is named, what is
right is not accused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import annotated
import numpy as np
import pytest

from downstream.dense.drawing import SIDE_COLOURS, draw_keypoints
from downstream.detection.batches import BoxBatches
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.keypoint_cleaning import common_keypoints
from downstream.detection.data.keypoints import Keypoints, pairs_by_name
from downstream.detection.data.transforms import TrainBoxView
from ssld.common.errors import InputError

NAMES = ["nose", "left_eye", "right_eye", "tail"]
BOX = [5, 4, 40, 30]
POINTS = [6, 7, 2, 8, 9, 1, 0, 0, 0, 10, 11, 2]


def posed(
    folder: Path,
    points: list[list[Any]] | None = None,
    names: list[str] | None = None,
    *,
    category: dict[str, Any] | None = None,
    **content: Any,
) -> Path:
    """A set with one object of category 3 on its first image for each of `points`."""
    points = [POINTS, POINTS] if points is None else points
    path = annotated.coco(folder, [(10, 3, BOX)] * len(points), **content)
    annotated.edit(path, "categories", 0, keypoints=names or NAMES, **(category or {}))
    for j, row in enumerate(points):
        annotated.edit(path, "annotations", j, keypoints=row)
    return path


def said(source: Any) -> str:
    return "\n".join(source.report.lines())


@pytest.mark.parametrize(
    "names, pairs",
    [
        ("nose left_eye right_eye left_ear right_ear", [(1, 2), (3, 4)]),
        ("right_eye left_eye", [(0, 1)]),
        ("LEye REye neck", [(0, 1)]),
        ("lEye rEye", [(0, 1)]),
        ("ear_l ear_r", [(0, 1)]),
        ("ear.L ear.R", [(0, 1)]),
        ("kneeL1 kneeL2 kneeR1 kneeR2", [(0, 2), (1, 3)]),
        ("LSHO RSHO LHIP RHIP", [(0, 1), (2, 3)]),
        ("Left-Wing Right-Wing LEFT_LEG RIGHT_LEG", [(0, 1), (2, 3)]),
        ("FL_wheel FR_wheel RL_wheel RR_wheel", [(0, 1), (2, 3)]),
        ("LF RF LR RR", [(0, 1), (2, 3)]),  # left front, right front, left rear, right rear
        ("left_eye_left left_eye_right right_eye_left right_eye_right", [(0, 3), (1, 2)]),
        ("l_rear_paw r_rear_paw", [(0, 1)]),
        ("leg arm rib lip tail ear L1 L2 cleft bright", []),
        ("paw1LH paw2LF paw3RF paw4RH", []),
        ("left_eye eye", []),
        ("LL LR RR", []),  # whose is RR?
        ("0 1 2 3", []),
    ],
)
def test_pairs_by_name(names, pairs):
    assert list(pairs_by_name(names.split())) == pairs
    assert pairs_by_name(["Left Ear", "Right Ear"]) == ((0, 1),)


EYES = ((1, 2),)


@pytest.mark.parametrize(
    "names, where, key, value, pairs",
    [
        (NAMES, "info", "flip_pairs", [["left_eye", "right_eye"]], EYES),
        (["a", "b", "c", "d"], "info", "flip_pairs", [["b", "c"]], EYES),
        (["a", "b", "c", "d"], "categories", "flip_pairs", [["c", "b"]], EYES),
        (["a", "b", "c", "d"], "file", "flip_pairs", [["c", "b"], ["b", "c"]], EYES),
        (["a", "b", "c", "d"], "categories", "symmetry", [["b", "c"]], EYES),
        (["a", "b", "c", "d"], "categories", "flip_idx", [0, 2, 1, 3], EYES),
        (["a", "b", "c", "d"], "info", "flip_indices", [0, 2, 1, 3], EYES),
        (["a", "b", "c", "d"], "info", "flip_pairs", [[0, 3], [1, 2]], ((0, 3), (1, 2))),  # from 0
        (["a", "b", "c", "d"], "info", "flip_pairs", [[1, 4]], ((0, 3),)),  # from 1
        (NAMES, "info", "flip_pairs", [[1, 2]], EYES),  # as the names have it: from 0
        (NAMES, "info", "flip_pairs", [[2, 3]], EYES),  # from 1
        (NAMES, "info", "flip_pairs", [], ()),  # the file's word
    ],
)
def test_pairs_of_the_file(tmp_path, names, where, key, value, pairs):
    path = posed(tmp_path, names=names)
    content = json.loads(path.read_text())
    place = {"info": content.setdefault("info", {}), "categories": content["categories"][0]}
    place.get(where, content)[key] = value
    path.write_text(json.dumps(content))
    assert open_boxes(str(path)).keypoints.flip_pairs == pairs


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("flip_pairs", [[1, 2]], "category 3.flip_pairs has numbers that may count .* from 0 or"),
        ("flip_pairs", [["b", "x"]], r"has \['b', 'x'\], which is no pair of the 4 keypoints"),
        ("flip_pairs", [["b", "b"]], "no pair"),
        ("flip_pairs", [["b", "c"], ["c", "d"]], "'c' is in two pairs"),
        ("flip_pairs", [[0, 4]], "may count"),
        ("flip_pairs", [[0, 9]], "no pair"),
        ("flip_pairs", [[True, 2]], "no pair"),
        ("flip_pairs", ["b", "c"], "no pair"),
        ("flip_pairs", "b,c", "give a list of pairs of names"),
        ("flip_idx", [0, 1], "give for each of the 4 keypoints"),
        ("flip_idx", [1, 2, 0, 3], "a takes the place of b, but that one the place of c; mend it"),
    ],
)
def test_pairs_that_are_none(tmp_path, key, value, match):
    path = posed(tmp_path, names=["a", "b", "c", "d"], category={key: value})
    with pytest.raises(InputError, match=match):
        open_boxes(str(path))


def test_two_places_of_a_file_must_agree(tmp_path):
    category = {"flip_idx": [0, 2, 1, 3]}
    info = {"flip_pairs": [["nose", "tail"]]}
    with pytest.raises(InputError, match="pairs left_eye and right_eye, but .*info.flip_pairs n"):
        open_boxes(str(posed(tmp_path, category=category, info=info)))
    info = {"flip_pairs": [["right_eye", "left_eye"]]}
    assert open_boxes(str(posed(tmp_path, category=category, info=info))).keypoints is not None


def test_the_report_says_what_a_mirror_swaps(tmp_path):
    text = said(open_boxes(str(posed(tmp_path / "a"))))
    assert (
        "in a mirror these keypoints change places, by their names: left_eye and right_eye" in text
    )
    assert "without a partner" not in text
    text = said(open_boxes(str(posed(tmp_path / "b", names=["head", "left_eye", "neck", "ear_r"]))))
    assert "no keypoint changes places in a mirror; if some are left and right ones" in text
    assert "without a partner in a mirror: 'left_eye', 'ear_r'" in text
    info = {"flip_pairs": [["nose", "tail"]]}
    text = said(open_boxes(str(posed(tmp_path / "c", info=info))))
    assert "change places, by info.flip_pairs: nose and tail" in text
    assert "by their names left_eye and right_eye would be pairs, which the file denies" in text
    text = said(open_boxes(str(posed(tmp_path / "d", names=["head", "L1", "L2", "tail"]))))
    assert "without a partner" not in text  # vertebrae


@pytest.mark.parametrize(
    "skeleton, lines, remark",
    [
        ([[1, 2], [1, 4]], ((0, 1), (0, 3)), None),
        ([[0, 1], [0, 3]], ((0, 1), (0, 3)), "skeleton counts keypoints from 0 on"),
        ([["nose", "tail"]], ((0, 3),), None),
        ([[1, 2], [1, 9], [3, 3], "x"], ((0, 1),), "join no two keypoints, left out: 3 of 4"),
        ("1-2", (), "left out: 1 of 1"),
        ([[0, 4]], (), "left out: 1 of 1"),
        ([], (), None),
        (None, (), None),
    ],
)
def test_skeleton(tmp_path, skeleton, lines, remark):
    source = open_boxes(str(posed(tmp_path, category={"skeleton": skeleton})))
    assert source.keypoints.skeleton == lines
    remarks = [line for line in source.report.remarks if "skeleton" in line]
    assert any(remark in line for line in remarks) if remark else not remarks


def test_any_number_of_keypoints_and_categories_without(tmp_path):
    path = posed(tmp_path, [[6, 7, 2]] * 2, names=["tip"])
    content = json.loads(path.read_text())
    content["annotations"] += [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": BOX},
        {"id": 2, "image_id": 10, "category_id": 7, "bbox": BOX, "keypoints": []},
    ]
    path.write_text(json.dumps(content))
    source = open_boxes(str(path))
    points = source.boxes(0).keypoints
    assert points.shape == (4, 1, 3) and points[0, 0].tolist() == [6.5, 7.5, 2]
    assert not points[2:].any()
    assert "1 keypoints (name: visible, hidden, not labeled): tip: 2, 0, 0" in said(source)
    assert "without a labeled keypoint" not in said(source)  # a dog has none to label


@pytest.mark.parametrize("value", [3, -1, 0.87, 1.5])
def test_other_visibilities(tmp_path, value):
    path = posed(tmp_path, [POINTS, [*POINTS[:5], value, *POINTS[6:]]])
    with pytest.raises(InputError, match=rf"ons\[1\] .*visibility of keypoint 2 is {value}; "):
        open_boxes(str(path))


def test_names_that_occur_twice(tmp_path):
    with pytest.raises(InputError, match="category 3: entry 3 is 'nose', as already in entry 0"):
        open_boxes(str(posed(tmp_path, names=["nose", "left_eye", "right_eye", "nose"])))


def test_keypoints_without_names_are_no_secret(tmp_path):
    path = annotated.coco(tmp_path, [(10, 3, BOX)])
    source = open_boxes(str(annotated.edit(path, "annotations", 0, keypoints=POINTS)))
    assert source.keypoints is None and source.boxes(0).keypoints is None
    assert "keypoints of 1 annotations are not read, as no category has" in said(source)
    with pytest.raises(InputError, match="boxes.json: has no keypoints; give a set"):
        common_keypoints([source])


def test_counts_and_findings(tmp_path):
    rows = [
        POINTS,
        [6, 7, 2, 8, 9, 1, 3, 4, 0, 0, 0, 2],  # a place without visibility; labeled at 0, 0
        [6, 7, 2, 8, 9, 1, 57, 9, 2, 59.9, 9, 2],  # far from the box (to 45); over by rounding
        [6, 7, 2, 8, 9, 1, 70, 9, 2, 10, 41.0, 1],  # outside of the image twice
        [0] * 12,
        POINTS,
    ]
    path = annotated.edit(posed(tmp_path, rows), "annotations", 0, num_keypoints=4)
    source = open_boxes(str(path))
    assert [(x.name, x.visible, x.hidden, x.unlabeled) for x in source.report.keypoints] == [
        ("nose", 5, 0, 1),
        ("left_eye", 0, 5, 1),
        ("right_eye", 1, 0, 5),
        ("tail", 4, 0, 2),
    ]
    found = {f.what: f.count for f in [*source.report.fixed, *source.report.noticed]}
    del found["boxes that are there twice, with the same class"]
    assert found == {
        "keypoints over the image's edge by more than 1 px, not labeled": 2,
        "keypoints over the image's edge by rounding (at most 1 px), moved": 1,
        "keypoints far outside of their object's box": 3,
        "keypoints labeled at 0, 0, where many tools put those that are not": 1,
        "keypoints with a place but visibility 0, taken as not labeled": 1,
        "objects without a labeled keypoint": 1,
    }
    points = source.boxes(0).keypoints
    assert points[3, 2:].tolist() == [[0, 0, 0], [0, 0, 0]] and points[2, 3].tolist() == [
        60,
        9.5,
        2,
    ]
    (finding,) = [f for f in source.report.noticed if "visibility 0" in f.what]
    assert finding.examples == ("annotations[1] (id 101) of image '0.png'",)
    assert "annotations whose num_keypoints is not how many have a visibility above 0: 1" in said(
        source
    )
    assert common_keypoints([source]).names == tuple(NAMES)


def test_a_good_set_is_not_accused(tmp_path):
    """On box and image edges, hidden, unlabeled, crowd: all usual."""
    rows = [POINTS, [45, 34, 2, 4, 4, 1, 9, 9, 1, 47, 9, 2], [5, 4, 2, *[0] * 9], [0] * 12]
    path = posed(tmp_path, rows)
    annotated.edit(path, "annotations", 3, iscrowd=1, num_keypoints=0)
    for j, more in enumerate(
        [
            {"bbox": BOX},
            {"bbox": [4, 3, 43, 32]},
            {"bbox": [5, 4, 41, 30]},
            {"bbox": [0, 0, 60, 40]},
        ]
    ):
        annotated.edit(path, "annotations", j, **more)
    source = open_boxes(str(path))
    assert not source.report.fixed and not source.keypoint_fault
    assert not source.report.noticed and source.report.keypoints[2].unlabeled == 2


@pytest.mark.parametrize(
    "rows, match",
    [
        (
            [[0.1, 0.2, 2, 0.5, 0.5, 2, 0, 0, 0, 1, 1, 2]] * 2,
            "they are shares of the image's size, not px",
        ),
        ([[9, 50, 2, 9, 55, 2, 9, 58, 1, 9, 59, 2]], "4 of 4 .* of their images, but not in the"),
        ([[90, 50, 2, 90, 55, 2, 90, 58, 1, 90, 59, 2]], "4 of 4 .* outside of their images;"),
        ([[55, 38, 2, 55, 38, 2, 9, 9, 1, 55, 39, 2]], "3 of 4 .* outside of their objects' boxes"),
        ([[6, 7, 0, 8, 9, 0, 0, 0, 0, 10, 11, 0]], "no keypoint is labeled"),
    ],
)
def test_keypoints_that_cannot_be_learned(tmp_path, rows, match):
    """Boxes can, so that the set opens; its report has the same words."""
    source = open_boxes(str(posed(tmp_path, rows)))
    assert source.report.boxes == len(rows) and "keypoints cannot be learned here: " in said(source)
    with pytest.raises(InputError, match=match):
        common_keypoints([source])


def test_sets_must_have_the_same_keypoints(tmp_path):
    first = open_boxes(str(posed(tmp_path / "a", category={"skeleton": [[1, 2]]})))
    same = open_boxes(str(posed(tmp_path / "b")))
    assert common_keypoints([first, same]) == first.keypoints  # lines are only drawn

    def refused(match: str, points: list[Any], names: list[str], **content: Any) -> None:
        other = open_boxes(str(posed(tmp_path / "c", [points], names, **content)))
        with pytest.raises(InputError, match=match):
            common_keypoints([first, other])

    refused(
        "c/boxes.json: has 3 keypoints and not 4: nose, left_eye, right_eye; ",
        POINTS[3:],
        NAMES[:3],
    )
    refused("has the same keypoints in another order: tail, ", POINTS, NAMES[::-1])
    refused("has other keypoints: nose, left_eye, right_eye, ear; .*a/boxes.json has nose", POINTS,
            [*NAMES[:3], "ear"])  # fmt: skip
    refused("other keypoints change places than in .*: nose and tail, there left_eye and right_eye",
            POINTS, NAMES, info={"flip_pairs": [["nose", "tail"]]})  # fmt: skip
    held_out = open_boxes(str(posed(tmp_path / "e", info={"flip_pairs": []})))
    assert common_keypoints([first], [held_out]) == first.keypoints  # which is not mirrored
    without = open_boxes(str(annotated.coco(tmp_path / "d", [(10, 3, BOX)])))
    with pytest.raises(InputError, match="d/boxes.json: has no keypoints"):
        common_keypoints([first, without])


def test_yolo_pose(tmp_path):
    """As ultralytics writes it, of three numbers and of two."""
    line = "0 0.45 0.475 0.6 0.7 0.1 0.2 2 0.5 0.5 1 0 0 0"
    root = annotated.yolo(tmp_path / "three", {"a": f"{line}\n1 .5 .5 .2 .2\n"})
    table = root / "data.yaml"
    table.write_text("names: [cat, dog]\nkpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\n")
    source = open_boxes(f"{root}::train")
    assert source.keypoints == Keypoints(("1", "2", "3"), ((1, 2),))
    points = source.boxes(0).keypoints
    assert np.allclose(points[0], [[6, 8, 2], [30, 20, 1], [0, 0, 0]]) and not points[1].any()
    table.write_text("names: [cat, dog]\nkpt_shape: [3, 3]\nkpt_names: {0: [a, l_b, r_b]}\n")
    assert open_boxes(f"{root}::train").keypoints == Keypoints(("a", "l_b", "r_b"), ((1, 2),))
    line = "0 0.45 0.475 0.6 0.7 0.1 0.2 0 0 -1 -1"
    root = annotated.yolo(tmp_path / "two", {"a": line})
    (root / "data.yaml").write_text("names: [cat, dog]\nkpt_shape: [3, 2]\n")
    points = open_boxes(f"{root}::train").boxes(0).keypoints
    assert np.allclose(points, [[[6, 8, 2], [0, 0, 0], [0, 0, 0]]])
    for table, match in (
        ("kpt_shape: [3]", r"kpt_shape is \['3'\]; give"),
        ("kpt_shape: [3, 4]", "kpt_shape is"),
        ("kpt_shape: [3, 2]\nflip_idx: [0, 1]", "data.yaml.flip_idx is .* give for each of the 3"),
        ("kpt_shape: [3, 2]\nkpt_names: [a]", "kpt_names is .* give 3 names"),
        ("kpt_shape: [3, 3]", "line 1 is '0 0.45"),
    ):
        (root / "data.yaml").write_text(f"names: [cat, dog]\n{table}\n")
        with pytest.raises(InputError, match=match):
            open_boxes(f"{root}::train")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_keypoints_turn_with_their_images(tmp_path, orientation):
    """A blue pixel, annotated as stored; a quarter turn beside it tells the frame."""
    upright = annotated.canvas(40, 60)
    upright[3, 8] = (0, 0, 255)
    images, rows = [], []
    for i, turn in enumerate((orientation, 6)):
        stored = annotated.save(tmp_path / f"{i}.png", upright, turn)
        height, width = stored.shape[:2]
        images.append({"id": 10 * i, "file_name": f"{i}.png", "height": height, "width": width})
        x, y, _, _ = annotated.around(stored)
        rows.append({"id": i, "image_id": 10 * i, "category_id": 3, "keypoints": [x, y, 2]}
                    | {"bbox": [0, 0, width, height]})  # fmt: skip
    categories = [{"id": 3, "name": "cat", "keypoints": ["tip"]}]
    path = annotated.coco(tmp_path / "json", [], images=images, annotations=rows,
                          categories={3: "cat"})  # fmt: skip
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "categories": categories}))
    source = open_boxes(f"{path}::{tmp_path}")
    assert [source.boxes(i).keypoints.tolist() for i in (0, 1)] == [[[[8.5, 3.5, 2]]]] * 2


def test_keypoints_reach_the_batch(tmp_path):
    source = open_boxes(str(posed(tmp_path)))
    make = TrainBoxView(BoxAugmentConfig(resize="square", sizes=[60], flip=0), 0)
    batch = BoxBatches([source], make)(np.array([[0, 0, 0, 0]], np.int64))
    assert batch.targets[0]["keypoints"][1, 0].tolist() == [6.5, 11.25, 2]


def test_drawn_where_they_are_in_the_colours_of_their_sides():
    keypoints = Keypoints(("left", "right", "middle", "other"), ((0, 1),), ((0, 1), (1, 2)))
    points = np.array([[[20.0, 20, 2], [60, 20, 1], [40, 60, 2], [9, 60, 0]]])
    pixels = draw_keypoints(np.full((80, 80, 3), 200, np.uint8), points, keypoints)
    assert (
        tuple(pixels[20, 20]) == SIDE_COLOURS["left"] and tuple(pixels[60, 40]) == SIDE_COLOURS[""]
    )
    assert tuple(pixels[20, 60]) == (255, 255, 255)  # hollow: hidden
    assert tuple(pixels[20, 40]) == SIDE_COLOURS[""]  # a line from left to right
    assert tuple(pixels[40, 50]) == SIDE_COLOURS["right"]
    assert (pixels[55:65, 5:15] == 200).all()  # not labeled
    sure = draw_keypoints(pixels, np.array([[[5, 5, 0.9], [9, 9, 0.2], [0, 0, 0], [0, 0, 0]]]),
                          keypoints, filled=0.5)  # fmt: skip
    assert tuple(sure[5, 5]) == SIDE_COLOURS["left"]
    assert Keypoints(("paw4R", "paw1L"), ((0, 1),)).sides() == ["right", "left"]
    assert Keypoints(("a", "b", "c"), ((0, 1),)).sides() == ["left", "right", ""]
