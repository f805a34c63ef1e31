"""What several views of an image cost beside as many plain looks at it.

    python benchmarks/views.py                                                  # CPU, small
    python benchmarks/views.py --backbone resnet50d --size 800 --repeats 20     # GPU

In one process, on one image in memory, in rounds: each network (random weights, all boxes that it
can tell) by `downstream.detection.inference.predict`, or a segmenter, (a) once at each scale and
(b) in all V views together. Reported, medians of rounds: images a second of a plain look at scale 1
and of all views; their quotient x V (larger scales are dearer, smaller ones cheaper); and what all
views are of as many plain looks at the same sizes, which leaves what uniting them costs. Without a
GPU a second is one of CPU time, into which other processes do not enter.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from measure import machine, parser, show

from downstream.backbone.config import BackboneConfig
from downstream.detection import model as detection
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.inference import predict
from downstream.segmentation import model as segmentation

VIEWS = {
    "mirrored": ([1.0], True),
    "0.8, 1, 1.2, mirrored": ([0.8, 1.0, 1.2], True),
    "0.5 to 1.5 by 0.25, mirrored": ([0.5, 0.75, 1.0, 1.25, 1.5], True),
}
SMALL = {"channels": 64, "head_channels": 128}
DETECTORS = {
    "faster_rcnn": SMALL,
    "keypoint_rcnn": {**SMALL, "keypoint_channels": [64] * 4},
    "mask_rcnn": {**SMALL, "mask_channels": [64] * 4},
}
Look = Callable[[list[float], bool], object]
"""(scales, mirrored, too) -> what is found in an image."""


def arguments() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("--backbone", default="mobilenetv3_small_100")
    words.add_argument("--size", type=int, default=256, help="shorter side, px")
    words.add_argument("--repeats", type=int, default=2, help="images of one timed round")
    words.add_argument("--rounds", type=int, default=5)
    return words.parse_args()


def detector(name: str, given: argparse.Namespace, image: torch.Tensor) -> Look:
    points = Keypoints(tuple(map(str, range(17))), flip_pairs=((1, 2), (3, 4)))
    backbone = BackboneConfig(name=given.backbone, pretrained=False)
    args = {**DETECTORS[name], "score_threshold": 0.0}  # 100 boxes in each view
    built = detection.build(name, backbone, 3, args, points)
    model = detection.DetectionModel(built, list("abc"), points).eval().to(image.device)
    augment = BoxAugmentConfig(sizes=[given.size], test_size=given.size, longest=None)
    return lambda scales, flip: predict(model, image, augment, BoxTestConfig(scales, flip))


def segmenter(given: argparse.Namespace, image: torch.Tensor) -> Look:
    backbone = BackboneConfig(name=given.backbone, pretrained=False)
    built = segmentation.build("fcn", backbone, 12)
    model = segmentation.SegmentationModel(built, list("abcdefghijkl")).eval().to(image.device)
    return lambda scales, flip: model.segment(image, scales=scales, flip=flip)


def seconds(look: Look, scales: list[float], flip: bool, given: argparse.Namespace) -> float:
    """Of one image."""
    cuda = torch.cuda.is_available()
    synchronise = torch.cuda.synchronize if cuda else lambda: None
    clock = time.perf_counter if cuda else time.process_time
    synchronise()
    start = clock()
    for _ in range(given.repeats):
        look(scales, flip)
    synchronise()
    return (clock() - start) / given.repeats


def row(name: str, look: Look, views: str, given: argparse.Namespace) -> list[str]:
    scales, flip = VIEWS[views]
    number = len(scales) * (1 + flip)
    look(scales, flip)
    rounds = []
    for _ in range(given.rounds):
        once = {scale: seconds(look, [scale], False, given) for scale in scales}
        together = seconds(look, scales, flip, given)
        apart = sum(once.values()) * (1 + flip)
        counted = number * once[1.0] / together
        rounds.append((1 / once[1.0], 1 / together, counted, apart / together))
    plain, all_views, counted, cost = map(statistics.median, zip(*rounds, strict=True))
    return [name, views, f"{plain:.2f}", f"{all_views:.2f}", f"{counted:.2f}", f"{cost:.2f}"]


def main() -> None:
    given = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    shape = (given.size, given.size * 4 // 3, 3)
    image = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else machine(torch.get_num_threads())
    print(f"{given.backbone}, images of {shape[1]} x {shape[0]} px; {where}; {given.rounds} rounds")
    looks = {name: detector(name, given, image) for name in DETECTORS}
    looks["fcn"] = segmenter(given, image)
    show(
        ["network", "views", "plain, img/s", "all views, img/s", "x V : plain", ": looks"],
        (row(name, look, views, given) for name, look in looks.items() for views in VIEWS),
    )


if __name__ == "__main__":
    main()
