"""Detectors of keypoints and of masks as users run them: trained, judged, exported, opened; sets
that they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pictures
import pytest
from annotated import PART_SIZES, coco_parts
from PIL import Image
from scenes import boxes, make_scenes

from downstream.ab.records import read_result
from downstream.dense.model import read_description
from downstream.detection.coco_protocol import Similarity
from downstream.detection.data.boxes import open_boxes
from downstream.detection.model import open_detector
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


def train(what: str, train: str, val: str, out: Path, *words: str) -> int:
    name = f"{what[:-1]}_rcnn" if what in PARTS else "faster_rcnn"
    args = {**SMALL, **({PARTS[what]: [16]} if what in PARTS else {})}
    given = [f"--detector.name={name}", f"--detector.args={json.dumps(args)}"]
    given += [f"--data.train={train}", f"--data.val={val}", f"--out={out}"]
    return main(["detection", *COMMON, *given, *words])


@pytest.fixture(scope="module", params=list(PARTS))
def trained(request, tmp_path_factory) -> tuple[str, str, Path]:
    """What is found, the annotations, and the run."""
    folder, what = tmp_path_factory.mktemp(request.param), request.param
    path, out = str(coco_parts(folder, NAMES)), folder / "run"
    sigmas = ["--test.oks_sigmas=[0.1, 0.2, 0.3]"] if what == "keypoints" else []
    with pictures.drawn():
        assert train(what, path, path, out, *sigmas) == 0
    return what, path, out


def test_a_run_learns_keypoints_or_masks_besides(trained) -> None:
    what, path, out = trained
    steps = [line for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"]
    assert len(steps) == 2 and all(line[what] > 0 for line in steps)
    folder, content = read_description(str(out))
    model, source = open_detector(folder, content), open_boxes(path)
    if what == "masks":
        assert "keypoints" not in content and model.keypoints is None
    else:
        assert content["keypoints"]["names"] == NAMES
        assert content["keypoints"]["flip_pairs"] == [[0, 1]]
        assert model.keypoints == source.keypoints


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
    out = tmp_path / "run"
    assert train("keypoints", path, path, out, "--test.oks_sigmas=[0.1, 0.2]") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "test.oks_sigmas has 2 numbers, but there are 3 keypoints" in said
    assert not out.exists()


def test_a_run_of_other_keypoints_is_no_start(trained, tmp_path, capsys) -> None:
    """As many, of other names: weights would fit."""
    what, path, run = trained
    if what == "keypoints":
        assert train(what, path, path, tmp_path / "same", f"--init={run}", "--steps=1") == 0
        file = Path(path.partition("::")[0])
        other = tmp_path / "other.json"
        other.write_text(file.read_text().replace('"tail"', '"middle"'))
        source = f"{other}::{open_boxes(path).folder}"
        capsys.readouterr()
        assert train(what, source, source, tmp_path / "no", f"--init={run}") == 2
        said = capsys.readouterr().err
        assert "has keypoints" in said and "'tail'" in said and "'middle'" in said
    else:
        assert train("keypoints", path, path, tmp_path / "no", f"--init={run}") == 2
        assert "mask_rcnn" in capsys.readouterr().err


def test_a_detector_of_boxes_takes_a_set_of_keypoints_and_says_so(tmp_path, capsys) -> None:
    path = str(coco_parts(tmp_path, NAMES))
    assert train("boxes", path, path, tmp_path / "run", "--steps=1") == 0
    assert "keypoints that faster_rcnn does not use" in capsys.readouterr().out
    assert "keypoints" not in read_description(str(tmp_path / "run"))[1]


@pytest.mark.parametrize(
    ("what", "said"), [("keypoints", "has no keypoints"), ("masks", "have no mask")]
)
def test_a_set_without_what_a_detector_finds_is_refused(tmp_path, capsys, what, said) -> None:
    plain = make_scenes(tmp_path / "plain", train=2, val=2)
    sources = [boxes(plain, split) for split in ("train", "val")]
    assert train(what, *sources, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
