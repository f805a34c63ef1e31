"""The detectors by name: all are built, learn with every parameter and find alike."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from overfit import PlainBackbone, small_backbone, triangles, whole
from torch import nn
from torchvision.ops import box_convert

from downstream.backbone.config import BackboneConfig
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.model import build, on_backbone
from downstream.detection.networks import DETECTORS, options
from ssld.common.errors import InputError

RCNN = {"channels": 32, "head_channels": 64, "rois_per_image": 16}
SMALL = {
    "faster_rcnn": RCNN,
    "keypoint_rcnn": {**RCNN, "keypoint_channels": [32]},
    "mask_rcnn": {**RCNN, "mask_channels": [32]},
    "retinanet": {"channels": 32},
    "retinanet_bn": {"channels": 32, "head_convs": 2},
    "retinanet_nas_fpn": {"channels": 32, "repeats": 2, "head_convs": 2},
    "retinanet_spinenet": {"head_convs": 2},
    "fcos": {"channels": 64},
    "yolov3": {"width": 32},
    "yolov3_dcn": {"width": 32},
    "detr": {"num_queries": 9, "width": 32, "layers": 2, "heads": 2, "ffn_width": 32},
}


KEYPOINTS = Keypoints(("top", "left", "right"), ((1, 2),), ((0, 1), (0, 2)))


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, small_backbone(name), 3, SMALL.get(name), KEYPOINTS)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_parameter_learns_and_what_is_found_has_one_form(name: str) -> None:
    network = make(name).train()
    assert network.backbone.strides == DETECTORS[name].strides and network.stride == 32
    images, targets = triangles(96, count=2)
    targets[1] = {key: value[:0] for key, value in targets[1].items()}
    sizes = torch.tensor([[96, 96], [64, 80]])
    losses = network(images, sizes, targets)
    assert all(x.dtype == torch.float32 and x.shape == (2,) for x in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    idle = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle

    network.eval().score_threshold = 0.0
    with torch.no_grad():
        for found, (h, w) in zip(network(images, sizes), sizes.tolist(), strict=True):
            parts = {"keypoints": (3, 3), "masks": (28, 28)}.get(finds := DETECTORS[name].finds)
            assert found.keys() == {"boxes", "scores", "labels", *([finds] if parts else [])}
            assert parts is None or found[finds].shape == (len(found["boxes"]), *parts)
            assert 0 < len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) <= 100
            assert (found["boxes"] <= torch.tensor([w, h, w, h])).all()
            assert found["labels"].dtype == torch.int64
        network.score_threshold = 1.0
        for found in network(images, sizes):
            assert {len(x) for x in found.values()} == {0}


@pytest.mark.parametrize("name", [x for x in DETECTORS if not x.endswith("rcnn")])
def test_an_images_losses_do_not_depend_on_which_process_has_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with half of a batch each have those of one with all of it. The R-CNNs draw
    their proposals in each process."""
    network = make(name).train()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
            module.eval()
    if name == "detr":
        for part in (*network.encoder.modules(), *network.decoder.modules()):
            part.dropout = 0.0  # of attention, too
    images, targets = triangles(96, count=4)
    targets[1] = {key: value[:0] for key, value in targets[1].items()}

    def losses(part: slice) -> dict[str, torch.Tensor]:
        return network(images[part], whole(images[part]), targets[part])

    expected = losses(slice(None))
    halves = (slice(0, 2), slice(2, 4))
    counts: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    found = []
    for mine, other in (halves, halves[::-1]):
        counts.clear()
        keep = lambda x: counts.append(x.clone())  # noqa: E731
        monkeypatch.setattr(torch.distributed, "all_reduce", keep)
        losses(other)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(counts.pop(0)))
        found.append(losses(mine))
        assert not counts
    for key, loss in expected.items():
        torch.testing.assert_close(torch.cat([half[key] for half in found]), loss)
        assert loss.mean() > 0


