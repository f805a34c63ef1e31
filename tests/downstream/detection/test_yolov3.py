"""YOLOv3's targets, losses and decoding against numbers worked out by hand and float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
from overfit import iou
from painted_shapes import TinyBackbone, overfit, painted
from torch import Tensor, nn

from downstream.detection.heads.yolov3 import (
    YOLOv3,
    decode_boxes,
    grid,
    yolov3_losses,
    yolov3_targets,
)
from ssld.common.errors import InputError

ANCHORS = [(10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119)]
ANCHORS += [(116, 90), (156, 198), (373, 326)]
MAPS = [(12, 20), (6, 10), (3, 5)]  # of 96 x 160 px
COUNT = 3 * (12 * 20 + 6 * 10 + 3 * 5)


def place(anchor: int, y: int, x: int) -> int:
    """Number of a prediction in an image of 96 x 160 px."""
    before = 3 * sum(h * w for h, w in MAPS[: anchor // 3])
    h, w = MAPS[anchor // 3]
    return before + (anchor % 3 * h + y) * w + x


def target(*rows: list[float], weights: list[float] | None = None) -> dict[str, Tensor]:
    """Rows x1, y1, x2, y2, label."""
    values = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    found = {"boxes": values[:, :4], "labels": values[:, 4].long()}
    return found if weights is None else {**found, "weights": torch.tensor(weights)}


def test_a_target_by_hand():
    """32 x 60 px about (36, 54) is twice the second anchor and almost the fourth: at stride 16 in
    the cell (2, 3), a quarter and three eighths from its corner."""
    found = yolov3_targets([target(), target([20, 24, 52, 84, 2])], 4, MAPS)
    assert found.places.tolist() == [COUNT + place(3, 3, 2)]
    torch.testing.assert_close(found.xy, torch.tensor([[0.25, 0.375]]))
    expected = torch.tensor([[math.log(32 / 30), math.log(60 / 61)]])
    torch.testing.assert_close(found.wh, expected, atol=1e-6, rtol=1e-5)
    assert found.classes.tolist() == [[0, 0, 1, 0]] and found.weights.tolist() == [1]
    torch.testing.assert_close(found.scales, torch.tensor([2 - 32 * 60 / (96 * 160)]))


def test_of_two_objects_on_one_anchor_and_cell_the_last_is_learned_with_both_classes():
    rows = [[40, 40, 50, 53, 1], [41, 41, 51, 54, 0]]
    found = yolov3_targets([target(*rows, weights=[0.3, 0.6])], 3, MAPS)
    assert found.places.tolist() == [place(0, 5, 5)]
    torch.testing.assert_close(found.xy, torch.tensor([[46 / 8 - 5, 47.5 / 8 - 5]]))
    assert found.classes.tolist() == [[1, 1, 0]]
    torch.testing.assert_close(found.weights, torch.tensor([0.6]))


def test_objects_without_area_or_weight_are_left_out():
    one = target([5, 5, 5, 9, 0], [5, 5, 15, 18, 0], [40, 40, 60, 60, 1], weights=[1.0, 0.0, 0.5])
    found = yolov3_targets([one], 2, MAPS)
    assert found.weights.tolist() == [0.5] and found.classes.tolist() == [[0, 1]]


def naive_targets(targets: list[dict[str, Tensor]], classes: int) -> Tensor:
    """As PaddleDetection's Gt2YoloTarget: box after box into [b, n, x y w h scale weight class]."""
    out = torch.zeros(len(targets), COUNT, 6 + classes, dtype=torch.float64)
    for i, one in enumerate(targets):
        weights = one.get("weights", torch.ones(len(one["labels"]))).double().tolist()
        rows = zip(one["boxes"].double().tolist(), one["labels"].tolist(), weights, strict=True)
        for (x1, y1, x2, y2), label, weight in rows:
            w, h = x2 - x1, y2 - y1
            overlaps = [iou([0, 0, w, h], [0, 0, *anchor]) for anchor in ANCHORS]
            best = overlaps.index(max(overlaps))
            stride = (8, 16, 32)[best // 3]
            cx, cy = (x1 + x2) / 2 / stride, (y1 + y2) / 2 / stride
            row = out[i, place(best, int(cy), int(cx))]
            sides = [math.log(w / ANCHORS[best][0]), math.log(h / ANCHORS[best][1])]
            wanted = [cx - int(cx), cy - int(cy), *sides, 2 - w * h / (96 * 160), weight]
            row[:6] = torch.tensor(wanted, dtype=torch.float64)
            row[6 + label] = 1
    return out


def scattered(counts: list[int], classes: int) -> list[dict[str, Tensor]]:
    """Boxes of all sizes, the second image's with weights; the fourth has two in one place."""
    generator = torch.Generator().manual_seed(3)
    targets = []
    for n in counts:
        sides = torch.tensor([160.0, 96.0]) * torch.rand(n, 2, generator=generator).pow(2) + 2
        sides = torch.minimum(sides, torch.tensor([160.0, 96.0]))
        corner = torch.rand(n, 2, generator=generator) * (torch.tensor([160.0, 96.0]) - sides)
        labels = torch.randint(classes, (n,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + sides], dim=1), "labels": labels})
    targets[1]["weights"] = torch.rand(counts[1], generator=generator) * 0.9 + 0.05
    targets[3]["boxes"][-1] = targets[3]["boxes"][0] + 0.01
    return targets


