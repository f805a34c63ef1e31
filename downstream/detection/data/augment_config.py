"""How images with boxes become training views. Imports no torch, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssld.distill.config import require


@dataclass(frozen=True)
class BoxAugmentConfig:
    """Mixup, colour, expand, crop, flip and resize, in this order (PaddleDetection
    `configs/yolov3/_base_/yolov3_reader.yml`, with which SSLD's YOLOv3 was trained). By default
    multi-scale resize and flip: detectron2 `configs/Base-RCNN-FPN.yaml`."""

    resize: Literal["shorter", "square"] = "shorter"
    """shorter: the shorter side to one of `sizes`, keeping the aspect. square: both sides to it."""
    sizes: list[int] = field(default_factory=lambda: [640, 672, 704, 736, 768, 800])
    """Sides in px to draw from: for each image (shorter) or for each batch (square)."""
    test_size: int = 800
    """Side in px of evaluation views."""
    longest: int | None = 1333
    """With `shorter` the longer side's upper limit in px, which then decides; null: none."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    colour: float = 0.0
    """Probability of each of SSD's distortions (brightness, contrast, saturation, hue): 0.5."""
    expand: float = 1.0
    """SSD's zoom-out, for half of the images: up to so many times the sides; SSD: 4. 1 is off."""
    crop: bool = False
    """SSD's crop by its overlap with a box."""
    mixup: float = 0.0
    """alpha of mixup with another image, Beta(alpha, alpha); YOLOv3: 1.5. 0 is off."""
    mixup_epochs: int | None = None
    """Epochs with mixup, the first ones; YOLOv3: 250 of 270. null: all."""

    def __post_init__(self) -> None:
        require(
            bool(self.sizes) and min(self.sizes) > 0,
            f"augment.sizes is {self.sizes}: give one side in px above 0, or several",
        )
        require(self.test_size > 0, f"augment.test_size is {self.test_size}: give px above 0")
        require(
            self.longest is None or self.longest >= max(self.sizes),
            f"augment.longest is {self.longest}: give at least the largest of sizes "
            f"({max(self.sizes)}), or null",
        )
        require(0 <= self.flip <= 1, f"augment.flip is {self.flip}: give a probability")
        require(0 <= self.colour <= 1, f"augment.colour is {self.colour}: give a probability")
        require(self.expand >= 1, f"augment.expand is {self.expand}: give a ratio of 1 or more")
        require(self.mixup >= 0, f"augment.mixup is {self.mixup}: give 0 or more")
        require(
            self.mixup_epochs is None or self.mixup_epochs >= 0,
            f"augment.mixup_epochs is {self.mixup_epochs}: give 0 or more, or null",
        )