def test_heads_share_convolutions_and_have_norms_of_each_level() -> None:
    """As of tensorflow/tpu's `RetinanetHead`."""
    head = make("retinanet_bn").head.eval()
    for conv, norms in zip(head.class_tower.convs, head.class_tower.norms, strict=True):
        assert conv.bias is None and len({id(norm) for norm in norms}) == 5
        for i, norm in enumerate(norms):
            nn.init.constant_(norm.bias, float(i))
            nn.init.zeros_(norm.weight)
    nn.init.normal_(head.classification_head.cls_logits.weight)
    alike = [torch.randn(1, 32, 3, 3)] * 5
    levels = head(alike)["cls_logits"].split(81, 1)
    expected = head.classification_head.cls_logits
    for i, logits in enumerate(levels):
        wanted = expected(torch.full((1, 32, 3, 3), float(i))).permute(0, 2, 3, 1)
        torch.testing.assert_close(logits, wanted.reshape(1, 81, 3))


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn", "mask_rcnn", "detr"])
def test_what_is_compared_is_what_is_decided_on(name: str) -> None:
    """The best score before and after the decision, and the box that it has."""
    network: Any = make(name).eval().requires_grad_(False)
    network.score_threshold = 0.0
    images, sizes = triangles(96, count=2)[0], torch.tensor([[96, 96], [64, 80]])
    found = network(images, sizes)
    if name == "detr":
        logits, boxes = network.queries(images, sizes)
        scores = logits.softmax(-1)[..., :-1].amax(-1)  # [b, queries]
        boxes = box_convert(boxes, "cxcywh", "xyxy") * sizes.flip(1).repeat(1, 2)[:, None]
    else:
        raw = network.raw(images, sizes)
        assert sum(raw.levels) == len(raw.anchors) == raw.logits.shape[1] == raw.offsets.shape[1]
        scores = raw.logits.sigmoid().amax(-1)
        boxes = torch.stack([_decode(x, raw.anchors, (1, 1, 1, 1)) for x in raw.offsets])
    if name.endswith("rcnn"):
        proposals = network.propose(raw, sizes)
        assert all(len(x) <= 1000 for x in proposals)
        logits, offsets = network.refine(raw.maps, proposals)
        best, label = logits.softmax(-1)[:, 1:].max(-1)
        boxes = _decode(offsets[range(len(label)), label], torch.cat(proposals), (10, 10, 5, 5))
        counts = [len(x) for x in proposals]
        scores, boxes = best.split(counts), boxes.split(counts)
    for i, (h, w) in enumerate(sizes.tolist()):
        score, at = scores[i].max(0)
        torch.testing.assert_close(found[i]["scores"][0], score)
        inside = torch.minimum(boxes[i][at].clamp(min=0), torch.tensor([w, h, w, h]))
        torch.testing.assert_close(found[i]["boxes"][0], inside.float(), atol=1e-3, rtol=0)


def _decode(offsets: torch.Tensor, boxes: torch.Tensor, weights: tuple) -> torch.Tensor:
    """Boxes xyxy [n, 4] moved by offsets [n, 4] (Faster R-CNN, section 3.1.2)."""
    dx, dy, dw, dh = (offsets / torch.tensor(weights)).unbind(1)
    cx, cy, w, h = box_convert(boxes, "xyxy", "cxcywh").unbind(1)
    moved = torch.stack([cx + dx * w, cy + dy * h, w * dw.exp(), h * dh.exp()], 1)
    return box_convert(moved, "cxcywh", "xyxy")


def test_dcn_is_what_tells_the_two_yolos_apart() -> None:
    kinds = {type(m).__name__ for m in make("yolov3_dcn").modules()}
    assert "DeformableConv" in kinds
    assert "DeformableConv" not in {type(m).__name__ for m in make("yolov3").modules()}


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("retinanett", {}, "unknown detector 'retinanett', .* did you mean 'retinanet'?"),
        ("retinanet", {"anchor_size": [1]}, "no argument 'anchor_size', .*mean 'anchor_sizes'?"),
        (
            "keypoint_rcnn",
            {"mask_channels": [8]},
            "it has keypoint_channels, channels",
        ),
        ("mask_rcnn", {"num_keypoints": 3}, "it has mask_channels, channels, anchor_sizes"),
        (
            "retinanet_nas_fpn",
            {"repeat": 1},
            "it has repeats, separable, channels, activation, head_convs, .*mean 'repeats'",
        ),
        ("yolov3_dcn", {"dcn": False}, "yolov3_dcn has no argument 'dcn', it has width"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, args: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        options(name, args)


def test_an_unknown_argument_is_refused_on_a_backbone_that_is_there() -> None:
    with pytest.raises(InputError, match="fcos has no argument 'width'"):
        on_backbone("fcos", PlainBackbone((8, 16, 32)), 3, {"width": 64})


def test_keypoints_of_data_without_any_are_refused() -> None:
    config = BackboneConfig("test_resnet", pretrained=False)
    for none in (None, Keypoints(())):
        with pytest.raises(InputError, match="keypoint_rcnn finds keypoints and the data has none"):
            build("keypoint_rcnn", config, 1, None, none)


@pytest.mark.parametrize("widths", [[], 64, [64, 0], [64, "64"], [True]])
def test_widths_that_are_none_are_refused(widths: object) -> None:
    for name, key in (("keypoint_rcnn", "keypoint_channels"), ("mask_rcnn", "mask_channels")):
        with pytest.raises(InputError, match=f"{key} is .*: give the width of each convolution"):
            on_backbone(name, PlainBackbone((4, 8, 16, 32)), 3, {key: widths}, KEYPOINTS)


def test_an_unknown_activation_is_refused() -> None:
    for name in ("retinanet_bn", "retinanet_nas_fpn"):
        with pytest.raises(InputError, match="activation is 'swish': give relu or silu"):
            on_backbone(name, PlainBackbone((8, 16, 32)), 3, {"activation": "swish"})


@pytest.mark.parametrize("count", [0, 1.5, "2", True])
def test_counts_that_are_none_are_refused(count: object) -> None:
    for key in ("head_convs", "repeats"):
        with pytest.raises(InputError, match=f"{key} is {count!r}: give a whole number, 1 or more"):
            on_backbone("retinanet_nas_fpn", PlainBackbone((8, 16, 32)), 3, {key: count})


def test_no_class_is_refused() -> None:
    with pytest.raises(InputError, match="fcos for 0 classes"):
        build("fcos", BackboneConfig("test_resnet", pretrained=False), 0)


def test_the_table_costs_no_import_of_torch() -> None:
    code = (
        "import sys, downstream.detection.networks as n; "
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules or len(n.DETECTORS) < 7)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
