"""COCO's average precision, against hand-computed cases and plain loops over everything."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from downstream.detection import average_precision
from downstream.detection.average_precision import Detections, bootstrap
from downstream.detection.data.boxes import Boxes
from ssld.common.errors import InputError

ONE: Any = SimpleNamespace(num_processes=1)
SIZES = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}


def objects(*rows: tuple) -> Boxes:
    """x1, y1, x2, y2, label, crowd of each."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    sides = table[:, 2:4] - table[:, :2]
    return Boxes(
        xyxy=table[:, :4],
        labels=table[:, 4].astype(np.int64),
        crowd=table[:, 5] > 0,
        areas=sides.prod(1),
        keypoints=None,
    )


def found(*rows: tuple) -> dict[str, torch.Tensor]:
    """x1, y1, x2, y2, label, score of each."""
    table = torch.from_numpy(np.array(rows, np.float32).reshape(-1, 6))
    return {"boxes": table[:, :4], "labels": table[:, 4].long(), "scores": table[:, 5]}


def empty(truth: list[Boxes], classes: int, **changes) -> Detections:
    given = {
        "image_ids": [7 * i + 3 for i in range(len(truth))],
        "category_ids": [10 * c + 1 for c in range(classes)],
    }
    return Detections(truth, [f"class {c}" for c in range(classes)], **(given | changes))


def counted(truth: list[Boxes], predictions: list[dict], classes: int) -> Detections:
    detections = empty(truth, classes)
    for image, prediction in enumerate(predictions):
        detections.add(image, prediction)
    assert detections.reduce(ONE, False)
    return detections


def random_set(seed: int, *, images: int = 12, classes: int = 4, ties: bool = True):
    """Objects of all sizes, near ones and far ones found, some twice; crowds, images without
    either, one with more than 100 detections, a class without objects, one never predicted. With
    an odd seed all on a grid of 10 px, where overlaps are often equal or just a threshold."""
    rng = np.random.default_rng(seed)
    truth, predictions = [], []
    for image in range(images):
        count = 0 if image % 5 == 4 else rng.integers(1, 7)
        corner, side = rng.uniform(0, 200, (count, 2)), rng.uniform(8, 150, (count, 2))
        labels, crowd = rng.integers(0, classes - 1, count), rng.random(count) < 0.2
        boxes = np.concatenate([corner, corner + side], 1)
        if seed % 2:
            boxes = boxes.round(-1)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 10)
        truth.append(objects(*np.column_stack([boxes, labels, crowd])))
        near = np.repeat(boxes, 3, axis=0)
        near += rng.normal(0, 0.06, near.shape) * np.tile(side, (1, 2)).repeat(3, 0)
        many = rng.integers(0, 6) if image % 3 else 130 * (image == 3)
        corner, side = rng.uniform(0, 250, (many, 2)), rng.uniform(5, 100, (many, 2))
        boxes = np.concatenate([near, np.concatenate([corner, corner + side], 1)])
        labels = np.concatenate([labels.repeat(3), rng.integers(1, 2 if many > 99 else 4, many)])
        scores = rng.random(len(boxes))
        if ties:
            scores = np.round(scores, 1)
        labels[labels == 0] = 1  # never predicted
        if seed % 2:
            boxes = boxes.round(-1)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 10)
        chosen = rng.random(len(boxes)) < (2 if many > 99 else 0.7)
        predictions.append(found(*np.column_stack([boxes, labels, scores])[chosen]))
    return truth, predictions


def overlap(a: list[float], b: list[float], crowd: bool) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    own, other = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return both / (own if crowd else own + other - both)


