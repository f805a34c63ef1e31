"""The losses of segmenters against loops in float64 and torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from downstream.segmentation.losses import counted, dice_loss, pixel_loss, weights_of
from ssld.common.errors import InputError

NAMES = ["sky", "road", "pole", "car", "tree"]


def batch_of_pixels(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, 7, 9, generator=generator)
    masks = torch.randint(0, 5, (6, 7, 9), generator=generator).to(torch.uint8)
    for i, mask in enumerate(masks):
        mask[: i + 1] = 255
    masks[2] = 255
    return logits, masks


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_the_loss_is_the_mean_over_valid_pixels(dtype):
    logits, masks = batch_of_pixels()
    log_p = logits.double().log_softmax(1).numpy()
    sums, count = np.zeros(6), 0
    for i, y, x in zip(*np.nonzero(masks.numpy() != 255), strict=True):
        sums[i] -= log_p[i, masks[i, y, x], y, x]
        count += 1
    loss = pixel_loss(logits, masks.to(dtype))
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), sums / count * 6, rtol=1e-6)
    assert loss[2] == 0
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits, masks.long(), ignore_index=255))


def test_half_precision_logits_have_a_float32_loss():
    logits, masks = batch_of_pixels()
    found = pixel_loss(logits.bfloat16(), masks)
    assert found.dtype == torch.float32
    assert torch.equal(found, pixel_loss(logits.bfloat16().float(), masks))


def test_parts_of_a_batch_with_the_common_count_are_the_whole():
    logits, masks = batch_of_pixels()
    wanted = pixel_loss(logits, masks)
    per_image = (masks != 255).sum() / 6
    parts = [
        pixel_loss(logits[part], masks[part], per_image) for part in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), wanted)
    alone = [pixel_loss(logits[part], masks[part]).mean() for part in (slice(0, 3), slice(3, 6))]
    assert abs(torch.stack(alone).mean() - wanted.mean()) > 1e-3  # why the count is needed


def test_a_pixel_of_a_weighted_class_counts_so_often():
    logits, masks = batch_of_pixels()
    weights = weights_of({"pole": 5, "sky": 0}, NAMES)
    assert weights is not None and weights.tolist() == [0, 1, 5, 1, 1]
    found = pixel_loss(logits, masks, class_weights=weights)
    wanted = F.cross_entropy(logits, masks.long(), weights, ignore_index=255)
    torch.testing.assert_close(found.mean(), wanted)
    common = counted(masks, weights)
    parts = [pixel_loss(logits[i : i + 2], masks[i : i + 2], common, weights) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), found)
    assert weights_of({}, NAMES) is None


def test_dice_is_that_of_a_loop():
    logits, masks = batch_of_pixels()
    masks[1][masks[1] == 3] = 4  # a class that an image lacks
    p = logits.double().softmax(1).numpy()
    wanted = []
    for image, mask in zip(p, masks.numpy(), strict=True):
        losses = []
        for c in set(mask[mask != 255].tolist()):
            both = either = 0.0
            for y, x in zip(*np.nonzero(mask != 255), strict=True):
                there = float(mask[y, x] == c)
                both += image[c, y, x] * there
                either += image[c, y, x] ** 2 + there**2
            losses.append(1 - 2 * both / either)
        wanted.append(np.mean(losses) if losses else 0.0)
    found = dice_loss(logits, masks)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    assert found[2] == 0 and found.dtype == torch.float32


def test_dice_of_what_is_right_is_0_and_of_what_is_wrong_1():
    masks = torch.tensor([[[0, 1], [1, 255]]])
    right = 50 * F.one_hot(masks.clamp(max=1), 3).permute(0, 3, 1, 2).float()
    assert dice_loss(right, masks)[0] < 1e-6
    assert dice_loss(right.roll(1, 1), masks)[0] > 1 - 1e-6


def test_nothing_to_learn_has_no_gradient():
    logits, _ = batch_of_pixels()
    logits.requires_grad_()
    masks = torch.full((6, 7, 9), 255, dtype=torch.uint8)
    (dice_loss(logits, masks) + pixel_loss(logits, masks)).sum().backward()
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"pol": 5}, "'pol', which no class is called"), (dict.fromkeys(NAMES, 0), "are all 0")],
)
def test_weights_without_meaning_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        weights_of(given, NAMES)
