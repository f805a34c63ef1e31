"""`init`: a network that starts from one whose classes are others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from overfit import small_backbone
from torch import nn

from downstream.backbone.backbone import Backbone
from downstream.dense.model import DenseModel, save
from downstream.dense.start import load_init
from downstream.detection import model as detection
from downstream.detection.model import DetectionModel
from downstream.segmentation import model as segmentation
from downstream.segmentation.model import SegmentationModel

NARROW = {"channels": 16, "anchor_sizes": [8, 16, 32, 64, 128]}
HEADS = {
    "faster_rcnn": ({**NARROW, "head_channels": 16}, {"box_predictor.cls", "box_predictor.bbox"}),
    "retinanet": (NARROW, {"classification_head.cls_logits"}),
    "detr": (
        {"num_queries": 9, "width": 16, "layers": 1, "heads": 2, "ffn_width": 16},
        {"class_labels_classifier", "criterion.empty_weight"},
    ),
    "fcn": ({}, {"head.layers.4."}),
}
"""Arguments, and the layers that depend on classes, by parts of their names."""


def opened(name: str, names: list[str], seed: int) -> tuple[DenseModel, dict, Callable]:
    """A network, its head's settings and what builds another."""
    torch.manual_seed(seed)
    args = HEADS[name][0]
    if name == "fcn":
        built: nn.Module = segmentation.build(name, small_backbone(name), len(names))
        model: DenseModel = SegmentationModel(built, names)  # type: ignore[arg-type]
    else:
        built = detection.build(name, small_backbone(name), len(names), args)
        model = DetectionModel(built, names)

    def build(backbone: Backbone, classes: int) -> nn.Module:
        if name == "fcn":
            return segmentation.on_backbone(name, backbone, classes)
        return detection.on_backbone(name, backbone, classes, args)

    return model, {"name": name, "args": args}, build


@pytest.mark.parametrize("name", HEADS)
def test_all_but_what_depends_on_classes_is_taken(name: str, tmp_path: Path) -> None:
    task = "segmentation" if name == "fcn" else "detection"
    old, head, _ = opened(name, ["cat", "dog", "cow"], 0)
    save(old, tmp_path / "old", 1, task=task, head=head, view={})
    was = old.model.state_dict()
    for names in (["cat", "dog", "cow"], ["car", "dog", "cow"], ["car", "bus"]):
        model, head, build = opened(name, names, 1)
        begun = {key: x.clone() for key, x in model.model.state_dict().items()}
        random = torch.get_rng_state()
        _, said = load_init(model, str(tmp_path / "old"), task, head, build)
        assert torch.equal(torch.get_rng_state(), random)
        changed = [key for key, x in begun.items() if x.is_floating_point() and x.numel() > 1]
        kept = set()
        for key in changed:
            now = model.model.state_dict()[key]
            if key in said.replace("(", " ").replace(")", ",").replace(",", " ").split():
                assert torch.equal(now, begun[key]), key
                kept.add(key)
            else:
                assert torch.equal(now, was[key]), key
        if names == ["cat", "dog", "cow"]:
            assert not said and not kept
        else:
            parts = HEADS[name][1]
            assert kept and all(any(part in key for part in parts) for key in kept)
            assert all(any(part in key for key in kept) for part in parts)
            assert "whose classes are not these (['cat', 'dog', 'cow'])" in said