def naive_ap(truth, predictions, classes, threshold, low=0.0, high=1e10) -> list[float]:
    """Of each class that has objects, as pycocotools/cocoeval.py says it, one box after another."""
    averages = []
    for label in range(classes):
        judged, positives = [], 0  # (score, hit), best first within an image
        for boxes, prediction in zip(truth, predictions, strict=True):
            there = [
                (xyxy, bool(crowd), bool(crowd) or not low <= area <= high)
                for xyxy, own, crowd, area in zip(
                    boxes.xyxy.tolist(), boxes.labels, boxes.crowd, boxes.areas, strict=True
                )
                if own == label
            ]
            there.sort(key=lambda x: x[2])
            positives += sum(not ignored for _, _, ignored in there)
            own = [i for i, x in enumerate(prediction["labels"].tolist()) if x == label]
            own.sort(key=lambda i: -float(prediction["scores"][i]))
            taken: set[int] = set()
            for i in own[:100]:
                box = prediction["boxes"][i].tolist()
                best, chosen = threshold, None
                for g, (xyxy, crowd, ignored) in enumerate(there):
                    if g in taken and not crowd:
                        continue
                    if chosen is not None and not there[chosen][2] and ignored:
                        break
                    if overlap(box, xyxy, crowd) >= best:
                        best, chosen = overlap(box, xyxy, crowd), g
                if chosen is not None:
                    taken.add(chosen)
                area = (box[2] - box[0]) * (box[3] - box[1])
                if there[chosen][2] if chosen is not None else not low <= area <= high:
                    continue
                judged.append((float(prediction["scores"][i]), chosen is not None))
        if not positives:
            continue
        judged.sort(key=lambda x: -x[0])
        curve, hits = [], 0
        for seen, (_, hit) in enumerate(judged, 1):
            hits += hit
            curve.append((hits / positives, hits / seen))
        read_off = [
            max((precision for recall, precision in curve if recall >= x), default=0.0)
            for x in np.linspace(0, 1, 101)
        ]
        averages.append(sum(read_off) / 101)
    return averages


def naive(truth, predictions, classes, **size) -> float:
    thresholds = np.linspace(0.5, 0.95, 10)
    values = [naive_ap(truth, predictions, classes, t, **size) for t in thresholds]
    return float(np.mean(values)) if values[0] else float("nan")


OBJECT = (0, 0, 100, 100, 0, 0)
HIT = (0, 0, 100, 100, 0)


