"""Boxes as COCO, VOC and YOLO have them, masks with class tables, COCO panoptic, and predictions of
others, up to the preflight and the views of training and evaluation."""

from __future__ import annotations

import functools
import hashlib
import io
import random
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import yaml
from kinds_images import foreign_image, resealed
from mutations import NASTY, as_json, changed, damaged, encoded, respelled
from sandbox import Kind

SIZE = (16, 24)
"""Height and width of the pictures."""
NAMES = ("0.png", "1.png", "2.png")
BOX = [2.0, 3.0, 8.0, 6.0]
OUTLINE = [[2.0, 3.0, 10.0, 3.0, 10.0, 9.0, 2.0, 9.0]]
COCO: dict[str, Any] = {
    "info": {"year": 2024},
    "licenses": [],
    "images": [
        {"id": 10 * i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for i, name in enumerate(NAMES)
    ],
    "annotations": [
        {"id": i, "image_id": 10 * (i % 3), "category_id": 3 + 4 * (i % 2), "bbox": BOX}
        | {"area": 48.0, "iscrowd": 0, "segmentation": OUTLINE}
        for i in range(5)
    ],
    "categories": [{"id": 3, "name": "cat", "supercategory": "x"}, {"id": 7, "name": "dog"}],
}
RLE: dict[str, Any] = {
    **COCO,
    "annotations": [
        {**entry, "segmentation": {"size": list(SIZE), "counts": counts}, "iscrowd": i % 2}
        for i, entry in enumerate(COCO["annotations"])
        for counts in ([20, 5, 10, 349], "PPYo1\\\\0")
    ][:5],
}
POINTS: dict[str, Any] = {
    **COCO,
    "annotations": [
        {**entry, "category_id": 3, "keypoints": [3, 4, 2, 5, 6, 1, 0, 0, 0], "num_keypoints": 2}
        for entry in COCO["annotations"]
    ],
    "categories": [
        {
            "id": 3,
            "name": "cat",
            "keypoints": ["left_eye", "right_eye", "nose"],
            "skeleton": [[1, 2]],
            "flip_idx": [1, 0, 2],
        }
    ],
    "info": {"flip_pairs": [["left_eye", "right_eye"]]},
}
INSTANCES: dict[str, Any] = {
    **POINTS,
    "annotations": [
        {**entry, "segmentation": RLE["annotations"][i]["segmentation"] if i % 2 else OUTLINE}
        for i, entry in enumerate(POINTS["annotations"])
    ],
}
OUTLINES: dict[str, Any] = {
    **COCO,
    "annotations": [
        {k: x for k, x in entry.items() if k not in ("bbox", "area")}
        for entry in COCO["annotations"]
    ],
}


@functools.cache
def png(mode: str = "RGB", colours: int = 3, size: tuple[int, int] = SIZE) -> bytes:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(colours).integers(0, colours, size).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = image.convert("P")
        image.putpalette(list(range(30)))
    elif mode == "RGB":
        image = Image.merge("RGB", [image, *[Image.new("L", size[::-1])] * 2])
    elif mode != "L":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pictures(rng: random.Random, folder: Path, names: tuple[str, ...] = NAMES) -> None:
    """White noise; now and then a damaged one, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        odd = rng.random()
        if odd > 0.02:
            data = foreign_image(rng) if odd < 0.05 else png("RGB", 200)
            (folder / name).write_bytes(data)


def write_coco(rng: random.Random, folder: Path) -> None:
    tree = rng.choice((COCO, RLE, POINTS, INSTANCES, OUTLINES))
    tree = changed(rng, tree, rng.choice((1, 1, 3))) if rng.random() < 0.95 else tree
    pictures(rng, folder)
    (folder / "a.json").write_bytes(as_json(rng, tree))


def use_coco(folder: Path, out: Path) -> str | None:
    file = folder / "a.json"
    kind = file.stat().st_size % 5
    return _masks(str(file), out) if kind == 4 else _boxes(str(file), out, masks=kind > 1)


def _boxes(path: str, out: Path, masks: bool = False) -> str | None:
    """As a detector's run sees them before and in its first step."""
    import numpy as np

    from downstream.dense.drawing import draw_instances, draw_keypoints
    from downstream.dense.preflight import in_both, write_preflight
    from downstream.detection.data.boxes import open_boxes

    source = open_boxes(path, masks=masks)
    reports = [source.report]
    write_preflight(out, {"train": reports, "val": reports}, in_both([source], [source]))
    unreadable = False
    train, test = _box_views()
    for i in range(len(source)):
        boxes = source.boxes(i)
        assert len(boxes.xyxy) == len(boxes.labels) == len(boxes.areas)
        pixels = np.zeros((*source.image_size(i), 3), np.uint8)
        if boxes.masks is not None:
            draw_instances(pixels, boxes.masks, boxes.labels.tolist())
        if boxes.keypoints is not None and pixels.size:
            draw_keypoints(pixels, boxes.keypoints, source.keypoints)
        unreadable |= _seen(lambda i=i: (train(source, i, 0, 0), test(source, i)))
    return "unreadable" if unreadable else None


def _seen(views) -> bool:
    """Whether a view says that the image cannot be read."""
    from ssld.data.decode import Unreadable

    try:
        views()
        return False
    except (OSError, Unreadable) as error:
        assert str(error)
        return True


@functools.cache
def _box_views():
    from downstream.detection.config import BoxAugmentConfig
    from downstream.detection.data.transforms import EvalBoxView, TrainBoxView

    augment = BoxAugmentConfig(resize="square", sizes=[32], test_size=32, longest=None)
    return TrainBoxView(augment, 0), EvalBoxView()


VOC_OBJECT: dict[str, Any] = {
    "name": "cat",
    "pose": "Unspecified",
    "difficult": "0",
    "bndbox": {"xmin": "2", "ymin": "3", "xmax": "9", "ymax": "8"},
}
VOC: dict[str, Any] = {
    "folder": "JPEGImages",
    "filename": "0.png",
    "size": {"width": str(SIZE[1]), "height": str(SIZE[0]), "depth": "3"},
    "segmented": "0",
    "object": [VOC_OBJECT, {**VOC_OBJECT, "name": "dog", "difficult": "1"}],
}
HEADS = (
    '<?xml version="1.0" encoding="gb2312"?>',
    '<?xml version="1.0" encoding="utf-7"?>',
    '<?xml version="1.0" encoding="utf-32"?>',
    '<?xml version="1.0" encoding="cp037"?>',
    '<?xml version="1.0" encoding="nonsense"?>',
    '<?xml version="1.0" encoding="rot13"?>',
    '<?xml version="1.1"?>',
    '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x"><?x y?>',
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a [<!ENTITY a "'
    + "x" * 100
    + '">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 60}">' for a, b in zip("abcdef", "bcdefg", strict=True))
    + "]>",
)


def xml_of(name: str, tree: Any) -> str:
    """Mappings as elements, lists as several of the same name."""
    if isinstance(tree, list):
        return "".join(xml_of(name, part) for part in tree)
    if isinstance(tree, dict):
        inside = "".join(xml_of(str(key) or "x", part) for key, part in tree.items())
    else:
        inside = "" if tree is None else escape(str(tree))
    return f"<{name}>{inside}</{name}>"


def write_voc(rng: random.Random, folder: Path) -> None:
    pictures(rng, folder / "JPEGImages", NAMES[:2])
    (folder / "Annotations").mkdir()
    for name in NAMES[:2]:
        tree = {**VOC, "filename": name}
        tree = changed(rng, tree, rng.choice((1, 1, 3))) if rng.random() < 0.5 else tree
        text = xml_of(rng.choice(("annotation",) * 9 + ("a",)), tree)
        if rng.random() < 0.15:
            text = rng.choice(HEADS) + text.replace("cat", rng.choice(("&g;", "&x;", "猫", "cat")))
        text = respelled(rng, text) if rng.random() < 0.1 else text
        text = "<a>" * 5000 + text if rng.random() < 0.01 else text
        (folder / "Annotations" / name.replace("png", "xml")).write_bytes(encoded(rng, text))
    if rng.random() < 0.3:
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        _lines(rng, folder / "ImageSets" / "Main" / "train.txt", ["0", "1"])
    if rng.random() < 0.1:
        _lines(rng, folder / "classes.txt", ["cat", "dog"])


def _lines(rng: random.Random, file: Path, lines: list[str]) -> None:
    for _ in range(rng.choice((0, 0, 1, 2))):
        place = rng.randrange(len(lines) + 1)
        value = rng.choice((*NASTY, lines[0] if lines else "", "0 1", "../0", "# x", "0\t1"))
        lines[place : place + rng.choice((0, 1))] = [str(value)]
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join(lines)
    file.write_bytes(encoded(rng, respelled(rng, text) if rng.random() < 0.1 else text))


def use_voc(folder: Path, out: Path) -> str | None:
    split = "::train" if (folder / "ImageSets").is_dir() else ""
    return _boxes(f"{folder}{split}", out)


YOLO = {"path": ".", "train": "images/train", "val": "images/val", "nc": 2, "names": ["cat", "dog"]}
ROWS = ("0 0.5 0.5 0.2 0.3", "1 0.25 0.5 0.125 0.25", "0 0.2 0.2 0.6 0.2 0.6 0.6")
POSE = {**YOLO, "kpt_shape": [2, 3], "flip_idx": [1, 0], "kpt_names": {0: ["a", "b"]}}
POSE_ROWS = ("0 0.5 0.5 0.2 0.3 0.5 0.5 2 0.45 0.5 1", "1 0.25 0.5 0.125 0.25 0 0 0 0 0 0")


def write_yolo(rng: random.Random, folder: Path) -> None:
    pictures(rng, folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    pose = rng.random() < 0.3
    table, rows = (POSE, POSE_ROWS) if pose else (YOLO, ROWS)
    for name in NAMES:
        lines = [rng.choice(rows[:2]) for _ in range(3)]
        if rng.random() < 0.15:
            place = rng.randrange(3)
            parts = rng.choice(rows).split()
            parts[rng.randrange(5)] = str(rng.choice(NASTY))
            lines[place] = " ".join(parts)
        if rng.random() < 0.05:
            lines.append(rows[-1])
        file = folder / "labels" / "train" / name.replace("png", "txt")
        whole = "\n".join(lines).encode("utf-8", "surrogatepass")
        _lines(rng, file, lines) if rng.random() < 0.1 else file.write_bytes(whole)
    tree = {**table, "names": rng.choice((YOLO["names"], {0: "cat", 1: "dog"}))}
    tree = changed(rng, tree, rng.choice((1, 1, 3))) if rng.random() < 0.5 else tree
    (folder / "data.yaml").write_bytes(encoded(rng, yaml.dump(tree, sort_keys=False)))
    if rng.random() < 0.2:
        file = folder / "train.txt"
        _lines(rng, file, [f"./images/train/{name}" for name in NAMES])


def use_yolo(folder: Path, out: Path) -> str | None:
    file = (folder / "labels" / "train" / "0.txt").stat().st_size % 3
    path = f"{folder / 'data.yaml' if file == 0 else folder}::train"
    return _boxes(path, out, masks=file == 1)


TABLE: dict[str, Any] = {
    "classes": [
        {"id": 0, "name": "sky", "colour": "#000000"},
        {"id": 1, "name": "road", "colour": [1, 0, 0]},
        {"id": 2, "name": "car", "colour": "2 0 0"},
    ],
    "ignore": [255],
}
CSV = "id,name,colour,ignore\n0,sky,#000000,\n1,road,#010000,\n2,car,#020000,\n255,void,,true\n"


ODD = ("P", "1", "LA", "I;16", "RGBA")
"""Modes of masks that are seldom right."""


def write_masks(rng: random.Random, folder: Path) -> None:
    pictures(rng, folder / "images" / "train", NAMES[:2])
    masks = folder / "masks" / "train"
    masks.mkdir(parents=True)
    for name in NAMES[:2]:
        data = png(
            rng.choice(("L", "L", "L", "RGB", "RGB", "RGB", *ODD)), rng.choice((3,) * 7 + (9,))
        )
        if rng.random() < 0.05:
            data = png("L", 3, rng.choice(((24, 16), (1, 1), (16, 25))))
        data = damaged(rng, data) if rng.random() < 0.15 else data
        (masks / name).write_bytes(resealed(data) if rng.random() < 0.5 else data)
    _table(rng, folder)


def _table(rng: random.Random, folder: Path) -> None:
    what = rng.random()
    tree = changed(rng, TABLE, rng.choice((1, 1, 3))) if rng.random() < 0.6 else TABLE
    if what < 0.5:
        (folder / "classes.json").write_bytes(as_json(rng, tree))
    elif what < 0.8:
        text = yaml.dump(tree, sort_keys=False)
        text = respelled(rng, text) if rng.random() < 0.2 else text
        (folder / "classes.yaml").write_bytes(encoded(rng, text))
    else:
        text = respelled(rng, CSV) if rng.random() < 0.7 else CSV
        (folder / "classes.csv").write_bytes(encoded(rng, text))


def use_masks(folder: Path, out: Path) -> str | None:
    return _masks(f"{folder}::train", out)


def _masks(path: str, out: Path) -> str | None:
    """As a segmenter's run sees them before and in its first step."""
    from downstream.dense.preflight import in_both, write_preflight
    from downstream.segmentation.data.masks import open_masks
    from downstream.segmentation.data.preflight import inspect
    from downstream.segmentation.data.transforms import EvalMaskView

    source = open_masks(path)
    report = inspect(source)
    report.check()
    write_preflight(out, {"train": [report], "val": [report]}, in_both([source], [source]))
    train, test, unreadable = _mask_view(), EvalMaskView(), False
    for i in range(len(source)):
        unreadable |= _seen(lambda i=i: (train(source, i, 0), test(source, i)))
    return "unreadable" if unreadable else None


@functools.cache
def _mask_view():
    from downstream.segmentation.config import MaskAugmentConfig
    from downstream.segmentation.data.transforms import TrainMaskView

    return TrainMaskView(MaskAugmentConfig(crop=(16, 16)), 0)


PANOPTIC: dict[str, Any] = {
    "images": [
        {"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for i, name in enumerate(NAMES[:2])
    ],
    "annotations": [
        {
            "image_id": i,
            "file_name": name,
            "segments_info": [
                {"id": 1, "category_id": 5, "area": 9, "bbox": [0, 0, 2, 2], "iscrowd": 0},
                {"id": 2, "category_id": 9, "area": 9, "bbox": [0, 0, 2, 2], "iscrowd": 1},
            ],
        }
        for i, name in enumerate(NAMES[:2])
    ],
    "categories": [
        {"id": 5, "name": "sky", "isthing": 0, "color": [9, 8, 7]},
        {"id": 9, "name": "car", "isthing": 1, "color": [1, 2, 3]},
    ],
}


def write_panoptic(rng: random.Random, folder: Path) -> None:
    pictures(rng, folder / "val", NAMES[:2])
    masks = folder / "panoptic_val"
    masks.mkdir()
    for name in NAMES[:2]:
        data = png(rng.choice(("RGB", "RGB", "RGB", "L", "P")), 3)
        (masks / name).write_bytes(damaged(rng, data) if rng.random() < 0.1 else data)
    tree = changed(rng, PANOPTIC, rng.choice((1, 1, 3))) if rng.random() < 0.95 else PANOPTIC
    (folder / "panoptic_val.json").write_bytes(as_json(rng, tree))


def use_panoptic(folder: Path, out: Path) -> str | None:
    return _masks(str(folder / "panoptic_val.json"), out)


PLACES = ("../outside.png", "/dev/zero", "/etc/passwd", "", ".", "\0", "0.png/", None)
"""Of files that are none of a set's."""


def write_generated(rng: random.Random, folder: Path) -> None:
    """A set of `ssld pseudo-label` by somebody else, whose sums are right as a rule."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_masks = rng.random() < 0.5
    pictures(rng, folder)
    if of_masks:
        (folder / "masks").mkdir()
        for name in NAMES:
            (folder / "masks" / name).write_bytes(png("L", 3))
        tree = changed(rng, TABLE) if rng.random() < 0.3 else TABLE
        (folder / "classes.json").write_bytes(as_json(rng, tree))
    else:
        tree = rng.choice((COCO, RLE, POINTS, INSTANCES))
        tree = changed(rng, tree) if rng.random() < 0.4 else tree
        (folder / "annotations.json").write_bytes(as_json(rng, tree))
    columns: dict[str, list[Any]] = {x: list(NAMES) for x in ("sample_id", "path", "mask")}
    if rng.random() < 0.5:
        columns[rng.choice(list(columns))][rng.randrange(3)] = rng.choice(PLACES)
    columns["pixel_sha256"] = rng.choice(([b"0" * 32] * 3, [[1], [2], [3]], [None] * 3))
    if rng.random() < 0.1:
        columns.pop(rng.choice(list(columns)))
    pq.write_table(pa.table(columns), folder / "images.parquet")
    names = ("classes.json" if of_masks else "annotations.json", "images.parquet")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    manifest = {"format": 1, "task": "segmentation" if of_masks else "detection", "files": sums}
    if rng.random() < 0.3:
        manifest = changed(rng, manifest)
    elif rng.random() < 0.1:
        manifest["files"] = {**sums, str(rng.choice(PLACES)): "0"}
    (folder / "pseudo_labels.json").write_bytes(as_json(rng, manifest))


def use_generated(folder: Path, out: Path) -> str | None:
    from downstream.dense.generated import pixel_sums

    seen = (_masks if (folder / "masks").is_dir() else _boxes)(str(folder), out)
    pixel_sums(folder)
    return seen


RESULTS = [
    {"image_id": 10 * i, "category_id": 3 + 4 * (i % 2), "bbox": BOX, "score": 0.5 + i / 10}
    | {"keypoints": [3.0, 4.0, 0.5, 6.5, 7.0, 0.1]}
    | {"segmentation": {"size": [4, 5], "counts": [3, 4, 13] if i else "34="}}
    for i in range(3)
]


def write_results(rng: random.Random, folder: Path) -> None:
    tree = changed(rng, RESULTS) if rng.random() < 0.95 else RESULTS
    (folder / "results.json").write_bytes(as_json(rng, tree))


def use_results(folder: Path, out: Path) -> None:
    """COCO's predictions of another tool."""
    import numpy as np

    from downstream.detection.average_precision import Detections
    from downstream.detection.coco_protocol import Similarity
    from downstream.detection.data.boxes import Boxes

    one = np.array([BOX], np.float32)
    points = np.array([[[3, 4, 2], [6, 7, 1]]], np.float32)
    mask = {"size": [4, 5], "counts": b"34="}
    area = np.array([48.0], np.float32)
    truth = Boxes(one, np.zeros(1, np.int64), np.zeros(1, bool), area, points, [mask])
    ids = {"image_ids": [0, 10, 20], "category_ids": [3, 7]}
    judged = Similarity(), Similarity("keypoints", (0.1, 0.1)), Similarity("masks")
    for similarity in judged:
        found = Detections([truth] * 3, ["cat", "dog"], similarity=similarity, **ids)
        found.load(folder / "results.json")
        found.matches()


BOXES = (
    "downstream.detection.data.boxes",
    "downstream.detection.data.transforms",
    "downstream.dense.preflight",
)
MASKS = (
    "downstream.segmentation.data.masks",
    "downstream.segmentation.data.transforms",
    "downstream.segmentation.data.preflight",
)
KINDS = {
    "annotations.coco": Kind(write_coco, use_coco, (*BOXES, *MASKS)),
    "annotations.voc": Kind(write_voc, use_voc, BOXES),
    "annotations.yolo": Kind(write_yolo, use_yolo, BOXES),
    "annotations.masks": Kind(write_masks, use_masks, MASKS),
    "annotations.panoptic": Kind(write_panoptic, use_panoptic, MASKS),
    "annotations.generated": Kind(write_generated, use_generated, (*BOXES, *MASKS)),
    "annotations.results": Kind(
        write_results, use_results, ("downstream.detection.average_precision",)
    ),
}
