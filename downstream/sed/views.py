"""Two views of an image without annotations, weak for the teacher and strong for the student, of
one geometry (Guo et al. 2022, section 3.2). They are a function of (seed, sample id, view number),
their size with `resize: square` of (seed, batch number).

The strong one's numbers are Unbiased Teacher's (arXiv:2102.09480), in its order: colour jitter,
grey, blur, erasings. Noise there is normal and wraps around at white; here it is even, 0 to 255.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from downstream.dense.preflight import Readable
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.geometry import make_sample
from downstream.detection.data.transforms import TrainBoxView
from downstream.sed.config import StrongConfig
from ssld.data.decode import Unreadable, decode
from ssld.data.erasing import Erasing, erase
from ssld.data.transforms import key_of

FACTORS, HUE = (0.6, 1.4), (-0.1, 0.1)
"""Of brightness, contrast and saturation; of a turn."""
BLUR_PX = (0.1, 2.0)
"""Standard deviation."""
ERASINGS = (
    Erasing(0.7, (0.05, 0.2), (0.3, 3.3)),
    Erasing(0.5, (0.02, 0.2), (0.1, 6.0)),
    Erasing(0.3, (0.02, 0.2), (0.05, 8.0)),
)


class UnlabeledView:
    """Args:
    augment: of which the weak view takes flip and resize, whatever else labeled images see.
    seed: the run's.
    held_out: {`pixels_sum`: where it is} of images that must not be learned from.
    """

    def __init__(
        self,
        augment: BoxAugmentConfig,
        strong: StrongConfig,
        seed: int,
        held_out: Mapping[bytes, str] | None = None,
    ) -> None:
        self.weak = TrainBoxView(augment, seed)
        self.strong = strong
        self.held_out = held_out or {}

    def __call__(
        self, source: Readable, index: int, view: int, batch_number: int
    ) -> tuple[Tensor, Tensor]:
        """View number `view` of an image: weak and strong, uint8 [h, w, 3] each, all of it picture.

        Raises:
            Unreadable, OSError: the image cannot be read, or is a held-out one.
        """
        draw = random.Random(key_of(self.weak.seed, source.sample_id(index), view))
        pixels = np.ascontiguousarray(decode(source.read(index)))
        twin = self.held_out.get(pixels_sum(pixels)) if self.held_out else None
        if twin:
            raise Unreadable(f"has the pixels of the held-out image {twin}, so it is not seen")
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        sample = make_sample(torch.from_numpy(pixels).permute(2, 0, 1), *nothing)
        weak = self.weak.flipped_and_resized(sample, draw, batch_number).image.as_subclass(Tensor)
        strong = strengthen(weak, draw, self.strong)
        return weak.permute(1, 2, 0).contiguous(), strong.permute(1, 2, 0).contiguous()


def pixels_sum(pixels: np.ndarray) -> bytes:
    """Digest of an image, uint8 [h, w, 3], however it is stored."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def strengthen(pixels: Tensor, draw: random.Random, strong: StrongConfig) -> Tensor:
    """The strong view of a weak one, uint8 [3, h, w] each."""
    if draw.random() < strong.jitter:
        pixels = _jittered(pixels, draw)
    if draw.random() < strong.grey:
        pixels = tv.rgb_to_grayscale(pixels, num_output_channels=3)
    if draw.random() < strong.blur:
        pixels = _blurred(pixels, draw.uniform(*BLUR_PX))
    for erasing in ERASINGS[: strong.erasings]:
        pixels = erase(pixels, draw, erasing)
    return pixels


def _jittered(pixels: Tensor, draw: random.Random) -> Tensor:
    steps = [
        (tv.adjust_brightness, draw.uniform(*FACTORS)),
        (tv.adjust_contrast, draw.uniform(*FACTORS)),
        (tv.adjust_saturation, draw.uniform(*FACTORS)),
        (tv.adjust_hue, draw.uniform(*HUE)),
    ]
    draw.shuffle(steps)
    for adjust, factor in steps:
        pixels = adjust(pixels, factor)
    return pixels


def _blurred(pixels: Tensor, deviation: float) -> Tensor:
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    blurred = np.array(image.filter(ImageFilter.GaussianBlur(deviation)))
    return torch.from_numpy(blurred).permute(2, 0, 1)
