"""What it costs to open annotations of boxes, before the first image is read.

    python benchmarks/annotations.py --images 10000 100000

Writes COCO's JSON, a YOLO folder and a VOC folder of so many images with 7 boxes each (COCO's
number), opens each in a process of its own, and says CPU seconds and by how many MB the process
grew at most. All images are names of one file, so that 100,000 of them take 0.9 GB, most of it
blocks of small files; they go when it ends.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine
from PIL import Image

from downstream.detection.data.boxes import open_boxes

BOXES = 7
SIDE = 64
CLASSES = [f"class{i}" for i in range(80)]
Boxes = list[tuple[int, int, int, int, int]]
"""Class, and x, y, width, height in px."""


def drawn(images: int) -> list[Boxes]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(CLASSES), (images, BOXES)).tolist()
    places = rng.integers(0, SIDE // 2, (images, BOXES, 2)).tolist()
    sizes = rng.integers(8, SIDE // 2, (images, BOXES, 2)).tolist()
    return [
        [(k, *xy, *wh) for k, xy, wh in zip(*image, strict=True)]
        for image in zip(labels, places, sizes, strict=True)
    ]


def _pictures(folder: Path, images: int) -> None:
    """Of one file, many names: the file system allows 65,000 of each on ext4, so of a few."""
    folder.mkdir(parents=True)
    for i in range(images):
        if i % 30_000 == 0:
            first = folder / f"{i:07d}.jpg"
            Image.new("RGB", (SIDE, SIDE), (i % 255, 90, 30)).save(first)
        else:
            os.link(first, folder / f"{i:07d}.jpg")


def coco(folder: Path, boxes: list[Boxes]) -> Path:
    _pictures(folder / "images", len(boxes))
    names = [f"{i:07d}.jpg" for i in range(len(boxes))]
    tree = {
        "images": [
            {"id": i, "file_name": f"images/{x}", "width": SIDE, "height": SIDE}
            for i, x in enumerate(names)
        ],
        "annotations": [
            {"id": BOXES * i + j, "image_id": i, "category_id": k + 1, "bbox": box,
             "area": box[2] * box[3], "iscrowd": 0}
            for i, found in enumerate(boxes) for j, (k, *box) in enumerate(found)
        ],
        "categories": [{"id": i + 1, "name": x} for i, x in enumerate(CLASSES)],
    }  # fmt: skip
    (folder / "train.json").write_text(json.dumps(tree))
    return folder / "train.json"


def yolo(folder: Path, boxes: list[Boxes]) -> Path:
    _pictures(folder / "images", len(boxes))
    (folder / "labels").mkdir()
    names = "".join(f"  {i}: {x}\n" for i, x in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nnames:\n{names}")
    for i, found in enumerate(boxes):
        lines = [
            f"{k} {(x + w / 2) / SIDE:.6f} {(y + h / 2) / SIDE:.6f} {w / SIDE:.6f} {h / SIDE:.6f}"
            for k, x, y, w, h in found
        ]
        (folder / f"labels/{i:07d}.txt").write_text("\n".join(lines) + "\n")
    return folder / "data.yaml"


def voc(folder: Path, boxes: list[Boxes]) -> Path:
    _pictures(folder / "JPEGImages", len(boxes))
    (folder / "Annotations").mkdir()
    for i, found in enumerate(boxes):
        objects = "".join(
            f"<object><name>{CLASSES[k]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for k, x, y, w, h in found
        )
        (folder / f"Annotations/{i:07d}.xml").write_text(
            f"<annotation><folder>VOC</folder><filename>{i:07d}.jpg</filename><size><width>{SIDE}"
            f"</width><height>{SIDE}</height><depth>3</depth></size>{objects}</annotation>\n"
        )
    return folder


def opened(path: str, pipe: Any) -> None:
    """CPU seconds, MB of growth, images and boxes of what is opened."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    source = open_boxes(path)
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    pipe.send((seconds, grown, len(source), sum(x.boxes for x in source.report.classes)))


def measured(path: Path) -> tuple[float, float, int, int]:
    context = multiprocessing.get_context("spawn")  # a fork would start with our memory
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=opened, args=(str(path), send))
    process.start()
    result = receive.recv()
    process.join()
    return result


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    given = words.parse_args()
    writers: dict[str, Callable[[Path, list[Boxes]], Path]] = {
        "COCO": coco,
        "YOLO": yolo,
        "VOC": voc,
    }
    print(machine())
    print("| format | images | boxes | CPU s | MB | CPU s per 100,000 images |")
    print("|---|---|---|---|---|---|")
    for name, write in writers.items():
        for images in given.images:
            with tempfile.TemporaryDirectory() as folder:
                path = write(Path(folder) / "set", drawn(images))
                seconds, grown, count, boxes = measured(path)
            each = 1e5 * seconds / count
            print(
                f"| {name} | {count:,} | {boxes:,} | {seconds:.1f} | {grown:,.0f} | {each:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
