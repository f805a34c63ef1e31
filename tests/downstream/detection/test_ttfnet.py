"""TTFNet's targets, losses and decoding against numbers worked out by hand and loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from painted_shapes import TinyBackbone, overfit, painted
from torch import Tensor

from downstream.detection.heads.ttfnet import (
    TTFNet,
    TTFNetTargets,
    box_loss,
    heatmap_loss,
    ttfnet_targets,
)
from ssld.common.errors import InputError


def target(*rows: list[float]) -> dict[str, Tensor]:
    """Rows x1, y1, x2, y2, label."""
    values = torch.tensor(rows, dtype=torch.float32).view(-1, 5)
    return {"boxes": values[:, :4], "labels": values[:, 4].long()}


def spread(found: TTFNetTargets, b: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Boxes [b, h, w, 4] and weights [b, h, w] of all cells, 0 where nothing is learned."""
    boxes, weights = torch.zeros(b * h * w, 4), torch.zeros(b * h * w)
    assert len(found.cells.unique()) == len(found.cells)
    boxes[found.cells], weights[found.cells] = found.boxes, found.weights
    return boxes.view(b, h, w, 4), weights.view(b, h, w)


def test_targets_of_one_box_by_hand():
    """16 x 8 px at stride 4 is 4 x 2 cells: radii int(2 * .54) = 1 and int(1 * .54) = 0, sigma of
    the first (2 + 1) / 6 = .5, so that its neighbours have exp(-1 / (2 * .25)) = exp(-2)."""
    found = ttfnet_targets([target([4, 4, 20, 12, 1])], 2, (8, 8), 4)
    expected = torch.zeros(1, 2, 8, 8)
    expected[0, 1, 2, 2:5] = torch.tensor([math.exp(-2), 1, math.exp(-2)])
    torch.testing.assert_close(found.heatmap, expected)
    boxes, weights = spread(found, 1, 8, 8)
    assert torch.equal(boxes[0, 2, 2:5], torch.tensor([[4.0, 4, 20, 12]]).expand(3, 4))
    share = expected[0, 1, 2] / (1 + 2 * math.exp(-2))
    expected_weights = torch.zeros(1, 8, 8)
    expected_weights[0, 2] = share * math.log(17 * 9)
    torch.testing.assert_close(weights, expected_weights)


def test_the_smaller_of_two_boxes_has_the_cells_and_the_larger_is_not_made_up_for():
    large, small = [0, 0, 32, 32, 0], [12, 12, 20, 20, 1]
    alone = spread(ttfnet_targets([target(large)], 2, (8, 8), 4), 1, 8, 8)[1]
    for rows in ([large, small], [small, large]):
        boxes, weights = spread(ttfnet_targets([target(*rows)], 2, (8, 8), 4), 1, 8, 8)
        assert boxes[0, 4, 4].tolist() == small[:4] and boxes[0, 4, 5].tolist() == large[:4]
        assert weights[0, 4, 4] == pytest.approx(math.log(81))  # radius 0: all in one cell
        rest = weights.sum().item() - math.log(81)
        assert rest == pytest.approx(math.log(33 * 33) - alone[0, 4, 4].item(), rel=1e-5)