@pytest.mark.parametrize(
    "there, seen, expected",
    [
        ([OBJECT], [(*HIT, 0.9)], {"ap": 1, "ap50": 1, "ap75": 1, "ap_large": 1}),
        # .62 of the object: a hit at .5, .55 and .6
        ([OBJECT], [(0, 0, 100, 62, 0, 0.9)], {"ap": 0.3, "ap50": 1, "ap75": 0}),
        ([OBJECT], [(200, 0, 300, 99, 0, 0.9), (*HIT, 0.8)], {"ap": 0.5, "ap50": 0.5}),
        ([OBJECT], [(200, 0, 300, 99, 0, 0.7), (*HIT, 0.8)], {"ap": 1}),
        # one of two found: precision is 1 at recalls 0, .01 to .50
        ([OBJECT, (200, 0, 230, 30, 0, 0)], [(*HIT, 0.5)], {"ap": 51 / 101, "ap_small": 0}),
        # the second on the same object is a miss, but at recall 1 all is said
        ([OBJECT], [(*HIT, 0.9), (*HIT, 0.8)], {"ap": 1}),
        # a crowd takes any number and asks for none
        ([OBJECT, (200, 0, 400, 200, 0, 1)], [(*HIT, 0.1), (210, 10, 240, 40, 0, 0.9),
                                              (250, 10, 280, 40, 0, 0.8)], {"ap": 1}),
        # the first overlaps both alike (.82) and takes the last, which leaves the other its own
        ([OBJECT, (20, 0, 120, 100, 0, 0)], [(10, 0, 110, 100, 0, 0.9), (*HIT, 0.8)],
         {"ap": (7 + 3 * 0.5 * 51 / 101) / 10}),
        # classes count alike: 1 and 0
        ([OBJECT, (0, 0, 50, 50, 1, 0)], [(*HIT, 0.5)], {"ap": 0.5, "ap_medium": 0}),
        ([(0, 0, 20, 20, 0, 0)], [], {"ap": 0, "ap_small": 0}),
        ([], [(*HIT, 0.5)], {}),
    ],
)  # fmt: skip
def test_by_hand(there, seen, expected):
    detections = counted([objects(*there)], [found(*seen)], 2)
    metrics = detections.metrics()
    assert metrics["images"] == 1
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=1e-12), key
    sizes = {"ap_small", "ap_medium", "ap_large"}
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2, _, crowd in there if not crowd]
    has = {
        f"ap{name}" for name, (low, high) in SIZES.items() if any(low <= a <= high for a in areas)
    }
    assert metrics.keys() & sizes == has & sizes and ("ap" in metrics) == bool(areas)
    again = bootstrap(detections.matches(), np.zeros((1, 1), np.int64))
    assert again == pytest.approx(metrics.get("ap", np.nan), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
def test_plain_loops_say_the_same(seed):
    truth, predictions = random_set(seed)
    detections = counted(truth, predictions, 4)
    metrics = detections.metrics()
    assert 0.05 < metrics["ap"] < 0.9
    for name, (low, high) in SIZES.items():
        assert metrics[f"ap{name}"] == pytest.approx(
            naive(truth, predictions, 4, low=low, high=high), abs=1e-9
        )
    at_50, at_75 = (naive_ap(truth, predictions, 4, t) for t in (0.5, 0.75))
    assert metrics["ap50"] == pytest.approx(np.mean(at_50), abs=1e-9)
    assert metrics["ap75"] == pytest.approx(np.mean(at_75), abs=1e-9)
    classes = detections.by_class()
    assert [row["ap50"] for row in classes[:3]] == pytest.approx(at_50, abs=1e-9)
    assert [row["ap"] for row in classes][3] is None and classes[3]["objects"] == 0
    assert np.mean([row["ap"] for row in classes[:3]]) == pytest.approx(metrics["ap"], abs=1e-9)
    there = np.concatenate([x.labels[~x.crowd] for x in truth])
    assert [row["objects"] for row in classes] == [int((there == c).sum()) for c in range(4)]


@pytest.mark.parametrize("seed", range(40))
def test_all_images_drawn_once_are_the_whole(seed):
    truth, predictions = random_set(100 + seed, images=5 + seed)
    detections = counted(truth, predictions, 4)
    rng = np.random.default_rng(seed)
    draws = np.stack([rng.permutation(len(truth)) for _ in range(3)])
    assert bootstrap(detections.matches(), draws) == pytest.approx(
        [detections.metrics()["ap"]] * 3, abs=1e-9
    )


def test_draws_are_sets_of_images(monkeypatch):
    truth, predictions = random_set(7, images=9, ties=False)
    matches = counted(truth, predictions, 4).matches()
    draws = np.random.default_rng(1).integers(9, size=(8, 9))
    values = bootstrap(matches, draws)
    expected = [
        naive([truth[i] for i in sorted(draw)], [predictions[i] for i in sorted(draw)], 4)
        for draw in draws
    ]
    assert values == pytest.approx(expected, abs=1e-9) and len(set(values)) > 4
    nothing = np.full((1, 9), 4)  # the image without objects
    assert np.isnan(bootstrap(matches, nothing)).all()
    monkeypatch.setattr(
        "downstream.detection.coco_protocol.CHUNK_DETECTIONS", 300
    )  # piece by piece
    assert np.array_equal(bootstrap(matches, draws), values)


def both(monkeypatch, parts: list[Detections], cut_short=(False, False)) -> list[bool]:
    """`reduce` of two processes."""
    sent = [(short, dict(part._predicted)) for short, part in zip(cut_short, parts, strict=True)]
    monkeypatch.setattr(average_precision, "gather_object", lambda _: sent)
    two: Any = SimpleNamespace(num_processes=2)
    return [part.reduce(two, short) for short, part in zip(cut_short, parts, strict=True)]


def test_two_processes_are_one_to_the_last_digit(monkeypatch):
    truth, predictions = random_set(3, images=20)
    one, parts = counted(truth, predictions, 4), [empty(truth, 4) for _ in range(2)]
    for image in reversed(range(20)):
        parts[image % 2].add(image, predictions[image])
    assert both(monkeypatch, parts) == [True, True]
    for part in parts:
        assert part.metrics() == one.metrics() and part.by_class() == one.by_class()
        mine, whole = part.matches(), one.matches()
        assert all(np.array_equal(mine[key], whole[key]) for key in whole)


def test_each_image_once(monkeypatch):
    truth, predictions = random_set(3, images=4)
    part = empty(truth, 4)
    for image in range(3):
        part.add(image, predictions[image])
    with pytest.raises(InputError, match=r"1 of 4 images were evaluated twice \(2 \(id 17\)\)"):
        part.add(2, predictions[2])
    with pytest.raises(InputError, match=r"1 of 4 images were not evaluated \(3 \(id 24\)\)"):
        part.reduce(ONE, False)
    with pytest.raises(InputError, match="3 of 4 images were evaluated twice"):
        both(monkeypatch, [part, part])
    assert not part.reduce(ONE, True) and part.metrics()["images"] == 3
    assert both(monkeypatch, [part, empty(truth, 4)], (False, True)) == [False, False]
    some = empty(truth, 4, expected=[0, 2])
    some.add(2, predictions[2])
    some.add(0, predictions[0])
    assert some.reduce(ONE, False) and some.images.tolist() == [0, 2]


def test_an_unreadable_image_does_not_count():
    truth, predictions = random_set(3, images=6)
    detections = empty(truth, 4)
    for image in range(5):
        detections.add(image, predictions[image])
    detections.leave_out(5)
    assert detections.reduce(ONE, False)
    assert detections.metrics() == counted(truth[:5], predictions[:5], 4).metrics()
    assert detections.images.tolist() == list(range(5))
    assert len(detections.matches()["objects"]) == 5


@pytest.mark.parametrize(
    "row", [(*HIT, float("nan")), (0, 0, float("inf"), 9, 0, 0.5), (9, 0, 5, 9, 0, 0.5)]
)
def test_what_is_no_box_is_refused(row):
    with pytest.raises(InputError, match="image 0 .*not finite, or a box ends before it begins"):
        empty([objects(OBJECT)], 1).add(0, found(row))


def test_predictions_are_coco_results(tmp_path):
    truth, predictions = random_set(5)
    detections = counted(truth, predictions, 4)
    file = tmp_path / "predictions.json"
    detections.save(file)
    first = json.loads(file.read_text())[0]
    x1, y1, x2, y2 = predictions[0]["boxes"][0].double().tolist()
    assert first == {
        "image_id": 3,
        "category_id": 10 * int(predictions[0]["labels"][0]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": float(predictions[0]["scores"][0]),
    }
    again = empty(truth, 4)
    again.load(file)
    assert again.reduce(ONE, False) and again.metrics() == detections.metrics()
    mine, whole = again.matches(), detections.matches()
    assert all(np.array_equal(mine[key], whole[key]) for key in whole)
    with pytest.raises(InputError, match="twice"):
        again.load(file)


def test_a_class_that_the_annotations_do_not_know_is_not_written(tmp_path):
    detections = empty([objects(OBJECT)], 2, category_ids=[5, -1])
    detections.add(0, found((*HIT, 0.5), (0, 0, 9, 9, 1, 0.9)))
    detections.save(tmp_path / "predictions.json")
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [row["category_id"] for row in written] == [5]


@pytest.mark.parametrize(
    "text, said",
    [
        ("[", "cannot be read"),
        ("{}", "not a list"),
        ('[{"image_id": 4, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "result 0.*4"),
        ('[{"image_id": 3, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]', "result 0.*2"),
        ('[{"image_id": 3, "category_id": 1, "bbox": [0, 0, 1], "score": 1}]', "result 0"),
        ('[{"image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1]}]', "result 0.*score"),
        ('[{"image_id": 3, "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}]', "no box"),
        ("[3]", "result 0"),
        (None, "cannot be read"),
    ],
)
def test_damaged_predictions_are_one_sentence(tmp_path, text, said):
    file = tmp_path / "predictions.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        empty([objects(OBJECT)], 1).load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
