"""Boxes of several views become one list: against loops in float64, and by hand."""

from __future__ import annotations

import math

import numpy as np
import overfit
import pytest
import torch

from downstream.detection.config import BoxTestConfig
from downstream.detection.merging import LEAST_SCORE, box_voting, merge, nms, soft_nms


def found(boxes, scores, labels=None):
    """Detections of lists; one class unless told."""
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels or [0] * len(scores), dtype=torch.int64),
    }


def drawn(rng, count, classes):
    """Boxes in clusters, whose scores have ties."""
    centres = rng.integers(0, 60, (6, 2)).astype(float)
    corner = centres[rng.integers(0, 6, count)] + rng.normal(0, 2, (count, 2))
    sides = 15 + rng.normal(0, 2, (count, 2))
    scores = rng.integers(1, 20, count) / 20
    labels = rng.integers(0, classes, count).tolist()
    return found(np.concatenate([corner, corner + sides], 1).tolist(), scores.tolist(), labels)


def rows(detections):
    return list(
        zip(
            detections["boxes"].double().tolist(),
            detections["scores"].double().tolist(),
            detections["labels"].tolist(),
            strict=True,
        )
    )


def naive_nms(rows, iou):
    """Places of the kept ones, best first, the earlier one of equals."""
    kept = []
    for i in sorted(range(len(rows)), key=lambda i: -rows[i][1]):
        box, _, label = rows[i]
        if all(rows[j][2] != label or overfit.iou(box, rows[j][0]) <= iou for j in kept):
            kept.append(i)
    return kept


def naive_vote(rows, place, iou):
    box, _, label = rows[place]
    voters = [(b, s) for b, s, c in rows if c == label and overfit.iou(b, box) >= iou]
    total = sum(s for _, s in voters)
    return [sum(b[k] * s for b, s in voters) / total for k in range(4)]


def naive_soft_nms(rows, sigma):
    left, kept = [[*row, i] for i, row in enumerate(rows)], []
    while left:
        best = max(left, key=lambda row: row[1])
        left.remove(best)
        if best[1] < LEAST_SCORE:
            break
        kept.append(best)
        for row in left:
            if row[2] == best[2]:
                row[1] *= math.exp(-(overfit.iou(row[0], best[0]) ** 2) / sigma)
    return kept[:100]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 40, 300])
def test_as_the_naive_loops(count, classes):
    rng = np.random.default_rng(count + classes)
    detections = drawn(rng, count, classes)
    listed = rows(detections)
    kept = nms(detections, 0.5)
    assert kept.tolist() == naive_nms(listed, 0.5)
    voted = box_voting(detections, kept, 0.8)
    expected = [naive_vote(listed, i, 0.8) for i in kept.tolist()]
    assert voted.dtype == torch.float64
    np.testing.assert_allclose(voted.numpy(), np.array(expected).reshape(-1, 4), rtol=1e-12)
    soft, expected = soft_nms(detections, 0.3), naive_soft_nms(listed, 0.3)
    assert soft["labels"].tolist() == [row[2] for row in expected]
    assert soft["boxes"].tolist() == [row[0] for row in expected]
    np.testing.assert_allclose(soft["scores"], [row[1] for row in expected], rtol=1e-12)


def test_voting_by_hand():
    """Two of one object, one that overlaps it half and is suppressed without a vote, another class
    in the same place, and one apart."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 6], [0, 0, 10, 10], [50, 50, 60, 60]]
    views = [found(boxes[:2], [0.9, 0.3]), found(boxes[2:], [0.8, 0.7, 0.2], [0, 1, 0])]
    merged = merge(views, BoxTestConfig(scales=[1, 2]))
    moved = (0.9 * 10 + 0.3 * 9) / 1.2
    expected = [[0, 0, 10, moved], [0, 0, 10, 10], [50, 50, 60, 60]]
    np.testing.assert_allclose(merged["boxes"], expected, rtol=1e-7)
    assert merged["boxes"].dtype == merged["scores"].dtype == torch.float32
    np.testing.assert_allclose(merged["scores"], [0.9, 0.7, 0.2], rtol=1e-7)  # kept
    assert merged["labels"].tolist() == [0, 1, 0]
    plain = merge(views, BoxTestConfig(scales=[1, 2], merge="nms"))
    assert plain["boxes"].tolist() == [boxes[0], boxes[3], boxes[4]]


def test_soft_nms_by_hand():
    """Identical boxes stay, lower; scores fall below the next object's and the order changes."""
    twice = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [30, 0, 40, 10]]
    views = [found(twice[:1], [0.9]), found(twice[1:], [0.8, 0.8, 0.5])]
    merged = merge(views, BoxTestConfig(scales=[1, 2], merge="soft_nms", soft_nms_sigma=0.5))
    once = 0.8 * math.exp(-1 / 0.5)
    np.testing.assert_allclose(
        merged["scores"], [0.9, 0.5, once, once * math.exp(-1 / 0.5)], rtol=1e-6
    )
    assert merged["boxes"][1].tolist() == [30, 0, 40, 10]
    # exp(-1 / .1) leaves less than a detection has.
    sharp = merge(views, BoxTestConfig(scales=[1, 2], merge="soft_nms", soft_nms_sigma=0.1))
    np.testing.assert_allclose(sharp["scores"], [0.9, 0.5], rtol=1e-6)


@pytest.mark.parametrize("way", ["vote", "nms", "soft_nms"])
def test_nothing_found_and_boxes_without_area_or_score(way):
    test = BoxTestConfig(scales=[1, 2], merge=way)
    empty = found([], [])
    assert [len(x) for x in merge([empty, empty], test).values()] == [0, 0, 0]
    one = found([[1, 2, 3, 4]], [0.5])
    assert merge([empty, one], test)["boxes"].tolist() == one["boxes"].tolist()
    point = found([[5, 5, 5, 5], [5, 5, 5, 5]], [0.5, 0.4])
    merged = merge([point, empty], test)
    assert merged["boxes"].tolist() == [[5, 5, 5, 5]] * 2 and merged["scores"][0] == 0.5
    zero = merge([found([[0, 0, 8, 8]], [0.0]), empty], test)
    assert zero["boxes"].tolist() == ([] if way == "soft_nms" else [[0, 0, 8, 8]])


@pytest.mark.parametrize("way", ["vote", "nms", "soft_nms"])
def test_the_hundred_best(way):
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(150)]
    scores = [(i + 1) / 200 for i in range(150)]
    views = [found(boxes[:75], scores[:75]), found(boxes[75:], scores[75:])]
    merged = merge(views, BoxTestConfig(scales=[1, 2], merge=way))
    assert merged["boxes"].tolist() == boxes[:49:-1]
    np.testing.assert_allclose(merged["scores"], scores[:49:-1], rtol=1e-7)


def test_the_first_of_equals():
    """Which view comes first decides, so that two machines agree."""
    a, b = found([[0, 0, 10, 10]], [0.5]), found([[1, 0, 11, 10]], [0.5])
    test = BoxTestConfig(scales=[1, 2], merge="nms")
    assert merge([a, b], test)["boxes"].tolist() == [[0, 0, 10, 10]]
    assert merge([b, a], test)["boxes"].tolist() == [[1, 0, 11, 10]]
