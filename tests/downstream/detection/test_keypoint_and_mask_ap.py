"""AP of keypoints and of instance masks, against plain loops in float64, and what files say."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import mask

from downstream.detection import oks
from downstream.detection.average_precision import Detections, bootstrap
from downstream.detection.coco_protocol import Similarity, _assign
from downstream.detection.data.boxes import Boxes
from downstream.detection.pasting import paste
from ssld.common.errors import InputError

ONE: Any = SimpleNamespace(num_processes=1)
SIGMAS = (0.025, 0.05, 0.1, 0.2)
KEYPOINTS, MASKS = Similarity("keypoints", SIGMAS), Similarity("masks")
SIZE = (200, 240)
AREAS = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
Set = tuple[list[Boxes], list[dict[str, torch.Tensor]]]


def counted(truth: list[Boxes], predictions: list[dict], similarity: Similarity) -> Detections:
    detections = Detections(
        truth, ["a", "b", "c"], similarity=similarity, sizes=[SIZE] * len(truth),
        image_ids=[7 * i + 3 for i in range(len(truth))], category_ids=[1, 11, 21],
    )  # fmt: skip
    for image, prediction in enumerate(predictions):
        detections.add(image, prediction)
    assert detections.reduce(ONE, False)
    return detections


def random_set(seed: int, images: int = 14, ties: bool = True) -> Set:
    """Objects with keypoints and masks, near and far ones found, some twice, with scores that are
    often equal; crowds, objects without keypoints, a class without objects, images without either,
    one with over 20 detections. The area is not the box's."""
    rng = np.random.default_rng(seed)
    truth, predictions = [], []
    for image in range(images):
        count = 0 if image % 5 == 4 else int(rng.integers(1, 6))
        low, side = rng.uniform(0, 90, (count, 2)), rng.uniform(20, 140, (count, 2))
        points = low[:, None] + rng.random((count, 4, 2)) * side[:, None]
        seen = rng.integers(0, 3, (count, 4, 1)) * (rng.random((count, 1, 1)) < 0.8)
        boxes, labels = np.concatenate([low, low + side], 1), rng.integers(0, 2, count)
        truth.append(
            Boxes(
                xyxy=boxes.astype(np.float32),
                labels=labels,
                crowd=rng.random(count) < 0.2,
                areas=(side.prod(1) * rng.uniform(0.5, 1, count)).astype(np.float32),
                keypoints=np.concatenate([points * (seen > 0), seen], 2).astype(np.float32),
                masks=[ragged(box, rng) for box in boxes],
            )
        )
        times = 9 if image == 3 else 2
        k = count * times
        far = rng.choice([0.02, 0.1, 0.4], (k, 1)) * side.repeat(times, 0)  # of x and y
        found = points.repeat(times, 0) + rng.normal(0, 0.3, (k, 4, 2)) * far[:, None]
        near = boxes.repeat(times, 0) + rng.normal(0, 0.3, (k, 4)) * np.tile(far, 2)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 3)
        cells = rng.random((k, 1, 1)) * 0.3 + rng.random((k, 7, 7)) * 0.7
        cells[::2] = 0.6
        scores = rng.random(k)
        made = {
            "boxes": near,
            "scores": scores.round(1) if ties else scores,
            "keypoints": np.concatenate([found, rng.random((k, 4, 1))], 2),
            "masks": cells,
        }
        prediction = {key: torch.from_numpy(value).float() for key, value in made.items()}
        label = torch.from_numpy(np.where(rng.random(k) < 0.9, labels.repeat(times), 2))
        predictions.append({**prediction, "labels": label})
    return truth, predictions


