"""What a detector finds in an image, seen once or in several views."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.data.transforms import view_size
from downstream.detection.heads.detector import Detections
from downstream.detection.model import DetectionModel


def predict(
    model: DetectionModel, pixels: Tensor, augment: BoxAugmentConfig, test: BoxTestConfig
) -> Detections:
    """What the detector finds in one image.

    Args:
        pixels: uint8 [h, w, 3], the upright image, where the model is.
        augment: says the size of a view.
        test: says the views.

    Returns:
        as of `downstream/detection/networks.py`, in px of the image.
    """
    height, width = pixels.shape[:2]
    size = view_size((height, width), augment.test_size, augment)
    view = tv.resize(pixels.permute(2, 0, 1), list(size), antialias=True).permute(1, 2, 0)[None]
    found = model(view, view.new_tensor([size], dtype=int))[0]
    scale = found["boxes"].new_tensor([size[1] / width, size[0] / height] * 2)
    return {**found, "boxes": found["boxes"] / scale}
