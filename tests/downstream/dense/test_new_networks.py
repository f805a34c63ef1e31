"""A new detector and a new segmenter: a class each, of a module of the user's, and a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scenes import boxes, make_scenes

from downstream.dense.networks import NetworkEntry
from downstream.detection.networks import DETECTORS
from downstream.segmentation.networks import SEGMENTERS
from ssld.cli.run import main
from ssld.engine.run_folder import read_lines

DETECTOR = '''
import torch
from torch import nn


class OneBox(nn.Module):
    """Says one box of each image: where its features' mean points to."""

    stride, score_threshold = 32, 0.0

    def __init__(self, backbone, num_classes, *, margin=0.1):
        super().__init__()
        self.backbone, self.margin = backbone, margin
        self.head = nn.Linear(backbone.channels[-1], 4 + num_classes)

    def forward(self, images, sizes, targets=None):
        out = self.head(self.backbone(images)[-1].mean((2, 3)))
        corner, side = out[:, :2].sigmoid() / 2, self.margin + out[:, 2:4].sigmoid() / 4
        scale = sizes.flip(1).repeat(1, 2).to(out)
        found = torch.cat([corner, corner + side], 1) * scale
        if targets is None:
            scores, labels = out[:, 4:].softmax(1).max(1, keepdim=True)
            return [{"boxes": b[None], "scores": s, "labels": c}
                    for b, s, c in zip(found, scores, labels)]
        terms = [((b - t["boxes"]) / z).abs().sum() for b, t, z in zip(found, targets, scale)]
        return {"boxes": torch.stack(terms) + out[:, 4:].square().mean(1)}
'''
SEGMENTER = """
from torch import nn

from downstream.segmentation.heads.segmenter import Segmenter


class Linear(nn.Module):
    def __init__(self, channels, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps):
        return [self.classifier(maps[-1])]


class LinearSegmenter(Segmenter):
    def __init__(self, backbone, num_classes):
        super().__init__(backbone, Linear(backbone.channels[-1], num_classes), num_classes)
"""


@pytest.mark.parametrize(
    "task, code, table, entry, words",
    [
        ("detection", DETECTOR, DETECTORS, NetworkEntry("users_own:OneBox", (32,)),
         ["--detector.name=own", "--detector.args={margin: 0.2}", "--augment.sizes=[64]",
          "--augment.test_size=64", "--augment.longest=null"]),
        ("segmentation", SEGMENTER, SEGMENTERS, NetworkEntry("users_own:LinearSegmenter", (32,)),
         ["--segmenter.name=own", "--augment.crop=[64, 64]"]),
    ],
)  # fmt: skip
def test_a_class_and_a_line_train_and_predict(
    tmp_path: Path, monkeypatch, task, code, table, entry, words
) -> None:
    root = make_scenes(tmp_path / "scenes", train=2, val=1)
    (tmp_path / "users_own.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    monkeypatch.setitem(table, "own", entry)
    sources = [
        f"--data.{split}={boxes(root, split) if task == 'detection' else f'{root}::{split}'}"
        for split in ("train", "val")
    ]
    common = ["--backbone=test_resnet", "--backbone.pretrained=false", "--steps=1",
              "--batch_size=2", "--trackers=[]", "--data.workers=0"]  # fmt: skip
    out = tmp_path / "run"
    assert main([task, *common, *words, *sources, f"--out={out}"]) == 0
    lines = read_lines(out / "metrics.jsonl")
    assert [line["kind"] for line in lines] == ["train", "eval"]
    images = str(root / "images" / "val")
    assert main(["predict", str(out), images, f"--out={tmp_path / 'drawn'}"]) == 0


@pytest.mark.parametrize("task, group", [("detection", "detector"), ("segmentation", "segmenter")])
def test_an_unknown_name_is_refused_with_those_that_there_are(tmp_path, capsys, task, group):
    words = [task, "--backbone=test_resnet", "--steps=1", "--data.train=no", "--data.val=no"]
    assert main([*words, f"--{group}.name=own", f"--out={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    names = ", ".join({"detector": DETECTORS, "segmenter": SEGMENTERS}[group])
    assert f"{group}.name is own: give one of {names}" in said
