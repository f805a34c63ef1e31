"""The operations of AutoAugment and RandAugment, through torchvision: one geometry for an image and
all that is drawn on it, and changes of colour.

What their strength 1 is has its source in tensorflow/tpu (Apache-2.0),
models/official/detection/utils/autoaugment_utils.py, whose highest level, 10, it is. Other than
there:

- Strength 0 leaves the image alone, and more is stronger: posterizing to 0 bits, or solarizing all
  pixels, is no weak change. At strength 1 only solarize differs (all is inverted, not nothing).
- Distances are shares of the image's longer side. The reference's px are those of COCO's images,
  whose longer side is 640: a photograph of 4000 px and one of 64 px change as much as they do.
- Images are bilinear, not of the nearest pixel, as in every other resize here.

Other than torchvision's own AutoAugment, which raises on boxes: keypoints, too, go where the pixels
do, and what comes in from outside is grey.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor, where
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import Image, Mask

GREY = 128.0
"""What comes in from outside, and what is cut out (`replace_value`)."""
COCO_PX = 640
"""The longer side of most of COCO's images."""

DEGREES, SLOPE = 30.0, 0.3
"""Of a rotation about the middle, and of a shear about the upper left corner."""
SHIFT, SHIFT_IN_BOX = 250 / COCO_PX, 120 / COCO_PX
"""`translate_const` and `translate_bbox_const`: shares of the longer side."""
CUTOUT = 100 / COCO_PX
"""`cutout_const`: half of the side of what is cut out, a share of the longer side."""
POSTERIZE_BITS = 4
"""That are lost of 8."""
ADDED, ADDED_BELOW = 110, 128
"""By solarize_add, to all values below the second."""
BLEND = 0.9
"""By how much a factor of colour, contrast, brightness or sharpness is above or below 1."""

BLENDS = {
    "color": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "brightness": tv.adjust_brightness,
    "sharpness": tv.adjust_sharpness,
}
WITHOUT_STRENGTH = {"autocontrast": tv.autocontrast, "equalize": tv.equalize, "invert": tv.invert}
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOURS = (*WITHOUT_STRENGTH, "posterize", "solarize", "solarize_add", *BLENDS)
"""All but `cutout`, which draws a place."""


def move(part: Any, name: str, strength: float, outside: int = 0) -> Any:
    """An image, or boxes, keypoints or masks on it, after one of GEOMETRIC.

    Args:
        part: a tv_tensor. Boxes become the hull of their moved corners; they are cut to the image
            as their own `clamping_mode` says.
        strength: of either sign.
        outside: what a mask has where the image does not reach.
    """
    if strength == 0:
        return part
    size = part.shape[-2:] if isinstance(part, Image | Mask) else part.canvas_size
    how = _affine(name, strength, max(size))
    if isinstance(part, Image):
        how |= {"interpolation": InterpolationMode.BILINEAR, "fill": [GREY] * 3}
    elif isinstance(part, Mask):
        how |= {"fill": outside}
    return tv.affine(part, **how)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """[..., h, w] to (height, width) by the pixel whose middle is nearest. As an image:
    torchvision 0.23 takes `nearest`, half a pixel off, for a `Mask`, whatever it is told."""
    planes = mask.as_subclass(Tensor).reshape(-1, *mask.shape[-2:])
    resized = tv.resize(planes, list(size), InterpolationMode.NEAREST_EXACT)
    resized = resized.reshape(*mask.shape[:-2], *size)
    return Mask(resized) if isinstance(mask, Mask) else resized


def _affine(name: str, strength: float, longer: int) -> dict[str, Any]:
    """Arguments of torchvision's `affine`, for an image whose longer side has so many px."""
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": None}
    along = int(name.endswith("_y"))
    if name == "rotate":
        return {**still, "angle": DEGREES * strength}
    if name.startswith("translate"):
        still["translate"][along] = round(SHIFT * strength * longer)
        return still
    still["shear"][along] = -math.degrees(math.atan(SLOPE * strength))
    return {**still, "center": [0.0, 0.0]}


def recolour(image: Image, name: str, strength: float) -> Image:
    """An image, uint8 [3, h, w], after one of COLOURS.

    Args:
        strength: 0 or more; of BLENDS of either sign.
    """
    if name in WITHOUT_STRENGTH:
        return Image(WITHOUT_STRENGTH[name](image))
    if name in BLENDS and strength:
        return Image(BLENDS[name](image, max(0.0, 1 + BLEND * strength)))
    if name == "posterize":
        return Image(tv.posterize(image, max(1, 8 - round(POSTERIZE_BITS * strength))))
    threshold = math.ceil(256 * (1 - strength))
    if name == "solarize" and threshold < 256:
        return Image(tv.solarize(image, max(0, threshold)))
    if name == "solarize_add":
        brighter = (image.int() + round(ADDED * strength)).clamp(max=255).to(image.dtype)
        return Image(where(image < ADDED_BELOW, brighter, image))
    return image


def cutout(image: Image, strength: float, draw: random.Random) -> Image:
    """An image, uint8 [3, h, w], with a grey square about a drawn pixel. Labels of what is hidden
    stay: the rest of the image tells of it (DeVries and Taylor 2017, arXiv:1708.04552)."""
    height, width = image.shape[-2:]
    half = int(CUTOUT * strength * max(height, width))
    y, x = draw.randrange(height), draw.randrange(width)
    cut = image.as_subclass(Tensor).clone()
    cut[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = GREY
    return Image(cut)
