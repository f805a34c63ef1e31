"""A set of generated boxes, keypoints or masks: counts are matched, coordinates are those that were
found, and what is written is read again, by this project and by others."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import fsspec
import labeling
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faster_coco_eval import COCO
from faster_coco_eval import mask as coco_mask
from labeling import KEYPOINTS, detector, finds, images, label, read

from downstream.dense.model import read_description
from downstream.detection.data.boxes import open_boxes
from downstream.detection.inference import predict
from downstream.detection.model import open_detector, views_of

NAMES = ["cat", "dog", "bird"]
IDS = {"cat": 3, "dog": 7, "bird": 90}
COUNTS = [5, 2, 1]
"""Instances of each class in the labeled set, which has 4 images."""


def coco(folder: Path, counts: list[int], count: int = 4, **entries) -> str:
    """A labeled set of `count` images, first pixels from 200 on."""
    images(folder, count, first=200)
    annotations = [
        {"image_id": 1 + j % count, "category_id": IDS[NAMES[k]], "bbox": [2, 3, 20, 10],
         "iscrowd": 0, **{name: x[j % len(x)] for name, x in entries.items()}}
        for j, k in enumerate(np.repeat(np.arange(3), counts).tolist())
    ]  # fmt: skip
    annotations.append({"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1,
                        **{name: x[0] for name, x in entries.items()}})  # fmt: skip
    for i, entry in enumerate(annotations):
        entry["id"] = i + 1
    about = {}
    if "keypoints" in entries:
        about = {"keypoints": list(KEYPOINTS.names), "skeleton": [[1, 2], [1, 3]]}
    content = {
        "images": [
            {"id": i + 1, "file_name": f"{200 + i}.png", "width": 60, "height": 40}
            for i in range(count)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name, **about} for name, number in IDS.items()],
    }
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(content))
    return f"{path}::{folder}"


@pytest.fixture
def run(tmp_path) -> Path:
    train = coco(tmp_path / "train", COUNTS)
    val = coco(tmp_path / "val", COUNTS)
    for path in (tmp_path / "val").iterdir():  # other pictures than those of train
        pixels = np.zeros((40, 60, 3), np.uint8) + int(path.stem)
        labeling.Image.fromarray(pixels).save(path)
    return detector(tmp_path / "run", train, val, NAMES)


def some(i: int) -> list[labeling.Instance]:
    """Instances in image i, with a few equal scores."""
    draw = np.random.default_rng(100 + i)
    found = []
    for _ in range(int(draw.integers(2, 12))):
        x, y, w, h = draw.random(4) * (40, 25, 15, 10) + (0, 0, 2, 2)
        score = round(float(draw.random()), 2)
        box = [x, y, x + w, y + h]
        found.append({"label": int(draw.integers(3)), "score": score, "box": box})
    return found


def test_counts_per_image_are_those_of_the_labeled_set(run, tmp_path, monkeypatch, capsys):
    finds(monkeypatch, some)
    source = images(tmp_path / "u", 10)
    out = tmp_path / "out"
    assert label(run, source, out) == 0
    everything = [(i, x) for i in range(10) for x in some(i)]
    content = read(out, "annotations.json")
    for k, name in enumerate(NAMES):
        scores = sorted((float(np.float32(x["score"])) for _, x in everything if x["label"] == k),
                        reverse=True)  # fmt: skip
        wanted = int(COUNTS[k] / 4 * 10 + 0.5)
        least = scores[min(wanted, len(scores)) - 1]
        mine = [x for x in content["annotations"] if x["category_id"] == IDS[name]]
        assert len(mine) == sum(score >= least for score in scores) >= min(wanted, len(scores))
        assert min(x["score"] for x in mine) == pytest.approx(least, abs=1e-6)
    assert {x["name"]: x["id"] for x in content["categories"]} == IDS
    by_image = {x["id"]: x["file_name"] for x in content["images"]}
    for entry in content["annotations"]:
        i = int(Path(by_image[entry["image_id"]]).stem)
        x, y, w, h = entry["bbox"]
        assert any(np.allclose([x, y, x + w, y + h], one["box"], atol=2e-3) for one in some(i))
        assert entry["iscrowd"] == 0 and entry["area"] == pytest.approx(w * h, abs=1e-2)
    manifest = read(out)
    assert manifest["instances"] == len(content["annotations"]) and manifest["finds"] == "boxes"
    assert [x["labeled"] for x in manifest["classes"]] == COUNTS
    assert manifest["settings"]["threshold"] == "count"
    assert set(manifest["teacher"]) >= {"sha256", "run", "network"}
    page = (out / "report.html").read_text()
    assert "Most doubtful" in page and "A sample" in page and "09.png" in page
    least, *_, most = sorted(f"{x['score']:.3f}" for x in manifest["classes"])
    said = f" images, thresholds of scores {least} to {most} by class"
    assert said in capsys.readouterr().out and said in page


def test_what_is_written_is_read_again(run, tmp_path, monkeypatch):
    finds(monkeypatch, some)
    out = tmp_path / "out"
    source = images(tmp_path / "u", 6)
    (source / "05.png").write_bytes(b"no image")
    assert label(run, source, out, "--threshold=0.4", "--max_unreadable=.5") == 0
    content = read(out, "annotations.json")
    generated = open_boxes(str(out), ["bird", "cat", "dog"])
    by_name = open_boxes(f"{out}/annotations.json::{source}")
    foreign = COCO(str(out / "annotations.json"))
    assert len(generated) == len(by_name) == len(foreign.imgs) == 5
    assert generated.report.boxes == len(foreign.anns) == len(content["annotations"])
    for i in range(5):
        assert generated.sample_id(i) == by_name.sample_id(i) == f"{i:02d}.png"
        assert generated.read(i) == (source / f"{i:02d}.png").read_bytes()
        assert generated.image_size(i) == (40, 60)
        expected = sorted(x["score"] for x in some(i) if x["score"] >= 0.4)
        mine = [x for x in content["annotations"] if x["image_id"] == i + 1]
        assert sorted(x["score"] for x in mine) == pytest.approx(expected)
        assert np.array_equal(generated.boxes(i).xyxy, by_name.boxes(i).xyxy)
        names = [generated.class_names[k] for k in generated.boxes(i).labels]
        assert names == [by_name.class_names[k] for k in by_name.boxes(i).labels]
    assert read(out)["images"]["unreadable"] == 1
    assert "05.png" in (out / "unreadable.jsonl").read_text()


def test_images_are_referenced_wherever_they_lie(run, tmp_path, monkeypatch):
    finds(monkeypatch, some)
    images(tmp_path / "a", 3)
    images(tmp_path / "b", 3, first=10)
    place = f"memory://pseudo-labels/{tmp_path.name}"
    for path in sorted(images(tmp_path / "remote", 2, first=40).iterdir()):
        with fsspec.open(f"{place}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        for path in sorted(images(tmp_path / "in tar", 3, first=20).iterdir()):
            tar.add(path, path.name)
    rows = {"sample_id": ["x", "/y/../z"], "bytes": [
        path.read_bytes() for path in sorted(images(tmp_path / "rows", 2, first=30).iterdir())
    ]}  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "d.parquet")
    sources = [str(tmp_path / name) for name in ("a", "b", "c.tar", "d.parquet")]
    sources.append(place)
    out = tmp_path / "out"
    assert label(run, json.dumps(sources), out, "--threshold=0.2", "--shard_size=2") == 0
    generated = open_boxes(str(out))
    assert len(generated) == 13 and not list(out.rglob("*.png"))
    order = [*range(3), *range(10, 13), *range(20, 23), 30, 31, 40, 41]
    for i, number in enumerate(order):
        expected = sorted(x["score"] >= 0.2 for x in some(number))
        assert len(generated.boxes(i).labels) == sum(expected)
    assert generated.read(6) == (tmp_path / "in tar" / "20.png").read_bytes()
    assert generated.read(9) == rows["bytes"][0]
    assert generated.read(12) == (tmp_path / "remote" / "41.png").read_bytes()
    two = tmp_path / "two"
    assert label(run, json.dumps(sources[:2]), two, "--threshold=0.2") == 0
    folder = read(two, "annotations.json")["info"]["images"]
    assert folder == str(tmp_path) and len(open_boxes(f"{two}/annotations.json::{folder}")) == 6


def posed(i: int) -> list[labeling.Instance]:
    draw = np.random.default_rng(i)
    return [
        {**x, "keypoints": [[*(draw.random(2) * (10, 8) + x["box"][:2]), round(draw.random(), 2)]
                            for _ in range(3)]}
        for x in some(i)
    ]  # fmt: skip


def test_keypoints_of_an_instance_are_as_many_as_in_the_labeled_set(tmp_path, monkeypatch):
    points = [[5, 5, 2, 8, 8, 1, 0, 0, 0], [5, 5, 2, 0, 0, 0, 0, 0, 0]]
    train = coco(tmp_path / "train", COUNTS, keypoints=points)
    run = detector(tmp_path / "run", train, None, NAMES, "keypoint_rcnn")
    finds(monkeypatch, posed)
    out = tmp_path / "out"
    source = images(tmp_path / "u", 10)
    assert label(run, source, out, "--threshold=0.3") == 0
    kept = [(i, x) for i in range(10) for x in posed(i) if x["score"] >= 0.3]
    labeled = 4 * 2 + 4 * 1  # of 8 instances; the crowd does not count
    wanted = int(labeled / 8 * len(kept) + 0.5)
    scores = sorted((float(np.float32(p[2])) for _, x in kept for p in x["keypoints"]),
                    reverse=True)  # fmt: skip
    least = scores[wanted - 1]
    annotations = read(out, "annotations.json")["annotations"]
    assert sum(x["num_keypoints"] for x in annotations) == sum(x >= least for x in scores)
    assert len(annotations) == len(kept)
    for entry, (_, one) in zip(annotations, kept, strict=True):
        for (x, y, v), (px, py, score) in zip(
            np.reshape(entry["keypoints"], (3, 3)).tolist(), one["keypoints"], strict=True
        ):
            if np.float32(score) >= least:
                assert v == 2 and (x, y) == pytest.approx((px - 0.5, py - 0.5), abs=2e-3)
            else:
                assert (x, y, v) == (0, 0, 0)
    (category, *_) = read(out, "annotations.json")["categories"]
    assert category["keypoints"] == list(KEYPOINTS.names)
    assert category["skeleton"] == [[1, 2], [1, 3]]
    generated, human = open_boxes(str(out)), open_boxes(train)
    assert generated.keypoints == human.keypoints
    found = generated.boxes(0).keypoints
    assert found is not None
    inside = found[..., 2] > 0
    mine = np.array([x["keypoints"] for i, x in kept if i == 0])
    assert np.allclose(found[inside][:, :2], mine[inside][:, :2], atol=2e-3)
    assert read(out)["keypoints"]["wanted"] == wanted and read(out)["finds"] == "keypoints"
    fixed = tmp_path / "fixed"
    words = ("--threshold=0.3", "--keypoint_threshold=0.5")
    assert label(run, source, fixed, *words) == 0
    annotations = read(fixed, "annotations.json")["annotations"]
    expected = [sum(np.float32(p[2]) >= 0.5 for p in x["keypoints"]) for _, x in kept]
    assert [x["num_keypoints"] for x in annotations] == expected


def test_masks_are_run_lengths_of_the_image(tmp_path, monkeypatch):
    train = coco(tmp_path / "train", COUNTS, segmentation=[[[2, 3, 22, 3, 22, 13, 2, 13]]])
    run = detector(tmp_path / "run", train, None, NAMES, "mask_rcnn")
    cells = np.zeros((28, 28))
    cells[:, :14] = 1  # the left half of each box
    nothing = {"label": 0, "score": 0.9, "box": [1, 1, 9, 9], "masks": np.zeros((28, 28))}
    finds(monkeypatch, lambda i: [nothing, *({**x, "masks": cells} for x in some(i))])
    out = tmp_path / "out"
    assert label(run, images(tmp_path / "u", 6), out, "--threshold=0.4") == 0
    content = read(out, "annotations.json")
    kept = [x for i in range(6) for x in some(i) if x["score"] >= 0.4]
    assert len(content["annotations"]) == len(kept)  # an instance without a pixel is none
    for entry, one in zip(content["annotations"], kept, strict=True):
        mask = coco_mask.decode(entry["segmentation"])
        assert mask.shape == (40, 60) and mask.sum() == entry["area"]
        x1, y1, x2, y2 = one["box"]
        columns, rows = np.arange(60) + 0.5, np.arange(40) + 0.5
        left = (columns > x1) & (columns < (x1 + x2) / 2)
        expected = np.outer((rows > y1) & (rows < y2), left)
        assert (mask != expected).sum() <= 2 * (expected.any(1).sum() + expected.any(0).sum())
    generated = open_boxes(str(out), masks=True)
    masks = generated.boxes(0).masks
    assert masks is not None and len(masks) == len(generated.boxes(0).labels)
    assert read(out)["finds"] == "masks"
    assert COCO(str(out / "annotations.json")).annToMask(content["annotations"][0]).any()


@pytest.mark.parametrize(("name", "finds_in_it"), [
    ("keypoint_rcnn", "keypoints"), ("mask_rcnn", "masks")
])  # fmt: skip
def test_real_networks_see_several_views(tmp_path, capsys, name, finds_in_it):
    """What they find by `predict` is what is written, each thing in its place."""
    entries = {"keypoints": [[5, 5, 2, 8, 8, 1, 0, 0, 0]]} if name == "keypoint_rcnn" else {}
    train = coco(tmp_path / "train", COUNTS, **entries)
    run = detector(tmp_path / "run", train, None, NAMES, name)
    out, source = tmp_path / "out", images(tmp_path / "u", 2)
    words = ("--test.scales=[0.5, 1]", "--test.flip=true", "--threshold=0.2",
             "--keypoint_threshold=0")  # fmt: skip
    assert label(run, source, out, *words) == 0
    assert "in one view" not in capsys.readouterr().out
    folder, content = read_description(str(run))
    model, (augment, test) = open_detector(folder, content), views_of(content)
    test = replace(test, scales=[0.5, 1.0], flip=True)
    generated = open_boxes(str(out), masks=finds_in_it == "masks")
    assert generated.report.boxes
    for i in range(2):
        pixels = np.asarray(labeling.Image.open(source / f"{i:02d}.png")).copy()
        with torch.inference_mode():
            found = predict(model, torch.from_numpy(pixels), augment, test)
        sure = found["scores"] >= 0.2
        mine = generated.boxes(i)
        order = np.argsort(mine.xyxy[:, 0], kind="stable")
        theirs = found["boxes"][sure].numpy().clip(0, [60, 40, 60, 40])
        their_order = np.argsort(theirs[:, 0].round(3), kind="stable")
        if finds_in_it == "keypoints":
            assert np.allclose(mine.xyxy[order], theirs[their_order], atol=2e-3)
            points = found["keypoints"][sure].numpy()[their_order]
            assert mine.keypoints is not None
            inside = mine.keypoints[order][..., 2] > 0  # the reader drops those outside
            near = np.abs(mine.keypoints[order][..., :2] - points[..., :2]).max(-1)
            assert inside.any() and near[inside].max() < 1.01
        else:
            assert mine.masks is not None and len(mine.masks) == len(mine.labels) <= len(theirs)
            for mask, (x1, y1, x2, y2) in zip(mine.masks, mine.xyxy, strict=True):
                ys, xs = np.nonzero(coco_mask.decode(mask))
                assert x1 - 1 <= xs.min() and xs.max() <= x2 and y1 - 1 <= ys.min()
                assert ys.max() <= y2


def test_a_labeled_share_is_what_counts(run, tmp_path, monkeypatch):
    """The other images of the training set may be annotated, and do not count as labeled."""
    finds(monkeypatch, lambda i: some(i % 100))
    (run / "labeled.txt").write_text("200.png\n203.png\n")
    out = tmp_path / "out"
    assert label(run, tmp_path / "train", out) == 0
    manifest = read(out)
    assert manifest["images"]["left out, with human annotations"] == 2
    assert manifest["images"]["annotated"] == 2
    content = json.loads((tmp_path / "train.json").read_text())
    mine = [x for x in content["annotations"] if x["image_id"] in (1, 4) and not x["iscrowd"]]
    expected = [sum(x["category_id"] == IDS[name] for x in mine) for name in NAMES]
    assert [x["labeled"] for x in manifest["classes"]] == expected
    assert manifest["labeled"]["images"] == 2
