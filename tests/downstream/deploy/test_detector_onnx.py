"""Detectors as ONNX files, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from overfit import small_backbone
from torch import Tensor, nn

from downstream.deploy import onnx_detector as exporting
from downstream.deploy.onnx_detector import compare, export_onnx, tracing
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.model import build
from downstream.detection.networks import DETECTORS
from ssld.common.errors import InputError
from zoo.export.checked import TRACING_OPSET, Run

SIZE = (64, 96)
RCNN = {"channels": 32, "head_channels": 64, "anchor_sizes": [8, 16, 32, 64, 128]}
ONE_CONV = {"head_convs": 1, "anchor_sizes": [8, 16, 32, 64, 128]}
SMALL = {
    "faster_rcnn": RCNN,
    "keypoint_rcnn": {**RCNN, "keypoint_channels": [32]},
    "mask_rcnn": {**RCNN, "mask_channels": [32]},
    "retinanet": {"channels": 32, "anchor_sizes": [8, 16, 32, 64, 128]},
    "retinanet_bn": {**ONE_CONV, "channels": 32},
    "retinanet_nas_fpn": {**ONE_CONV, "channels": 32, "repeats": 1},
    "retinanet_spinenet": ONE_CONV,
    "fcos": {"channels": 64},
    "yolov3": {"width": 32},
    "yolov3_dcn": {"width": 32},
    "detr": {"num_queries": 9, "width": 32, "layers": 2, "heads": 2, "ffn_width": 32},
}
LAST = ("cls_logits", "cls_score", "heatmap.4", "output.", "class_labels_classifier", "motion")


def make(name: str) -> nn.Module:
    """A detector whose scores differ, whose deformable convolutions reach out, and whose threshold
    lies between what it finds on grey and on noise."""
    torch.manual_seed(0)
    points = Keypoints(("left", "right", "top", "é"))
    network = build(name, small_backbone(name), 3, SMALL.get(name), points)
    for key, weight in network.named_parameters():
        if any(last in key for last in LAST) and weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
        elif ("head.conv" in key or "tower.conv" in key) and weight.dim() > 1:
            nn.init.kaiming_normal_(weight)
    network.eval().score_threshold = 0.0
    with torch.no_grad():
        best = [network(x, whole())[0]["scores"].max() for x in (grey(), *noise().split(1))]
    assert min(best[1:]) > best[0] or name == "detr"
    network.score_threshold = float(best[0]) + 1e-4 if name != "detr" else max(best).item() - 1e-3
    return network


def grey() -> Tensor:
    return torch.zeros(1, 3, *SIZE)


def noise(seed: int = 5) -> Tensor:
    """[3, 3, *SIZE] noise, of large and of small grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(3, 3, SIZE[0] // 8, SIZE[1] // 8, generator=generator)
    fine = torch.randn(3, 3, *SIZE, generator=generator)
    return nn.functional.interpolate(coarse, SIZE) + fine


def whole() -> Tensor:
    return torch.tensor([SIZE])


@pytest.mark.parametrize("name", DETECTORS)
def test_onnxruntime_finds_what_pytorch_finds(name: str, tmp_path: Path) -> None:
    network = make(name).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    points = ["left", "right", "top", "é"] if name == "keypoint_rcnn" else None
    exported = export_onnx(
        network, tmp_path / "d.onnx", SIZE, ["a", "b", "ü"], keypoint_names=points
    )
    assert exported.paired > 30 and exported.missed == 0
    assert exported.max_box_px < 1e-3 and exported.max_score < 1e-5
    assert exported.max_part < 1e-3 and exported.parts_off == 0
    assert exported.parts == {"keypoint_rcnn": 4, "mask_rcnn": 1}.get(name, 0) * exported.paired
    assert [path.name for path in tmp_path.iterdir()] == ["d.onnx"]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.training
    network.eval()

    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    counts = []
    for image in (grey(), *noise().split(1)):
        with torch.no_grad():
            eager = network(image, whole())[0]
        names = ["boxes", "scores", "labels", *(eager.keys() & {"keypoints", "masks"})]
        assert {x.name for x in session.get_outputs()} == set(names) == eager.keys()
        boxes, scores, labels, *parts = session.run(names, {"images": image.numpy()})
        counts.append(len(labels))
        for found in parts:
            torch.testing.assert_close(torch.tensor(found), eager[names[3]], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(torch.tensor(boxes), eager["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(torch.tensor(scores), eager["scores"], rtol=1e-4, atol=1e-5)
        assert labels.tolist() == eager["labels"].tolist()
    assert min(counts) == 0 < max(counts)

    model = onnx.load(str(exported.path))
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["input_size"] == "3,64,96" and said["label_names"] == '["a", "b", "ü"]'
    assert said.get("keypoint_names") == (points and '["left", "right", "top", "é"]')
    assert float(said["score_threshold"]) == pytest.approx(network.score_threshold)
    operators = {node.op_type for node in model.graph.node}
    assert ("DeformConv" in operators) == (name in ("ttfnet", "yolov3_dcn"))
    assert ("RoiAlign" in operators) == name.endswith("rcnn")


class Splitting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(torch.split(x, 2, 1)[::-1], 1)


def test_a_split_is_traced_as_slices(tmp_path: Path) -> None:
    """Behind a Split, as of Res2Net, the exporter writes the proposals of Faster R-CNN wrongly."""
    x, path = torch.randn(1, 5, 3, 3), tmp_path / "s.onnx"
    with tracing():
        torch.onnx.export(Splitting(), (x,), str(path), dynamo=False, opset_version=TRACING_OPSET)
    assert "Split" not in {node.op_type for node in onnx.load(str(path)).graph.node}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert torch.equal(torch.tensor(found), x[:, [4, 2, 3, 0, 1]])
    assert torch.split.__module__ == "torch.functional"


def test_a_file_that_finds_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other box of it is a pixel off."""
    write = exporting.write_onnx

    def shifted(*args: Any, **options: Any) -> tuple[str, Run]:
        method, run = write(*args, **options)

        def off(x: Tensor) -> list[Tensor]:
            boxes, *others = run(x)
            boxes[::2] += 1
            return [boxes, *others]

        return method, off

    (tmp_path / "d.onnx").write_text("what was there")
    monkeypatch.setattr(exporting, "write_onnx", shifted)
    with pytest.raises(InputError, match="FCOS test_resnet does not find what PyTorch finds"):
        export_onnx(make("fcos"), tmp_path / "d.onnx", SIZE)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("d.onnx", "what was there")]


def test_a_size_that_is_no_multiple_of_the_stride_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images of 64 x 100 px: give multiples of 32"):
        export_onnx(make("fcos"), tmp_path / "d.onnx", (64, 100))


def test_soft_nms_is_refused_before_anything_is_traced(tmp_path: Path) -> None:
    network = nn.Module()
    network.soft_nms_sigma = 0.3  # as a RetinaNet has it
    with pytest.raises(InputError, match="Soft-NMS cannot be written .* out of the config.json"):
        export_onnx(network, tmp_path / "d.onnx", (64, 64))


def found(*rows: tuple[float, float, int]) -> dict[str, Tensor]:
    """Detections (left side, score, label) of 10 px boxes."""
    x = torch.tensor([row[0] for row in rows])
    return {
        "boxes": torch.stack([x, x * 0, x + 10, x * 0 + 10], 1).view(-1, 4),
        "scores": torch.tensor([row[1] for row in rows]),
        "labels": torch.tensor([row[2] for row in rows], dtype=torch.int64),
    }


def test_comparison_of_two_sides() -> None:
    one = found((0, 0.9, 1), (30, 0.7, 0))
    same = compare(one, found((30.01, 0.7001, 0), (0, 0.9, 1)))  # ranks do not count
    assert (same.paired, same.missed) == (2, 0)
    assert same.max_box_px == pytest.approx(0.01, abs=1e-4)
    assert same.max_score == pytest.approx(1e-4, abs=1e-6)
    assert compare(one, found((0, 0.9, 1))).missed == 1
    assert compare(one, found((0, 0.9, 0), (30, 0.7, 0))).missed == 2  # another class: one each
    assert compare(one, found((0, 0.9, 1), (31, 0.7, 0))).missed == 2
    assert compare(one, found((0, 0.9, 1), (30, 0.6, 0))).missed == 2
    assert compare(found(), found()).paired == compare(found(), found()).missed == 0
    twice = found((0, 0.9, 1), (0, 0.8, 1))  # one partner cannot serve two
    assert compare(twice, found((0, 0.9, 1))).missed == 1


@pytest.mark.parametrize("kind", ["keypoints", "masks"])
def test_comparison_of_keypoints_and_masks(kind: str) -> None:
    one, other = found((0, 0.9, 1), (30, 0.7, 0)), found((30, 0.7, 0), (0, 0.9, 1))
    one[kind] = torch.rand(2, 4, 3)
    other[kind] = one[kind].flip(0) + 1e-4
    same = compare(one, other)
    count = 8 if kind == "keypoints" else 2
    assert (same.parts, same.parts_off) == (count, 0)
    assert same.max_part == pytest.approx(1e-4, abs=1e-6)
    other[kind][0, 3, 1] += 0.5  # y of a keypoint, or a cell
    off = compare(one, other)
    assert (off.paired, off.parts, off.parts_off) == (2, count, 1)
    assert off.max_part == pytest.approx(1e-4, abs=1e-6)
    other[kind][0, 3, 1] -= 0.5
    other[kind][1, 2, 2] -= 0.01  # a score, or a cell
    assert compare(one, other).parts_off == 1
    assert compare(found(), found()).parts == 0


def test_of_two_equal_scores_either_may_be_the_one_that_is_kept() -> None:
    tied = found((0, 0.5, 0), (50, 0.5, 0))
    other = found((0, 0.5, 0), (80, 0.5, 0))
    assert (compare(tied, other).paired, compare(tied, other).missed) == (1, 0)
