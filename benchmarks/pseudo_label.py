"""What annotating costs beside plain inference: `ssld pseudo-label` as a command, from the files to
the report.

    python benchmarks/pseudo_label.py                                        # CPU, small
    python benchmarks/pseudo_label.py --backbone resnet50d --size 800        # GPU

In one process, on JPEG files, in rounds: (a) plain inference, each file read, decoded and seen
once, and (b) the command, which besides opens the network, reads and hashes every file first, sees
V views of each image and unites them, and writes the set and its report; on as many images and on
twice as many. What the second half costs more is (c), without what any number of images costs: the
network, the report's plots and 48 pictures. Reported, medians of rounds: images a second of all
three, and (b) x V : (a), (c) x V : (a). Without a GPU a second is one of CPU time, into which other
processes do not enter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml
from measure import machine, parser, seconds, show
from PIL import Image

from downstream.backbone.config import BackboneConfig
from downstream.dense.config import ViewsConfig
from downstream.dense.model import read_description, save
from downstream.detection import model as detection
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.inference import predict
from downstream.pseudo_label.command import pseudo_label
from downstream.pseudo_label.config import PseudoLabelConfig
from ssld.data.decode import decode

VIEWS = {
    "one": ([1.0], False),
    "mirrored": ([1.0], True),
    "0.8, 1, 1.2, mirrored": ([0.8, 1.0, 1.2], True),
}


def arguments() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("--backbone", default="mobilenetv3_small_100")
    words.add_argument("--size", type=int, default=256, help="shorter side, px")
    words.add_argument("--images", type=int, default=48)
    words.add_argument("--rounds", type=int, default=3)
    return words.parse_args()


def write_images(folder: Path, count: int, size: int) -> Path:
    """Different in each folder: held-out images are not labeled."""
    draw = np.random.default_rng(list(folder.name.encode()))
    folder.mkdir()
    for i in range(count):
        small = draw.integers(0, 255, (size // 8, size // 6, 3)).astype(np.uint8)
        Image.fromarray(small).resize((size * 4 // 3, size)).save(folder / f"{i}.jpg", quality=90)
    return folder


def write_set(folder: Path, count: int, size: int) -> str:
    write_images(folder, count, size)
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": size, "width": size * 4 // 3}
            for i in range(count)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 3, "bbox": [5, 5, 50, 40]}
            for i in range(count)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate("abc")],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return str(folder / "boxes.json")


def write_run(root: Path, given: argparse.Namespace) -> Path:
    """A Faster R-CNN with random weights, whose 100 boxes an image are all kept before the
    threshold."""
    run, args = root / "run", {"channels": 64, "head_channels": 128, "score_threshold": 0.0}
    backbone = BackboneConfig(name=given.backbone, pretrained=False)
    built = detection.build("faster_rcnn", backbone, 3, args)
    augment = BoxAugmentConfig(sizes=[given.size], test_size=given.size, longest=None)
    save(
        detection.DetectionModel(built, list("abc")), run / "model", 1, task="detection",
        head={"name": "faster_rcnn", "args": args}, view={**asdict(augment), "test": {}},
    )  # fmt: skip
    sets = {"train": [write_set(root / "train", 3, given.size)],
            "val": [write_set(root / "val", 4, given.size)]}  # fmt: skip
    (run / "config.yaml").write_text(yaml.safe_dump({"data": sets}))
    return run


def main() -> None:
    given = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run, source = write_run(root, given), write_images(root / "u", given.images, given.size)
        twice = write_images(root / "twice", 2 * given.images, given.size)
        content = read_description(str(run))
        model = detection.open_detector(*content).to(device)
        augment, _ = detection.views_of(content[1])

        def plain() -> None:
            with torch.inference_mode():
                for path in source.iterdir():
                    pixels = torch.from_numpy(decode(path.read_bytes())).to(device)
                    predict(model, pixels, augment, BoxTestConfig())["boxes"].cpu()

        def command(views: str, source: Path) -> float:
            scales, flip = VIEWS[views]
            with tempfile.TemporaryDirectory() as out:
                config = PseudoLabelConfig(
                    run=str(run), images=[str(source)], out=f"{out}/out",
                    test=ViewsConfig(scales=scales, flip=flip),
                )  # fmt: skip
                return seconds(lambda: pseudo_label(config))

        def row(views: str) -> list[str]:
            scales, flip = VIEWS[views]
            number, rounds = len(scales) * (1 + flip), []
            for _ in range(given.rounds):
                once, whole = seconds(plain), command(views, source)
                more = command(views, twice) - whole
                times = (once, whole, more)
                rounds.append((*(given.images / x for x in times),
                               *(number * once / x for x in times[1:])))  # fmt: skip
            numbers = map(statistics.median, zip(*rounds, strict=True))
            return [views, str(number), *(f"{x:.2f}" for x in numbers)]

        plain()
        command("one", source)
        cuda = device.type == "cuda"
        where = torch.cuda.get_device_name(device) if cuda else machine(1)
        print(f"{given.backbone}, {given.images} images of {given.size * 4 // 3} x {given.size} "
              f"px; {where}; {given.rounds} rounds")  # fmt: skip
        head = ["views", "V", "plain inference, img/s", "pseudo-label, img/s",
                "per further image, img/s", "x V : plain", "further x V : plain"]  # fmt: skip
        show(head, map(row, VIEWS))


if __name__ == "__main__":
    main()