def test_targets_against_a_loop():
    targets = scattered([12, 7, 0, 40], 3)
    found, expected = yolov3_targets(targets, 3, MAPS), naive_targets(targets, 3)
    dense = torch.zeros(4 * COUNT, 9)
    parts = (found.xy, found.wh, found.scales[:, None], found.weights[:, None], found.classes)
    dense[found.places] = torch.cat(parts, dim=1)
    assert len(found.places) == (expected[..., 5] > 0).sum()
    torch.testing.assert_close(dense.view(4, COUNT, 9).double(), expected, rtol=1e-4, atol=1e-5)


def naive_decode(row: list[float], anchor: int, y: int, x: int) -> list[float]:
    stride = (8, 16, 32)[anchor // 3]
    cx = stride * (x + 1 / (1 + math.exp(-row[0])))
    cy = stride * (y + 1 / (1 + math.exp(-row[1])))
    w, h = math.exp(row[2]) * ANCHORS[anchor][0], math.exp(row[3]) * ANCHORS[anchor][1]
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def every_place() -> list[tuple[int, int, int]]:
    return [
        (anchor, y, x)
        for anchor in range(9)
        for y in range(MAPS[anchor // 3][0])
        for x in range(MAPS[anchor // 3][1])
    ]


def test_boxes_of_all_predictions_against_a_loop():
    outputs = torch.randn(1, COUNT, 4, generator=torch.Generator().manual_seed(0))
    expected = [naive_decode(outputs[0, place(*p)].tolist(), *p) for p in every_place()]
    found = decode_boxes(outputs, grid(MAPS, outputs.device))[0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-3)


def cross_entropy(logit: float, wanted: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)


def naive_losses(
    outputs: Tensor, targets: list[dict[str, Tensor]]
) -> tuple[list[dict[str, float]], int]:
    """Each image's losses, and how many predictions were not told that they are wrong."""
    wanted = naive_targets(targets, outputs.shape[2] - 5)
    totals, ignored = [], 0
    for i, one in enumerate(targets):
        total = dict.fromkeys(("xy", "wh", "objectness", "classes"), 0.0)
        totals.append(total)
        for number, p in enumerate(every_place()):
            row, want = outputs[i, number].double().tolist(), wanted[i, number].tolist()
            scale, weight = want[4:6]
            if weight == 0:
                box = naive_decode(row, *p)
                best = max((iou(box, other) for other in one["boxes"].tolist()), default=0)
                total["objectness"] += cross_entropy(row[4], 0) if best <= 0.7 else 0
                ignored += best > 0.7
                continue
            total["objectness"] += weight * cross_entropy(row[4], 1)
            for j in range(2):
                total["xy"] += weight * scale * cross_entropy(row[j], want[j])
                total["wh"] += weight * scale * abs(row[2 + j] - want[2 + j])
            for j, value in enumerate(want[6:]):
                total["classes"] += weight * cross_entropy(row[5 + j], value)
    return totals, ignored


def test_losses_against_a_loop():
    targets = scattered([6, 5, 0, 9], 3)
    targets[0] = target([49, 33.5, 111, 78.5, 1])  # an anchor between cells: two predict it
    outputs = torch.randn(4, COUNT, 8, generator=torch.Generator().manual_seed(1)) / 2
    outputs[0] /= 10
    expected, ignored = naive_losses(outputs, targets)
    found = yolov3_losses(outputs, MAPS, targets)
    assert expected[2]["xy"] == 0  # no object
    for i, one in enumerate(expected):
        assert {k: v[i].item() for k, v in found.items()} == pytest.approx(one, rel=1e-5)
    assert ignored > 0


def test_a_prediction_like_an_object_is_not_told_that_it_is_wrong():
    outputs = torch.zeros(1, COUNT, 6)
    outputs[..., 4] = -20.0  # nothing anywhere, which costs nothing
    neighbour = place(3, 3, 3)
    outputs[0, neighbour, 4] = 5.0
    one = target([41, 25, 71, 86, 0])  # the fourth anchor about (56, 55.5), which lies in (3, 3)
    own = yolov3_targets([one], 1, MAPS).places.item()
    assert own == neighbour
    moved = target([41 - 10, 25, 71 - 10, 86, 0])  # its centre is now in the cell (2, 3)
    for shift, cost in ((0.0, cross_entropy(5, 0)), (-6.0, 0.0)):
        outputs[0, neighbour, 0] = shift  # at -6 the box lies 8 px further left: IoU 28 / 32
        loss = yolov3_losses(outputs, MAPS, [moved])["objectness"].item()
        assert loss == pytest.approx(20 + cost, rel=1e-5)  # 20: its own cell says no


def naive_nms(boxes: Tensor, scores: Tensor) -> list[tuple[float, int, int]]:
    """Per class the best first, dropping those that it overlaps more than .45; best 100."""
    kept = []
    for label in range(scores.shape[1]):
        order = scores[:, label].argsort(descending=True).tolist()
        chosen: list[int] = []
        for i in order:
            clear = all(iou(boxes[i].tolist(), boxes[j].tolist()) <= 0.45 for j in chosen)
            if scores[i, label] > 0.01 and clear:
                chosen.append(i)
        kept += [(scores[i, label].item(), label, i) for i in chosen]
    return sorted(kept, reverse=True)[:100]


def test_selection_against_a_loop():
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(150, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 5 + torch.rand(150, 2, generator=generator) * 60], dim=1)
    scores = torch.rand(150, 3, generator=generator).pow(6)
    found = YOLOv3(TinyBackbone((8, 16, 32)), 3, width=8).select(boxes, scores)
    expected = naive_nms(boxes, scores)
    assert len(expected) == 100 or min(e[0] for e in expected) > 0.01
    assert found["scores"].tolist() == [e[0] for e in expected]
    assert found["labels"].tolist() == [e[1] for e in expected]
    assert torch.equal(found["boxes"], boxes[[e[2] for e in expected]])


def test_scores_of_more_than_a_hundredth_are_kept():
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    scores = torch.tensor([[0.0099, 0.0], [0.0, 0.0101], [0.5, 0.0]])
    found = YOLOv3(TinyBackbone((8, 16, 32)), 2, width=8).select(boxes, scores)
    assert found["labels"].tolist() == [0, 1] and torch.equal(found["boxes"], boxes[[2, 1]])
    empty = YOLOv3(TinyBackbone((8, 16, 32)), 2, width=8).select(boxes, scores / 100)
    assert {k: tuple(v.shape) for k, v in empty.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }


def test_found_boxes_are_within_their_picture():
    torch.manual_seed(0)
    network = YOLOv3(TinyBackbone((8, 16, 32)), 2, width=8).eval()
    sizes = torch.tensor([[64, 40], [50, 64]])
    with torch.no_grad():
        found = network(torch.randn(2, 3, 64, 64), sizes)
    for one, (h, w) in zip(found, sizes.tolist(), strict=True):
        assert 0 < len(one["boxes"]) <= 100 and one["boxes"].min() >= 0
        assert one["boxes"][:, 2].max() <= w and one["boxes"][:, 3].max() <= h
        assert (one["boxes"][:, 2:] > one["boxes"][:, :2]).all()


def test_scores_are_objectness_times_class():
    network = YOLOv3(TinyBackbone((8, 16, 32)), 2, width=8)
    outputs = torch.randn(1, COUNT, 7)
    _, scores = network.decode(outputs, MAPS, torch.tensor([[96, 160]]))
    expected = outputs[..., 4:5].sigmoid() * outputs[..., 5:].sigmoid()
    assert scores.shape == (1, COUNT, 2) and torch.equal(scores, expected)


class Numbered(nn.Module):
    """In the place of an output convolution: says channel, row and column of each value."""

    def forward(self, x: Tensor) -> Tensor:
        channel, y, x = (torch.arange(n) for n in (21, *x.shape[2:]))
        return (channel[:, None, None] * 10000 + y[:, None] * 100 + x)[None].float()


def test_outputs_lie_at_their_places():
    network = YOLOv3(TinyBackbone((8, 16, 32)), 2, width=8).eval()
    network.output = nn.ModuleList(Numbered() for _ in range(3))
    outputs, maps = network.raw(torch.zeros(1, 3, 96, 160))
    assert maps == MAPS and outputs.shape == (1, COUNT, 7)
    for anchor, y, x in every_place():
        expected = [(anchor % 3 * 7 + k) * 10000 + y * 100 + x for k in range(7)]
        assert outputs[0, place(anchor, y, x)].tolist() == expected


@pytest.mark.parametrize("dcn", [False, True])
def test_images_without_boxes_give_finite_losses_and_gradients(dcn):
    torch.manual_seed(0)
    network = YOLOv3(TinyBackbone((8, 16, 32)), 2, dcn=dcn, width=8)
    losses = network(torch.randn(2, 3, 64, 64), torch.full((2, 2), 64), [target(), target()])
    assert all((losses[name] == 0).all() for name in ("xy", "wh", "classes"))
    sum(losses.values()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_losses_are_float32_also_within_autocast():
    torch.manual_seed(0)
    network = YOLOv3(TinyBackbone((8, 16, 32)), 3, dcn=True, width=8)
    images, targets = painted()
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images, torch.full((4, 2), 64), targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite().all() for loss in losses.values())


def test_dcn_starts_as_the_plain_network():
    networks = []
    for dcn in (False, True):
        torch.manual_seed(0)
        networks.append(YOLOv3(TinyBackbone((8, 16, 32)), 2, dcn=dcn, width=8).eval())
    plain, deformable = networks
    missing, unexpected = deformable.load_state_dict(plain.state_dict(), strict=False)
    names = {f"backbone.stages.32.{i}.motion.{p}" for i in (0, 3) for p in ("weight", "bias")}
    assert set(missing) == names and not unexpected
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = plain.raw(images)[0]
        torch.testing.assert_close(deformable.raw(images)[0], expected, rtol=1e-5, atol=1e-5)


def test_another_pyramid_is_refused():
    with pytest.raises(InputError, match=r"strides \(8, 16, 32\) but the backbone has \(4, 8"):
        YOLOv3(TinyBackbone((4, 8, 16, 32)), 2)


@pytest.mark.parametrize("dcn", [False, True])
def test_overfits_four_images(dcn):
    torch.manual_seed(0)
    network = YOLOv3(TinyBackbone((8, 16, 32)), 3, dcn=dcn, width=64)
    losses, ap50 = overfit(network, steps=90, lr=0.005)
    assert ap50 > 0.95 and losses[-1] < losses[0] / 5
