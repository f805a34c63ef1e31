"""Whole images, windows, scales and mirror images, against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from segmenting import dilated, hrnet
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.segmentation.heads.deeplab import DeepLabV3Plus
from downstream.segmentation.heads.fcn import FCN
from downstream.segmentation.inference import predict, predict_both, windows
from ssld.common.errors import InputError


class Local(nn.Module):
    """Logits of a pixel depend on nothing but its colour: what a 1x1 convolution computes, but in
    one order of additions for any size."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight[:, :, None, None])
        self.seen: list[tuple[int, int]] = []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((int(images.shape[2]), int(images.shape[3])))
        red, green, blue = (images[:, i, None] * self.weight[:, i] for i in range(3))
        return red + green + blue


class Global(Local):
    """Logits depend on the place within the window and on its mean, unlike on both sides."""

    def forward(self, images: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 2, images.shape[3]) * torch.arange(5.0)[:, None, None]
        return super().forward(images) * (1 + images.mean()) + ramp


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


SIZES = [(40, 60), (33, 47), (16, 60), (9, 13), (17, 16)]
CROPS = [((16, 16), None), ((16, 24), (5, 16)), ((8, 30), (8, 30)), ((64, 64), (1, 1))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("crop", "stride"), CROPS)
def test_windows_cover_every_pixel_as_often_as_the_naive_loop(size, crop, stride):
    count, wanted = np.zeros(size, int), np.zeros(size, int)
    for top, left, height, width in windows(size, crop, stride):
        assert (height, width) == (min(size[0], crop[0]), min(size[1], crop[1]))
        assert top >= 0 and left >= 0 and top + height <= size[0] and left + width <= size[1]
        count[top : top + height, left : left + width] += 1
    step = stride or tuple(math.ceil(2 * side / 3) for side in crop)
    tops, lefts = [], []
    for starts, length, side, by in zip((tops, lefts), size, crop, step, strict=True):
        start = 0
        while start + side < length:
            starts.append(start)
            start += by
        starts.append(max(0, length - side))
    for top in tops:
        for left in lefts:
            wanted[top : top + crop[0], left : left + crop[1]] += 1
    assert count.min() >= 1 and np.array_equal(count, wanted)


def test_the_default_stride_is_two_thirds():
    starts = [left for _, left, _, _ in windows((10, 100), (10, 32))]
    assert starts == [0, 22, 44, 66, 68]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("crop", "stride"), CROPS)
def test_windows_of_a_local_network_are_the_whole_image_exactly(size, crop, stride):
    image, network = picture(*size), Local()
    whole = predict(network, image)
    assert torch.equal(whole, network(image[None])[0].double().softmax(0).float())
    network.seen.clear()
    assert torch.equal(predict(network, image, crop=crop, stride=stride), whole)
    assert network.seen == [(h, w) for _, _, h, w in windows(size, crop, stride)]


def test_windows_average_probabilities():
    image, network = picture(20, 31), Global()
    total, count = np.zeros((5, 20, 31)), np.zeros((20, 31))
    for top in (0, 6):
        for left in (0, 8, 15):
            part = image[:, top : top + 14, left : left + 16]
            with torch.no_grad():
                seen = network(part[None])[0].double().softmax(0).numpy()
            for c in range(5):
                for y in range(14):
                    for x in range(16):
                        total[c, top + y, left + x] += seen[c, y, x]
            count[top : top + 14, left : left + 16] += 1
    found = predict(network, image, crop=(14, 16), stride=(7, 8))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), total / count, atol=1e-6)


def test_scales_and_mirror_images_average_probabilities():
    image, network = picture(20, 30), Global()
    total = torch.zeros(5, 20, 30, dtype=torch.float64)
    for size in ((10, 15), (20, 30), (35, 53)):  # 52.5 is rounded up
        for mirrored in (False, True):
            seen = F.interpolate(image[None], size, mode="bilinear")
            seen = seen.flip(3) if mirrored else seen
            with torch.no_grad():
                found = network(seen).double().softmax(1)
            found = found.flip(3) if mirrored else found
            total += F.interpolate(found, (20, 30), mode="bilinear")[0]
    found = predict(network, image, scales=(0.5, 1.0, 1.75), flip=True)
    torch.testing.assert_close(found.double(), total / 6, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(0), torch.ones(20, 30))


@pytest.mark.parametrize("scales", [(0.5, 1.0, 1.75), (2.0, 0.8), (1.0,)])
def test_one_view_beside_all_of_them(scales):
    """The same bits as alone, and nothing is seen twice."""
    image, network = picture(20, 30), Global()
    test = {"crop": (16, 16), "stride": None}
    nearest = min(scales, key=lambda scale: abs(math.log(scale)))
    alone = predict(network, image, scales=[nearest], **test)
    whole = predict(network, image, scales=scales, flip=True, **test)
    before, network.seen = len(network.seen), []
    found, one = predict_both(network, image, scales=scales, flip=True, **test)
    assert torch.equal(found, whole) and torch.equal(one, alone) and not torch.equal(found, one)
    assert found.dtype == one.dtype == torch.float32
    windows_of = {s: len(windows((int(20 * s + 0.5), int(30 * s + 0.5)), (16, 16))) for s in scales}
    assert len(network.seen) == 2 * sum(windows_of.values()) < before


@pytest.mark.parametrize("crop", [None, (16, 16)])
def test_with_flip_a_mirrored_picture_has_mirrored_probabilities(crop):
    image, network = picture(25, 41), Global()
    mirrored = image.flip(2)
    found = predict(network, image, crop=crop, flip=True)
    assert torch.equal(predict(network, mirrored, crop=crop, flip=True).flip(2), found)
    other = predict(network, mirrored, crop=crop).flip(2)
    assert (other - predict(network, image, crop=crop)).abs().max() > 0.01
    several = (0.75, 1.0)
    found = predict(network, image, crop=crop, flip=True, scales=several)
    other = predict(network, mirrored, crop=crop, flip=True, scales=several).flip(2)
    torch.testing.assert_close(other, found, atol=1e-5, rtol=0)  # resizing rounds to the right


@pytest.mark.parametrize(
    "make", [lambda: FCN(hrnet(), 4), lambda: DeepLabV3Plus(dilated(4, 32), 4)]
)
def test_real_networks_take_any_size_in_any_way(make):
    network = make().eval()
    image = picture(45, 70)
    for crop in (None, (32, 32), (33, 100)):
        found = predict(network, image, crop=crop, scales=(0.5, 1.25), flip=True)
        assert found.shape == (4, 45, 70) and not found.requires_grad
        torch.testing.assert_close(found.sum(0), torch.ones(45, 70))


@pytest.mark.parametrize("stride", [(17, 16), (16, 0), (-1, 16)])
def test_windows_that_leave_pixels_out_are_refused(stride):
    with pytest.raises(InputError, match="leaves pixels out.*from 1 to those of the window"):
        predict(Local(), picture(20, 20), crop=(16, 16), stride=stride)


def test_a_scale_leaves_at_least_a_pixel():
    found = predict(Local(), picture(20, 1), scales=(0.01, 1))
    assert found.shape[1:] == (20, 1) and bool(found.isfinite().all())