def naive_targets(
    targets: list[dict[str, Tensor]], classes: int, h: int, w: int, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As the references do it: box after box, large ones first, each drawn on a map of its own."""
    heatmap = torch.zeros(len(targets), classes, h, w, dtype=torch.float64)
    boxes = torch.zeros(len(targets), h, w, 4, dtype=torch.float64)
    weights = torch.zeros(len(targets), h, w, dtype=torch.float64)
    for i, one in enumerate(targets):
        rows = zip(one["boxes"].double().tolist(), one["labels"].tolist(), strict=True)
        for box, label in sorted(
            rows, key=lambda r: -(r[0][2] - r[0][0] + 1) * (r[0][3] - r[0][1] + 1)
        ):
            x1, x2 = (min(max(v / stride, 0), w - 1) for v in box[::2])
            y1, y2 = (min(max(v / stride, 0), h - 1) for v in box[1::2])
            rx, ry = int((x2 - x1) / 2 * 0.54), int((y2 - y1) / 2 * 0.54)
            cx, cy = int((box[0] + box[2]) / 2 / stride), int((box[1] + box[3]) / 2 / stride)
            drawn = torch.zeros(h, w, dtype=torch.float64)
            for y in range(max(cy - ry, 0), min(cy + ry, h - 1) + 1):
                for x in range(max(cx - rx, 0), min(cx + rx, w - 1) + 1):
                    far = ((x - cx) / ((2 * rx + 1) / 6)) ** 2 + (
                        (y - cy) / ((2 * ry + 1) / 6)
                    ) ** 2
                    drawn[y, x] = math.exp(-far / 2)
            heatmap[i, label] = torch.maximum(heatmap[i, label], drawn)
            boxes[i][drawn > 0] = torch.tensor(box, dtype=torch.float64)
            area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
            weights[i][drawn > 0] = (math.log(area) * drawn / drawn.sum())[drawn > 0]
    return heatmap, boxes, weights


def scattered(counts: list[int], h_px: int, w_px: int, classes: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    targets = []
    for n in counts:
        corners = torch.rand(n, 2, 2, generator=generator) * torch.tensor([w_px, h_px])
        low, high = corners.amin(1), corners.amax(1)
        boxes = torch.cat([low, torch.maximum(high, low + 1)], dim=1)
        labels = torch.randint(classes, (n,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return targets


def test_targets_against_a_loop():
    targets = scattered([9, 0, 1, 30], 80, 112, 3)
    targets[0]["boxes"][0] = torch.tensor([0.0, 0, 112, 80])  # the whole picture
    targets[0]["boxes"][1] = torch.tensor([111.0, 79, 112, 80])  # its last pixel
    targets[3]["boxes"][1] = targets[3]["boxes"][0]  # the same box twice, of two classes
    targets[3]["labels"][:2] = torch.tensor([2, 0])
    found = ttfnet_targets(targets, 3, (20, 28), 4)
    heatmap, boxes, weights = naive_targets(targets, 3, 20, 28, 4)
    torch.testing.assert_close(found.heatmap.double(), heatmap, rtol=1e-5, atol=1e-6)
    found_boxes, found_weights = spread(found, 4, 20, 28)
    assert torch.equal(found_boxes.double(), boxes)
    torch.testing.assert_close(found_weights.double(), weights, rtol=1e-5, atol=1e-6)


def test_heatmap_loss_against_a_loop():
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 2, 5, 4, dtype=torch.float64)
    wanted = torch.rand(2, 2, 5, 4, dtype=torch.float64)
    wanted[0, 1, 2, 3] = wanted[1, 0, 0, 0] = wanted[1, 1, 4, 3] = 1
    totals = [0.0, 0.0]
    for i, (image, its) in enumerate(zip(logits, wanted, strict=True)):
        for x, y in zip(image.flatten().tolist(), its.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            at_peak, elsewhere = (1 - p) ** 2 * math.log(p), (1 - y) ** 4 * p**2 * math.log(1 - p)
            totals[i] -= at_peak if y == 1 else elsewhere
    expected = [2 * total / 3 for total in totals]  # three peaks; the mean is that of the batch
    assert heatmap_loss(logits, wanted).tolist() == pytest.approx(expected, rel=1e-12)


def giou(a: list[float], b: list[float]) -> float:
    """arXiv 1902.09630, algorithm 1, for boxes that have an area."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


def test_box_loss_against_a_loop():
    targets = scattered([5, 0, 8], 48, 64, 1)
    found = ttfnet_targets(targets, 1, (12, 16), 4)
    generator = torch.Generator().manual_seed(2)
    distances = 20 * torch.rand(3, 4, 12, 16, generator=generator) + 1
    _, boxes, weights = naive_targets(targets, 1, 12, 16, 4)
    totals = [0.0] * 3
    for i, y, x in (weights > 0).nonzero().tolist():
        left, top, right, bottom = distances[i, :, y, x].double().tolist()
        predicted = [4 * x - left, 4 * y - top, 4 * x + right, 4 * y + bottom]
        totals[i] += weights[i, y, x].item() * (1 - giou(predicted, boxes[i, y, x].tolist()))
    expected = [3 * total / (weights.sum().item() + 1e-4) for total in totals]
    assert expected[1] == 0
    assert box_loss(distances, found).tolist() == pytest.approx(expected, rel=1e-4)


def test_losses_of_a_batch_are_those_of_its_maps_with_boxes_five_times():
    targets = scattered([3, 5], 64, 64, 2)
    torch.manual_seed(0)
    network = TTFNet(TinyBackbone((4, 8, 16, 32)), 2)
    heatmap, distances = torch.randn(2, 2, 16, 16), 30 * torch.rand(2, 4, 16, 16)
    network.raw = lambda images: (heatmap, distances)
    losses = network(torch.zeros(2, 3, 64, 64), torch.full((2, 2), 64), targets)
    wanted = ttfnet_targets(targets, 2, (16, 16), 4)
    assert torch.equal(losses["heatmap"], heatmap_loss(heatmap, wanted.heatmap))
    assert torch.equal(losses["boxes"], 5 * box_loss(distances, wanted))


def test_decoding_by_hand():
    network = TTFNet(TinyBackbone((4, 8, 16, 32)), 2)
    heatmap = torch.full((2, 2, 8, 8), -9.0)
    heatmap[0, 0, 2, 3], heatmap[0, 0, 2, 4] = 2.0, 1.0  # the second is below its neighbour
    heatmap[0, 1, 2, 4] = 3.0  # of another class: stays
    heatmap[0, 0, 7, 7] = -1.0
    heatmap[1, 1, 5, 0] = -4.0  # .018, above .01
    heatmap[1, 0, 0, 0] = -5.0  # .0067, below
    distances = torch.tensor([6.0, 3, 10, 20]).view(1, 4, 1, 1).repeat(2, 1, 8, 8)
    network.raw = lambda images: (heatmap, distances)
    first, second = network(torch.zeros(2, 3, 32, 32), torch.tensor([[32, 32], [24, 30]]))
    assert first["labels"].tolist() == [1, 0, 0] and second["labels"].tolist() == [1]
    sigmoids = [1 / (1 + math.exp(-v)) for v in (3, 2, -1)]
    assert first["scores"].tolist() == pytest.approx(sigmoids)
    assert first["boxes"].tolist() == [[10, 5, 26, 28], [6, 5, 22, 28], [22, 25, 32, 32]]
    assert second["boxes"].tolist() == [[0, 17, 10, 24]]  # cut to the picture of 24 x 30


def test_most_detections_are_100_and_padding_holds_none():
    torch.manual_seed(0)
    network = TTFNet(TinyBackbone((4, 8, 16, 32)), 3)
    heatmap, distances = torch.randn(1, 3, 16, 16), torch.full((1, 4, 16, 16), 4.0)
    network.raw = lambda images: (heatmap, distances)
    (found,) = network(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 20]]))
    assert 0 < len(found["scores"]) <= 100
    assert torch.equal(found["scores"], found["scores"].sort(descending=True).values)
    assert (
        found["boxes"][:, ::2].max() <= 20 and (found["boxes"][:, 2] > found["boxes"][:, 0]).all()
    )


