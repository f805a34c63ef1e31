"""The seven detectors by name: all are built, learn with every parameter and find alike."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from overfit import PlainBackbone, pictures

from downstream.backbone.config import BackboneConfig
from downstream.detection.model import build, on_backbone
from downstream.detection.networks import DETECTORS, options
from ssld.common.errors import InputError

SMALL = {
    "faster_rcnn": {"channels": 32, "head_channels": 64, "rois_per_image": 16},
    "retinanet": {"channels": 32},
    "fcos": {"channels": 64},
    "yolov3": {"width": 32},
    "yolov3_dcn": {"width": 32},
    "detr": {"num_queries": 9, "width": 32, "layers": 2, "heads": 2, "ffn_width": 32},
}


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, BackboneConfig("test_resnet", pretrained=False), 3, SMALL.get(name))


@pytest.mark.parametrize("name", DETECTORS)
def test_every_parameter_learns_and_what_is_found_has_one_form(name: str) -> None:
    network = make(name).train()
    assert network.backbone.strides == DETECTORS[name].strides and network.stride == 32
    images, targets = pictures(96, count=2)
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    sizes = torch.tensor([[96, 96], [64, 80]])
    losses = network(images, sizes, targets)
    assert all(x.dtype == torch.float32 and x.dim() == 0 for x in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    idle = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle

    network.eval().score_threshold = 0.0
    with torch.no_grad():
        for found, (h, w) in zip(network(images, sizes), sizes.tolist(), strict=True):
            assert found.keys() == {"boxes", "scores", "labels"}
            assert 0 < len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) <= 100
            assert (found["boxes"] <= torch.tensor([w, h, w, h])).all()
            assert found["labels"].dtype == torch.int64
        network.score_threshold = 1.0
        assert [len(found["boxes"]) for found in network(images, sizes)] == [0, 0]


def test_dcn_is_what_tells_the_two_yolos_apart() -> None:
    kinds = {type(m).__name__ for m in make("yolov3_dcn").modules()}
    assert "DeformableConv" in kinds
    assert "DeformableConv" not in {type(m).__name__ for m in make("yolov3").modules()}


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("retinanett", {}, "unknown detector 'retinanett', .* did you mean 'retinanet'?"),
        ("retinanet", {"anchor_size": [1]}, "no argument 'anchor_size', .*mean 'anchor_sizes'?"),
        ("yolov3_dcn", {"dcn": False}, "yolov3_dcn has no argument 'dcn', it has width"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, args: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        options(name, args)


def test_an_unknown_argument_is_refused_on_a_backbone_that_is_there() -> None:
    with pytest.raises(InputError, match="fcos has no argument 'width'"):
        on_backbone("fcos", PlainBackbone((8, 16, 32)), 3, {"width": 64})


def test_no_class_is_refused() -> None:
    with pytest.raises(InputError, match="fcos for 0 classes"):
        build("fcos", BackboneConfig("test_resnet", pretrained=False), 0)


def test_the_table_costs_no_import_of_torch() -> None:
    code = (
        "import sys, downstream.detection.networks as n; "
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules or len(n.DETECTORS) < 7)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
