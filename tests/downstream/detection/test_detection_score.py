"""What an evaluation of a detector says, draws and decides, by what the detector finds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from annotated import PART_BOXES, PART_SIZES, coco_parts
from torch import Tensor

from downstream.dense.sources import Sources
from downstream.dense.task import verdict
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig, DetectorConfig
from downstream.detection.data.boxes import open_boxes
from downstream.detection.report import by_class, by_keypoint, curves
from downstream.detection.score import DetectionScore
from downstream.detection.task import DetectionTask
from ssld.cli.run import main

ONE: Any = SimpleNamespace(num_processes=1)
EYES, TAIL = ["left_eye", "right_eye", "nose"], ["head", "tail", "paw"]


def task(path: str, detector: str, **test: Any) -> DetectionTask:
    sources = [open_boxes(path, masks=detector == "mask_rcnn")]
    augment = BoxAugmentConfig(sizes=[40], test_size=40, longest=None)
    return DetectionTask(
        Sources(sources, [], sources), augment, BoxTestConfig(**test), DetectorConfig(detector), 0
    )


class Knows(torch.nn.Module):
    """Finds the object of each image, in px of the view, with keypoints `off` px of the image."""

    def __init__(self, what: str, off: float = 0.0) -> None:
        super().__init__()
        self.what, self.off = what, off

    def find(self, images: Tensor, sizes: Tensor) -> tuple[dict[str, Tensor], None]:
        height, width = sizes[0].tolist()
        i = next(i for i, (h, w) in enumerate(PART_SIZES) if abs(h / w - height / width) < 0.05)
        scale = width / PART_SIZES[i][1]
        x1, y1, x2, y2 = PART_BOXES[i]
        found: dict[str, Any] = {"boxes": torch.tensor([PART_BOXES[i]]) * scale}
        found |= {"scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
        if self.what == "keypoints":
            w, h = x2 - x1, y2 - y1
            points = [[x1 + w // 4, y1 + h // 4], [x1 + w // 2, y1 + h // 2], [x1, y1]]
            moved = (torch.tensor(points) + 0.5 + torch.tensor([0, self.off])) * scale
            found["keypoints"] = torch.cat([moved, torch.full((3, 1), 0.2)], 1)[None]
        if self.what == "masks":
            found["masks"] = torch.ones(1, 4, 4)
        return found, None


def evaluated(one: DetectionTask, model: Knows) -> DetectionScore:
    rows = np.zeros((3, 4), np.int64)
    rows[:, 1] = range(3)
    batches = [one.make_held_out(rows[i : i + 1]) for i in range(3)]  # type: ignore[arg-type]
    score = one.evaluate(model.eval(), batches)  # type: ignore[arg-type]
    assert score.reduce(ONE, False)
    return score


def test_keypoints_are_judged_drawn_and_told_apart(tmp_path):
    one = task(coco_parts(tmp_path, TAIL), "keypoint_rcnn")
    assert one.metric == "keypoint_ap"
    score = evaluated(one, Knows("keypoints"))
    metrics = score.metrics()
    assert metrics["keypoint_ap"] == metrics["keypoint_ap50"] == metrics["ap"] == 1
    off = evaluated(one, Knows("keypoints", 6.0))
    assert off.metrics()["keypoint_ap"] < 0.3 and off.metrics()["ap"] == 1
    title, rows, head, note = by_keypoint(off.counts, TAIL, None)
    assert [row[:4] for row in rows] == [
        ["head", "0.05", "3", "3"], ["tail", "0.05", "3", "3"], ["paw", "0.05", "2", "2"],
    ]  # fmt: skip
    away = [6 / np.sqrt((x2 - x1) * (y2 - y1)) for x1, y1, x2, y2 in PART_BOXES]
    assert [float(row[5]) for row in rows] == [
        pytest.approx(np.median(x), abs=1e-3) for x in (away, away, away[1:])
    ]
    assert {row[4] for row in rows} == {"0.000"} and len(head) == 6 and "sigma 0.05" in note
    assert "By keypoint" in title
    said, said_head = by_class(off.counts)
    assert said_head[:4] == ["class", "objects", "AP", "AP50"] and said[0][:4] == [
        "cat", "3", "1.000", "1.000",
    ]  # fmt: skip
    assert said_head[4:] == ["keypoints: objects", "keypoints: AP", "keypoints: AP50"]
    names = {key for _, series, _ in curves(off.counts) for key in series}
    assert names >= {"ap", "ap_small", "keypoint_ap75", "keypoint_ap_medium"}
    assert "keypoint_ap_small" not in names
    for number in range(3):  # drawn on what was all white: boxes and, in other places, points
        truth, found, _ = off.drawn[number]
        assert truth.shape[:2] == PART_SIZES[number] and (truth != found).any()
        (x, y), yellow = np.array(PART_BOXES[number][:2]), np.array([250, 210, 50])
        quarter = np.array(PART_BOXES[number][2:]) - (x, y)
        px, py = x + quarter[0] // 4, y + quarter[1] // 4
        assert (truth[py, px] == yellow).all() and (found[py + 6, px] == yellow).all()
        assert not (found[py, px] == yellow).all()


def test_sigmas_are_the_names_or_the_settings(tmp_path):
    one = task(coco_parts(tmp_path, EYES), "keypoint_rcnn")
    assert one.ground_truth.similarity.sigmas == (0.025, 0.025, 0.026)
    wide = task(coco_parts(tmp_path, EYES), "keypoint_rcnn", oks_sigmas=0.5)
    model = Knows("keypoints", 3.0)
    narrow = evaluated(one, model).metrics()["keypoint_ap"]
    assert narrow < 0.2 and evaluated(wide, model).metrics()["keypoint_ap"] == 1


def test_masks_are_judged_and_drawn(tmp_path):
    one = task(coco_parts(tmp_path, TAIL), "mask_rcnn")
    score = evaluated(one, Knows("masks"))
    metrics = score.metrics()
    assert one.metric == "mask_ap" and metrics["mask_ap"] == metrics["ap"] == 1
    assert {"mask_ap_small", "mask_ap75"} <= metrics.keys()
    x1, y1, x2, y2 = PART_BOXES[2]
    for pixels in score.drawn[2][:2]:
        inside, outside = pixels[(y1 + y2) // 2, (x1 + x2) // 2], pixels[y2 + 3, x2 - 3]
        assert (inside != 255).any() and (outside == 255).all()


def test_boxes_are_judged_as_before(tmp_path):
    one = task(coco_parts(tmp_path, TAIL), "retinanet")
    metrics = evaluated(one, Knows("boxes")).metrics()
    assert one.metric == "ap" and not [key for key in metrics if "keypoint" in key or "mask" in key]
    assert sorted(metrics) == ["ap", "ap50", "ap75", "ap_small", "images"]


@pytest.mark.parametrize(
    ("detector", "best", "expected"),
    [
        ("keypoint_rcnn", None, "keypoint_ap"),
        ("keypoint_rcnn", "ap50", "ap50"),
        ("mask_rcnn", None, "mask_ap"),
        ("mask_rcnn", "mask_ap50", "mask_ap50"),
        ("mask_rcnn", "last", "last"),
        ("fcos", None, "ap"),
    ],
)
def test_the_best_checkpoint_is_the_best_at_what_is_found(tmp_path, detector, best, expected):
    one = task(coco_parts(tmp_path, TAIL), detector)
    run: Any = SimpleNamespace(config=SimpleNamespace(checkpoint=SimpleNamespace(best=best)))
    assert one.monitor(run) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint.best=keypoint_ap"], "faster_rcnn finds boxes: give one of ap, ap50, last"),
        (
            ["--detector.name=mask_rcnn", "--checkpoint.best=keypoint_ap"],
            "mask_rcnn finds masks: give one of ap, ap50, mask_ap, mask_ap50, last",
        ),
        (["--test.oks_sigmas=0.1"], "test.oks_sigmas is of keypoints, but faster_rcnn finds boxes"),
        (["--detector.name=keypoint_rcnn", "--test.oks_sigmas=0"], "test.oks_sigmas is 0"),
        (["--detector.name=keypoint_rcnn", "--test.oks_sigmas=[.1, -1]"], "[0.1, -1.0]: give"),
        (["--checkpoint.best=ap60"], "checkpoint.best"),
    ],
)
def test_settings_that_do_not_fit_what_is_found(tmp_path, capsys, words, said):
    path = coco_parts(tmp_path, TAIL)
    given = [f"--data.train={path}", f"--data.val={path}", f"--out={tmp_path / 'run'}"]
    assert main(["detection", "--steps=1", "--backbone=test_resnet", *given, *words]) == 2
    found = capsys.readouterr().err
    assert said in found and found.startswith("error: ") and not (tmp_path / "run").exists()


def test_the_verdict_knows_what_is_found():
    line = {"keypoint_ap": 0.4, "step": 10}
    assert verdict("keypoint_ap", {"keypoint_ap": 0.5, "ap": 0.9}, [line], 0.5) == (
        "keypoint AP 0.5000, the best so far (before: 0.4000)"
    )
    assert "not learning: mask AP is 0.0000" in verdict("mask_ap", {"mask_ap": 0.0}, [], 0.5)
    assert "no held-out image" in verdict("mask_ap50", {"ap": 0.5}, [], 0.5)
