"""Detectors of keypoints and of masks, trained and judged as users run them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pictures
import pytest
from annotated import PART_SIZES, coco_parts
from PIL import Image

from downstream.ab.records import read_result
from downstream.detection.coco_protocol import Similarity
from downstream.detection.data.boxes import open_boxes
from downstream.detection.score import GroundTruth
from ssld.cli.run import main
from ssld.engine.run_folder import read_lines

NAMES = ["left_paw", "right_paw", "tail"]
SMALL = {"channels": 16, "head_channels": 32, "rois_per_image": 16, "score_threshold": 0.0}
PARTS = {"keypoints": "keypoint_channels", "masks": "mask_channels"}
COMMON = [
    "--steps=2", "--batch_size=2", "--log_every_steps=1", "--trackers=[]", "--data.workers=0",
    "--backbone=test_resnet", "--backbone.pretrained=false", "--augment.sizes=[64]",
    "--augment.test_size=64", "--augment.longest=96", "--test.flip=true",
]  # fmt: skip


@pytest.fixture(scope="module", params=list(PARTS))
def trained(request, tmp_path_factory) -> tuple[str, str, Path]:
    """What is found, the annotations, and the run."""
    folder, what = tmp_path_factory.mktemp(request.param), request.param
    path, out = coco_parts(folder, NAMES), folder / "run"
    name, args = f"{what[:-1]}_rcnn", {**SMALL, PARTS[what]: [16]}
    words = [f"--detector.name={name}", f"--detector.args={json.dumps(args)}"]
    words += [f"--data.train={path}", f"--data.val={path}", f"--out={out}"]
    words += ["--test.oks_sigmas=[0.1, 0.2, 0.3]"] if what == "keypoints" else []
    with pictures.drawn():
        assert main(["detection", *COMMON, *words]) == 0
    return what, path, out


def test_a_run_is_judged_by_what_it_finds(trained) -> None:
    what, _, run = trained
    key = f"{what[:-1]}_ap"
    line = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "eval"][-1]
    assert {"ap", "ap_one_view", key, f"{key}50", f"{key}_one_view"} <= line.keys()
    exported = json.loads((run / "run.json").read_text())["exported"]
    assert (exported["metric"], exported["value"]) == (key, line[key])
    assert f"{what[:-1]} AP" in line["verdict"]
    found = read_result(run, "detection")  # refuses a record of another score
    assert (found.key, found.score) == (key, line[key]) and found.record is not None


def test_the_report_says_by_what(trained) -> None:
    what, _, run = trained
    page, preflight = ((run / name).read_text() for name in ("report.html", "preflight.md"))
    assert f"{what}: AP50" in page and "What several views bring" in page
    assert f"{what[:-1]} AP75" in page
    says = "keypoint AP by OKS with sigma left_paw 0.1, right_paw 0.2, tail 0.3: given by"
    for text in (page, preflight):
        assert (says in text) == (what == "keypoints")
    assert ("By keypoint, at the last evaluation" in page) == (what == "keypoints")
    with Image.open(next((run / "pictures").iterdir())) as sheet:
        assert sheet.width > 2 * PART_SIZES[0][1]


def test_predictions_are_those_that_were_judged(trained) -> None:
    what, path, run = trained
    similarity = Similarity("masks")
    if what == "keypoints":
        similarity = Similarity("keypoints", (0.1, 0.2, 0.3))
    truth = GroundTruth([open_boxes(path, masks=what == "masks")], similarity)
    detections = truth.detections()
    detections.load(run / "predictions.json")
    line = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "eval"][-1]
    again = detections.metrics()
    assert again and all(line[key] == value for key, value in again.items())
    with np.load(run / "held_out.npz") as record:
        for key, value in detections.matches().items():
            assert np.array_equal(record[key], value), key


def test_sigmas_that_are_not_one_each_are_refused(trained, tmp_path, capsys) -> None:
    _, path, _ = trained
    words = [f"--data.train={path}", f"--data.val={path}", f"--out={tmp_path / 'run'}"]
    words += ["--detector.name=keypoint_rcnn", "--test.oks_sigmas=[0.1, 0.2]"]
    assert main(["detection", *COMMON, *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "test.oks_sigmas has 2 numbers, but there are 3 keypoints" in said
    assert not (tmp_path / "run").exists()
