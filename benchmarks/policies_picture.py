"""Draw `docs/self-training/policies.png`: training views of Augment-S1 to S4, and mosaics, with
what moved along.

    python benchmarks/prepare.py downstream --packs PACKS     # once, writes runs/downstream
    python benchmarks/policies_picture.py [--sets cells mouse streets] [--views 4] [--out FILE]

Rows are views of an image of each set, columns the policies; masks have no mosaic. Streets are CC
BY-NC 4.0: they are not in the committed picture. Ignored pixels are dark.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from measure import parser

from downstream.dense.drawing import draw_boxes, draw_keypoints, draw_mask
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.boxes import BoxSource, open_boxes
from downstream.detection.data.transforms import TrainBoxView
from downstream.segmentation.config import MaskAugmentConfig
from downstream.segmentation.data.class_table import IGNORE
from downstream.segmentation.data.masks import MaskSource, open_masks
from downstream.segmentation.data.transforms import TrainMaskView
from ssld.report.plots import new_figure

SIDE = 256
POLICIES: dict[str, dict] = {
    "S1": {"scale": (0.8, 1.2)},
    "S2": {"scale": (0.8, 1.2), "policy": "autoaugment"},
    "S3": {"scale": (0.5, 2.0), "policy": "autoaugment"},
    "S4": {"scale": (0.5, 2.0), "policy": "randaugment"},
}
MOSAIC: dict[str, dict] = {"mosaic": {"mosaic": 1, "scale": (0.5, 1.5)}}


def with_boxes(source: BoxSource, image: int, view: int, given: dict) -> np.ndarray:
    augment = BoxAugmentConfig(resize="longer", sizes=[SIDE], test_size=SIDE, **given)
    pixels, target = TrainBoxView(augment, seed=0)(source, image, view, 0)
    drawn = draw_boxes(
        pixels.numpy(), target["boxes"].numpy(), target["labels"].tolist(), source.class_names
    )
    if source.keypoints is None:
        return drawn
    return draw_keypoints(drawn, target["keypoints"].numpy(), source.keypoints)


def with_masks(source: MaskSource, image: int, view: int, given: dict) -> np.ndarray:
    augment = MaskAugmentConfig(
        crop=(SIDE, SIDE), scale_of="crop", scale_step=None, colour=0, **given
    )
    pixels, mask = (x.numpy() for x in TrainMaskView(augment, seed=0)(source, image, view))
    drawn = draw_mask(pixels, mask, source.palette)
    return np.where(mask[..., None] == IGNORE, pixels // 2, drawn)


def opened(name: str, runs: Path) -> tuple:
    """What draws a view of a set, the set, and the number of an image."""
    if name == "cells":
        return with_boxes, open_boxes(f"{runs}/bccd/annotations/train.json::{runs}/bccd/images"), 3
    if name == "mouse":
        return with_boxes, open_boxes(f"{runs}/mouse/train.json"), 0
    return with_masks, open_masks(f"{runs}/camvid::train"), 0


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=Path, default=Path("runs/downstream"))
    options.add_argument("--sets", nargs="+", default=["cells", "mouse"])
    options.add_argument("--views", type=int, default=1, help="rows of each set")
    options.add_argument("--out", type=Path, default=Path("docs/self-training/policies.png"))
    given = options.parse_args()
    rows = [(*opened(name, given.runs), i) for name in given.sets for i in range(given.views)]
    figure: Figure = new_figure()
    figure.set_size_inches(10, 2.05 * len(rows))
    columns = POLICIES | MOSAIC
    plots = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, (make, source, image, view) in enumerate(rows):
        for plot, (name, settings) in zip(plots[i], columns.items(), strict=True):
            plot.set_axis_off()
            if make is with_boxes or name not in MOSAIC:
                plot.imshow(make(source, image, view, settings))
            plot.set_title("" if i else name, fontsize=9)
    figure.savefig(given.out, dpi=80)


if __name__ == "__main__":
    main()
