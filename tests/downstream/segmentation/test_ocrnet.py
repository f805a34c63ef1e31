"""Object regions and attention of OCRNet, against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from downstream.segmentation.heads.ocrnet import ObjectAttention, OCRHead, gather


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def naive_gather(pixels: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """[c, h, w] and [classes, h, w] -> [c, classes]."""
    c, h, w = pixels.shape
    found = np.zeros((c, len(regions)))
    places = [(y, x) for y in range(h) for x in range(w)]
    for k, region in enumerate(regions):
        for weight, (y, x) in zip(softmax([region[p] for p in places]), places, strict=True):
            found[:, k] += weight * pixels[:, y, x]
    return found


def test_a_region_is_the_mean_of_its_pixels():
    pixels, regions = draw(2, 5, 3, 4), 3 * draw(2, 6, 3, 4, seed=1)
    found = gather(pixels, regions)
    assert found.shape == (2, 5, 6, 1)
    for i in range(2):
        wanted = naive_gather(pixels[i].numpy(), regions[i].numpy())
        np.testing.assert_allclose(found[i, :, :, 0].numpy(), wanted, rtol=1e-10)


def test_a_sure_region_is_the_mean_of_what_is_inside():
    pixels = draw(1, 5, 3, 4)
    inside = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    inside[..., 1, 1:3] = 1
    found = gather(pixels, 1000 * inside)
    np.testing.assert_allclose(found[0, :, 0, 0], pixels[0, :, 1, 1:3].mean(1), rtol=1e-10)


def stack(layers: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """1x1 convolution, batch norm by running statistics and ReLU, repeated: [c, n] -> [c', n]."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None and module.kernel_size == (1, 1)
            x = module.weight[:, :, 0, 0].detach().numpy() @ x
        elif isinstance(module, nn.BatchNorm2d):
            scale, shift, mean, variance = (
                p.detach().numpy()[:, None]
                for p in (module.weight, module.bias, module.running_mean, module.running_var)
            )
            x = (x - mean) / np.sqrt(variance + module.eps) * scale + shift
        elif isinstance(module, nn.ReLU):
            x = np.maximum(x, 0)
    return x


def shaken(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with batch norms that do something."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias, 0.3, 0.3)
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
        elif isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, 0, 0.5)
    return module.double().eval()


def naive_attention(block: ObjectAttention, pixels: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """[c, pixels] and [c, classes] -> [c, pixels]."""
    query, key = stack(block.query, pixels), stack(block.key, regions)
    value = stack(block.value, regions)
    context = np.zeros((len(value), pixels.shape[1]))
    for i in range(pixels.shape[1]):
        likeness = [query[:, i] @ key[:, k] / math.sqrt(len(key)) for k in range(key.shape[1])]
        for weight, k in zip(softmax(likeness), range(key.shape[1]), strict=True):
            context[:, i] += weight * value[:, k]
    return stack(block.up, context)


def test_attention_is_the_naive_loop():
    block = shaken(ObjectAttention(6, 4))
    pixels, regions = draw(2, 6, 3, 5), draw(2, 6, 7, 1, seed=1)
    with torch.no_grad():
        found = block(pixels, regions)
    assert found.shape == pixels.shape
    for i in range(2):
        wanted = naive_attention(block, pixels[i].flatten(1).numpy(), regions[i, :, :, 0].numpy())
        assert wanted.std() > 0.1
        np.testing.assert_allclose(found[i].flatten(1).numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_the_head_joins_context_and_pixels():
    head = shaken(OCRHead(5, 3, mid_channels=6, key_channels=4))
    maps = [draw(1, 5, 4, 6)]
    with torch.no_grad():
        (found,) = head(maps)
        pixels = head.pixels(maps[0])[0].flatten(1).numpy()
        regions = head.regions(maps[0])[0].numpy()
    objects = naive_gather(pixels.reshape(6, 4, 6), regions)
    context = naive_attention(head.attention, pixels, objects)
    hidden = stack(head.bottleneck, np.concatenate([context, pixels]))
    weight, bias = (p.detach().numpy() for p in head.classifier.parameters())
    wanted = weight[:, :, 0, 0] @ hidden + bias[:, None]
    np.testing.assert_allclose(found[0].flatten(1).numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_training_shows_the_regions_own_logits():
    head = OCRHead(5, 3, mid_channels=6, key_channels=4).train()
    main, auxiliary = head([draw(2, 5, 4, 6).float()])
    assert main.shape == auxiliary.shape == (2, 3, 4, 6)
    head.eval()
    with torch.no_grad():
        assert len(head([draw(2, 5, 4, 6).float()])) == 1


@pytest.mark.parametrize("which", ["regions", "attention"])
def test_main_logits_depend_on_regions_and_attention(which):
    head = shaken(OCRHead(5, 3, mid_channels=6, key_channels=4))
    maps = [draw(1, 5, 4, 6)]
    with torch.no_grad():
        before = head(maps)[0]
        for parameter in getattr(head, which).parameters():
            parameter.mul_(1.5)
        assert (head(maps)[0] - before).abs().max() > 1e-3
