"""`ssld predict` with detectors of keypoints and masks, and without the packages of training."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import sabotage
import torch
from faster_coco_eval import mask as coco_masks
from PIL import Image

from downstream.backbone.config import BackboneConfig
from downstream.dense.model import save
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.inference import predict
from downstream.detection.model import DetectionModel, build
from downstream.detection.pasting import paste
from ssld.cli.run import main

AUGMENT = BoxAugmentConfig(sizes=[64], test_size=64, longest=None)
POINTS = Keypoints(("left", "right", "nose"), flip_pairs=((0, 1),), skeleton=((0, 2), (1, 2)))
SMALL = {"channels": 32, "head_channels": 32, "score_threshold": 0.0}
ARGS = {
    "keypoint_rcnn": {**SMALL, "keypoint_channels": [16]},
    "mask_rcnn": {**SMALL, "mask_channels": [16]},
}


@pytest.fixture(params=list(ARGS))
def exported(request, tmp_path) -> tuple[str, DetectionModel, Path]:
    """Random weights, as a run leaves them."""
    torch.manual_seed(0)
    name, args = request.param, ARGS[request.param]
    built = build(name, BackboneConfig(name="test_resnet", pretrained=False), 2, args, POINTS)
    points = POINTS if name == "keypoint_rcnn" else None
    model = DetectionModel(built, ["a", "b"], points).eval()
    view = {**asdict(AUGMENT), "test": asdict(BoxTestConfig(flip=True))}
    head = {"name": name, "args": args}
    save(
        model, tmp_path / "run/model", 1,
        task="detection", head=head, view=view, keypoints=points and asdict(points),
    )  # fmt: skip
    return name, model, tmp_path / "run"


def test_parts_are_written_and_drawn(exported, tmp_path):
    name, model, run = exported
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    written, drawn = [], []
    for least in (0.0, 1.0):  # all are drawn, or none
        out = tmp_path / f"out{least}"
        words = [str(run), str(tmp_path / "images"), f"--out={out}", f"--score={least}"]
        assert main(["predict", *words]) == 0
        written.append(json.loads((out / "predictions.jsonl").read_text())["boxes"])
        picture = np.asarray(Image.open(out / "images/a.jpg"), np.int16)
        drawn.append(picture[:48])  # below it a legend of what is drawn
    assert written[0] == written[1] and abs(drawn[0] - drawn[1]).mean() > 5
    found = predict(model, torch.from_numpy(pixels), AUGMENT, BoxTestConfig(flip=True))
    assert len(written[0]) == len(found["boxes"]) > 3
    for key, other in (("box", "boxes"), ("keypoints", "keypoints")):
        if other in found:
            rows = [one[key] for one in written[0]]
            np.testing.assert_allclose(rows, found[other].tolist(), atol=1e-3)
    if name == "mask_rcnn":
        expected = paste(found["masks"], found["boxes"], (48, 80))
        for one, other in zip(written[0], expected, strict=True):
            mask = coco_masks.decode({**one["mask"], "counts": one["mask"]["counts"].encode()})
            assert mask.shape == (48, 80) and (mask != coco_masks.decode(other)).mean() < 0.01


def test_boxes_and_pixels_need_no_coco_package(tmp_path):
    """Who only uses a network has not installed what trains detectors."""
    code = (
        "import sys; sys.modules['faster_coco_eval'] = None\n"
        "assert not [x for x in sys.modules if x.startswith('downstream')]\n"
        "import downstream.deploy.predict, downstream.deploy.export"
    )
    found, said = sabotage.run(["--help"], tmp_path / "said", [functools.partial(exec, code)])
    assert found == 0, said