def test_images_without_boxes_give_finite_losses_and_gradients():
    torch.manual_seed(0)
    network = TTFNet(TinyBackbone((4, 8, 16, 32)), 2)
    losses = network(torch.randn(2, 3, 64, 64), torch.full((2, 2), 64), [target(), target()])
    assert (losses["boxes"] == 0).all()
    assert all(0 < loss < math.inf for loss in losses["heatmap"].tolist())
    sum(losses.values()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_losses_are_float32_also_within_autocast():
    torch.manual_seed(0)
    network = TTFNet(TinyBackbone((4, 8, 16, 32)), 3)
    images, targets = painted()
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images, torch.full((4, 2), 64), targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite().all() for loss in losses.values())


def test_starts_with_rare_objects_of_16_px_to_each_side():
    torch.manual_seed(0)
    heatmap, distances = TTFNet(TinyBackbone((4, 8, 16, 32)), 3).raw(torch.randn(2, 3, 64, 64))
    assert heatmap.shape == (2, 3, 16, 16) and distances.shape == (2, 4, 16, 16)
    torch.testing.assert_close(
        heatmap.sigmoid(), torch.full((2, 3, 16, 16), 0.01), rtol=0.1, atol=0
    )
    torch.testing.assert_close(distances, torch.full((2, 4, 16, 16), 16.0), rtol=0.05, atol=0)


def test_another_pyramid_is_refused():
    with pytest.raises(InputError, match=r"strides \(4, 8, 16, 32\) but the backbone has \(8, 16"):
        TTFNet(TinyBackbone((8, 16, 32)), 2)


def test_overfits_four_images():
    torch.manual_seed(0)
    losses, ap50 = overfit(TTFNet(TinyBackbone((4, 8, 16, 32)), 3), steps=70, lr=0.002)
    assert ap50 > 0.95 and losses[-1] < losses[0] / 3