def ragged(box: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """A box with holes as run lengths."""
    whole = np.zeros(SIZE, np.uint8, order="F")
    left, top, right, bottom = box.round().astype(int)
    part = whole[top:bottom, left:right]
    part[:] = rng.random(part.shape) < 0.9
    return mask.encode(whole)


def naive_oks(found: list, truth: list, box: list[float], area: float) -> float:
    terms = []
    labeled = any(v > 0 for _, _, v in truth)
    width, height = box[2] - box[0], box[3] - box[1]
    for (x, y, _), (a, b, v), sigma in zip(found, truth, SIGMAS, strict=True):
        x, y, a, b = x - 0.5, y - 0.5, a - 0.5, b - 0.5
        if labeled and v == 0:
            continue
        dx, dy = x - a, y - b
        if not labeled:
            dx = max(0, box[0] - width - x) + max(0, x - box[0] - 2 * width)
            dy = max(0, box[1] - height - y) + max(0, y - box[1] - 2 * height)
        terms.append(np.exp(-(dx**2 + dy**2) / (2 * area * (2 * sigma) ** 2)))
    return sum(terms) / len(terms)


def judged(objects: Boxes, found: dict[str, torch.Tensor], of: str) -> dict[str, Any]:
    """Of an image: similarities of detections and objects, sizes of detections, who is ignored."""
    assert objects.keypoints is not None and objects.masks is not None
    crowd = objects.crowd.tolist()
    if of == "keypoints":
        there = objects.keypoints.astype(float).tolist()
        facts = list(zip(there, objects.xyxy.tolist(), objects.areas.tolist(), strict=True))
        points = found["keypoints"].double().tolist()
        sides = np.ptp(np.array(points).reshape(-1, 4, 3)[..., :2], axis=1)
        return {
            "near": [[naive_oks(one, *fact) for fact in facts] for one in points],
            "sizes": sides.prod(1).tolist(),
            "ignored": [
                c or not any(v for _, _, v in t) for c, t in zip(crowd, there, strict=True)
            ],
        }
    own = [mask.decode(x).astype(bool) for x in paste(found["masks"], found["boxes"], SIZE)]
    near = []
    for a in own:
        others = [mask.decode(x).astype(bool) for x in objects.masks]
        whole = [a.sum() if c else (a | b).sum() for b, c in zip(others, crowd, strict=True)]
        near.append([(a & b).sum() / max(1, w) for b, w in zip(others, whole, strict=True)])
    return {"near": near, "sizes": [float(a.sum()) for a in own], "ignored": crowd}


def tables(truth: list[Boxes], predictions: list[dict], of: str) -> list[dict[str, Any]]:
    return [judged(*pair, of) for pair in zip(truth, predictions, strict=True)]


def naive_ap(
    given: Set, made: list[dict], threshold: float, low: float, high: float, most: int
) -> list[float]:
    """Of each class that has objects, as pycocotools/cocoeval.py says it."""
    averages = []
    for label in range(3):
        seen, positives = [], 0
        for objects, found, table in zip(*given, made, strict=True):
            there = [g for g, own in enumerate(objects.labels) if own == label]
            out = {g: table["ignored"][g] or not low <= objects.areas[g] <= high for g in there}
            there.sort(key=lambda g: out[g])  # noqa: B023
            positives += sum(not out[g] for g in there)
            own = [i for i, x in enumerate(found["labels"].tolist()) if x == label]
            own.sort(key=lambda i: -float(found["scores"][i]))  # noqa: B023
            taken: set[int] = set()
            for i in own[:most]:
                best, chosen = threshold, None
                for g in there:
                    if g in taken and not objects.crowd[g]:
                        continue
                    if chosen is not None and not out[chosen] and out[g]:
                        break
                    if table["near"][i][g] >= best:
                        best, chosen = table["near"][i][g], g
                if chosen is not None:
                    taken.add(chosen)
                if out[chosen] if chosen is not None else not low <= table["sizes"][i] <= high:
                    continue
                seen.append((float(found["scores"][i]), chosen is not None))
        if not positives:
            continue
        seen.sort(key=lambda x: -x[0])
        curve, hits = [], 0
        for place, (_, hit) in enumerate(seen, 1):
            hits += hit
            curve.append((hits / positives, hits / place))
        read_off = [
            max((precision for recall, precision in curve if recall >= x), default=0.0)
            for x in np.linspace(0, 1, 101)
        ]
        averages.append(sum(read_off) / 101)
    return averages


def naive(given: Set, made: list[dict], low: float, high: float, most: int) -> float:
    thresholds = np.linspace(0.5, 0.95, 10)
    values = [naive_ap(given, made, t, low, high, most) for t in thresholds]
    return float(np.mean(values)) if values[0] else float("nan")


@pytest.mark.parametrize("similarity", [KEYPOINTS, MASKS], ids=["keypoints", "masks"])
@pytest.mark.parametrize("seed", range(2))
def test_plain_loops_say_the_same(seed, similarity):
    given, most = random_set(seed), 20 if similarity is KEYPOINTS else 100
    detections, made = counted(*given, similarity), tables(*given, similarity.of)
    metrics, prefix = detections.metrics(), similarity.prefix
    assert 0.05 < metrics[f"{prefix}ap"] < 0.9
    sizes = {name: x for name, x in AREAS.items() if similarity is MASKS or name != "_small"}
    for name, (low, high) in sizes.items():
        expected = naive(given, made, low, high, most)
        assert metrics[f"{prefix}ap{name}"] == pytest.approx(expected, abs=1e-9), name
    assert (f"{prefix}ap_small" in metrics) == (similarity is MASKS)
    at_50, at_75 = (naive_ap(given, made, t, 0, 1e10, most) for t in (0.5, 0.75))
    assert metrics[f"{prefix}ap50"] == pytest.approx(np.mean(at_50), abs=1e-9)
    assert metrics[f"{prefix}ap75"] == pytest.approx(np.mean(at_75), abs=1e-9)
    rows = detections.by_class()
    assert [row[f"{prefix}ap50"] for row in rows[:2]] == pytest.approx(at_50, abs=1e-9)
    there = [(x.labels[~np.array(t["ignored"], bool)]) for x, t in zip(given[0], made, strict=True)]
    objects = [int((np.concatenate(there) == c).sum()) for c in range(3)]
    assert [row[f"{prefix}objects"] for row in rows] == objects and rows[2][f"{prefix}ap"] is None
    boxes = counted(*given, Similarity()).metrics()  # those of boxes are what they were
    assert {key: metrics[key] for key in boxes} == boxes and "ap_small" in boxes


@pytest.mark.parametrize("similarity", [KEYPOINTS, MASKS], ids=["keypoints", "masks"])
def test_draws_are_judged_by_the_same(similarity):
    given = random_set(5, ties=False)
    made = tables(*given, similarity.of)
    matches, rng = counted(*given, similarity).matches(), np.random.default_rng(0)
    draws = np.stack([rng.permutation(14), *rng.integers(14, size=(2, 14))])
    most = 20 if similarity is KEYPOINTS else 100
    expected = []
    for draw in draws:
        drawn = ([part[i] for i in sorted(draw)] for part in given)
        expected.append(naive(tuple(drawn), [made[i] for i in sorted(draw)], 0, 1e10, most))  # type: ignore[arg-type]
    assert bootstrap(matches, draws) == pytest.approx(expected, abs=1e-9)
    whole = counted(*given, similarity).metrics()[f"{similarity.prefix}ap"]
    assert expected[0] == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_all_images_drawn_once_are_the_whole(seed):
    given = random_set(100 + seed, images=6 + seed)
    draws = np.random.default_rng(seed).permutation(6 + seed)[None]
    for similarity in (KEYPOINTS, MASKS):
        detections = counted(*given, similarity)
        whole = detections.metrics()[f"{similarity.prefix}ap"]
        assert bootstrap(detections.matches(), draws) == pytest.approx([whole], abs=1e-9)


def naive_paste(cells: np.ndarray, box: list[float], size: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel: bilinear between the centres of the cells, 0 beyond."""
    (x1, y1, x2, y2), m, picture = box, len(cells), np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = (y + 0.5 - y1) / (y2 - y1) * m - 0.5, (x + 0.5 - x1) / (x2 - x1) * m - 0.5
            for j in (math.floor(v), math.floor(v) + 1):
                for i in (math.floor(u), math.floor(u) + 1):
                    if 0 <= j < m and 0 <= i < m:
                        picture[y, x] += (1 - abs(v - j)) * (1 - abs(u - i)) * cells[j, i]
    return picture > 0.5


def test_masks_are_pasted_into_their_boxes():
    rng, size = np.random.default_rng(0), (40, 50)
    boxes = [[3.3, 2.7, 31.9, 30.2], [-5.5, 20.1, 12.2, 47.0], [10.0, 10.0, 20.0, 24.0]]
    boxes += [[44.2, 5.0, 70.0, 9.9], [60.0, 60.0, 70.0, 70.0], [7.0, 7.0, 7.0, 30.0], [1, 1, 2, 2]]
    cells = torch.from_numpy(rng.random((len(boxes), 5, 5)) ** 0.4).float()
    cells[2] = cells[6] = 1.0
    runs = paste(cells, torch.tensor(boxes), size)
    assert [x["size"] for x in runs] == [list(size)] * len(boxes)
    found = mask.decode(runs).transpose(2, 0, 1)
    for i in (0, 1, 2, 3, 6):
        exact = torch.tensor(boxes)[i].double().tolist()
        assert np.array_equal(found[i], naive_paste(cells[i].double().numpy(), exact, size)), i
    assert found.sum((1, 2))[[2, 4, 5, 6]].tolist() == [140, 0, 0, 1]  # beside, without a side
    assert found[2, 10:24, 10:20].all()
    assert paste(cells[:0], torch.zeros(0, 4), size) == []


def test_an_object_without_keypoints_takes_one_detection_and_a_crowd_any():
    near = np.array([[0.9, 0.9], [0.8, 0.8], [0.7, 0.7]])
    ignored = np.array([True, True])
    once = _assign(near, ignored, np.array([False, False]))[:, 0]
    assert once.tolist() == [1, 0, -1]
    assert _assign(near, ignored, np.array([True, False]))[:, 0].tolist() == [1, 0, 0]
    assert _assign(near, np.array([False, True]), np.array([False, True]))[:, 0].tolist() == [
        0,
        1,
        1,
    ]


def person(points: list[tuple[float, float, int]], area: float = 2500.0) -> Boxes:
    return Boxes(
        xyxy=np.array([[0, 0, 100, 100]], np.float32),
        labels=np.zeros(1, np.int64),
        crowd=np.zeros(1, bool),
        areas=np.array([area], np.float32),
        keypoints=np.array([points], np.float32),
    )


def posed(points: list[tuple[float, float]]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([[0.0, 0, 100, 100]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([0]),
        "keypoints": torch.tensor([[(x, y, 0.5) for x, y in points]]),
    }


def test_keypoints_by_hand():
    """Area 2500: s = 50, so that 2 sigma s is 10 px with sigma .1, and 10 px off is exp(-1/2)."""
    similarity = Similarity("keypoints", (0.1, 0.1, 0.2))
    truth = [person([(20, 20, 2), (50, 50, 1), (0, 0, 0)])] * 2
    found = [posed([(30, 20), (50, 50), (99, 99)]), posed([(20, 20), (50, 65), (0, 0)])]
    detections = counted(truth, found, similarity)
    oks_of = [(math.exp(-0.5) + 1) / 2, (1 + math.exp(-(1.5**2) / 2)) / 2]  # .803, .662
    hits = [sum(x >= t for x in oks_of) for t in np.linspace(0.5, 0.95, 10)]
    assert hits == [2, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    # of equal scores the first image's is the first
    at = {2: 1.0, 1: 51 / 101, 0: 0.0}
    metrics = detections.metrics()
    assert metrics["keypoint_ap"] == pytest.approx(sum(at[x] for x in hits) / 10)
    assert (metrics["keypoint_ap50"], metrics["ap"]) == (1, 1)
    rows = detections.by_keypoint()
    assert [row["labeled"] for row in rows] == [2, 2, 0] == [row["found"] for row in rows]
    assert [row["near"] for row in rows] == [1.0, 0.5, None]
    assert [row["median"] for row in rows] == [pytest.approx(0.1), pytest.approx(0.15), None]


def test_objects_without_keypoints_are_neither_found_nor_missed():
    similarity = Similarity("keypoints", SIGMAS)
    bare = person([(0, 0, 0)] * 4)
    within, outside = posed([(150, -60)] * 4), posed([(290, 290)] * 4)
    for found in (within, outside):
        detections = counted([bare], [found], similarity)
        assert "keypoint_ap" not in detections.metrics() and detections.metrics()["ap"] == 1
    there = person([(20, 20, 2)] * 4)
    assert counted([bare, there], [within, posed([(20, 20)] * 4)], similarity).metrics()[
        "keypoint_ap"
    ] == pytest.approx(1)
    # what is far from a bare object is a detection like any other, and wrong
    low = {**posed([(20, 20)] * 4), "scores": torch.tensor([0.1])}
    assert counted([bare, there], [outside, low], similarity).metrics()[
        "keypoint_ap"
    ] == pytest.approx(0.5)


def test_sigmas():
    coco = list(oks.COCO_SIGMAS)
    assert len(coco) == 17 and oks.sigmas_of(coco, None)[:6] == (
        0.026,
        0.025,
        0.025,
        0.035,
        0.035,
        0.079,
    )
    assert oks.sigmas_of(["nose", "tail"], None) == (0.05, 0.05)
    assert oks.sigmas_of(["right_hip", "nose"], None) == (
        0.107,
        0.026,
    )  # COCO's, whatever the order
    assert oks.sigmas_of(["a", "b"], 0.1) == (0.1, 0.1) and oks.sigmas_of(["a", "b"], [1, 2]) == (
        1,
        2,
    )
    with pytest.raises(InputError, match=r"has 3 numbers, but there are 2 keypoints \(a, b\)"):
        oks.sigmas_of(["a", "b"], [0.1, 0.2, 0.3])
    assert "sigma 0.05 for each keypoint: the default" in oks.sigmas_line(["nose", "tail"], None)
    assert "left_eye 0.025" in oks.sigmas_line(
        coco, None
    ) and "COCO's of people" in oks.sigmas_line(coco, None)
    assert "sigma a 0.1, b 0.2: given by test.oks_sigmas" in oks.sigmas_line(["a", "b"], [0.1, 0.2])


@pytest.mark.parametrize("similarity", [KEYPOINTS, MASKS], ids=["keypoints", "masks"])
def test_predictions_are_coco_results(tmp_path, similarity):
    given, file = random_set(2), tmp_path / "predictions.json"
    detections = counted(*given, similarity)
    detections.save(file)
    first, found = json.loads(file.read_text())[0], given[1][0]
    assert (first["image_id"], first["category_id"]) == (3, [1, 11, 21][found["labels"][0]])
    if similarity is KEYPOINTS:
        x, y, score = found["keypoints"][0, 1].double().tolist()
        assert len(first["keypoints"]) == 12 and first["keypoints"][3:6] == [
            x - 0.5,
            y - 0.5,
            score,
        ]
    else:
        runs = paste(found["masks"], found["boxes"], SIZE)[0]
        assert first["segmentation"] == {"size": list(SIZE), "counts": runs["counts"].decode()}
    again = Detections(
        given[0], ["a", "b", "c"], similarity=similarity, image_ids=detections.image_ids,
        category_ids=detections.category_ids,
    )  # fmt: skip
    again.load(file)
    assert again.reduce(ONE, False) and again.metrics() == detections.metrics()
    mine, whole = again.matches(), detections.matches()
    assert all(np.array_equal(mine[key], whole[key]) for key in whole)
    # any tool of COCO's reads it
    from faster_coco_eval import COCO

    images = [{"id": i, "height": 200, "width": 240} for i in detections.image_ids]
    categories = [{"id": i} for i in detections.category_ids]
    known = COCO({"images": images, "annotations": [], "categories": categories})
    assert len(known.loadRes(str(file)).anns) == sum(len(x["scores"]) for x in given[1])


@pytest.mark.parametrize(
    ("similarity", "further"),
    [
        (KEYPOINTS, {}),
        (KEYPOINTS, {"keypoints": [1, 2, 3]}),
        (KEYPOINTS, {"keypoints": [float("nan")] * 12}),
        (MASKS, {"keypoints": [1] * 12}),
        (MASKS, {"segmentation": [[1, 2, 3, 4, 5, 6]]}),
        (MASKS, {"segmentation": {"counts": "abc"}}),
        (MASKS, {"segmentation": {"size": [4, 5], "counts": "0ab"}}),
        (MASKS, {"segmentation": {"size": [4, 5], "counts": [7, 8]}}),
    ],
)
def test_other_predictions_are_refused(tmp_path, similarity, further):
    file, row = tmp_path / "p.json", {"image_id": 3, "category_id": 1, "bbox": [0, 0, 1, 1]}
    file.write_text(json.dumps([{**row, "score": 1, **further}]))
    given = random_set(2, images=1)
    empty = Detections(given[0], ["a"], similarity=similarity, image_ids=[3], category_ids=[1])
    with pytest.raises(InputError, match="result 0 is not of these images and classes or lacks"):
        empty.load(file)


def test_what_is_not_finite_is_refused():
    given = random_set(2, images=1)
    for similarity, key in ((KEYPOINTS, "keypoints"), (MASKS, "masks")):
        bad = {**given[1][0], key: given[1][0][key] * float("nan")}
        with pytest.raises(InputError, match="not finite"):
            counted(given[0], [bad], similarity)
