"""The evaluation view is timm's for every `crop_mode` and `crop_pct` that weights can ask for."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from ssld.data.transforms import eval_view
from ssld.models.classifier import Classifier
from zoo.described import CROP_MODES

MEAN = (0.4, 0.5, 0.6)


def photo(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1, (6, 8, 3))
    smooth = Image.fromarray((noise * 40 + 128).clip(0, 255).astype(np.uint8))
    return np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def seen(crop_mode: str, crop_pct: float, interpolation: str = "bicubic") -> SimpleNamespace:
    return SimpleNamespace(
        input_size=48,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        mean=MEAN,
    )


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 1.15])
@pytest.mark.parametrize("shape", [(150, 200), (201, 150), (60, 60), (20, 33), (30, 140)])
def test_every_crop_mode_is_timms(crop_mode, crop_pct, shape):
    pixels = photo(*shape)
    for interpolation in ("bilinear", "bicubic"):
        said = {"interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode}
        transform = timm.data.create_transform((3, 48, 48), **said, mean=MEAN, std=(1, 1, 1))
        expected = transform(Image.fromarray(pixels)) + torch.tensor(MEAN).view(3, 1, 1)
        got = eval_view(seen(crop_mode, crop_pct, interpolation))(png(pixels))
        assert got.dtype == torch.uint8 and got.shape == (48, 48, 3)
        difference = (got - expected.permute(1, 2, 0) * 255).abs()
        assert difference.mean() < 1 and difference.max() < 12


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (9000, 1), (3, 4000)])
def test_thin_images_are_seen_in_every_mode(crop_mode, shape):
    data = png(np.full((*shape, 3), 77, np.uint8))
    for crop_pct in (0.9, 1.15):
        view = eval_view(seen(crop_mode, crop_pct))(data)
        assert view.shape == (48, 48, 3) and (view == 77).all(2).any()


def test_a_network_sees_what_its_weights_ask_for():
    for crop_mode in ("squash", "border"):
        network = Classifier(
            timm.create_model("test_resnet", pretrained_cfg={"crop_mode": crop_mode})
        )
        assert network.crop_mode == crop_mode
        assert getattr(eval_view(network), "crop_mode", "center") == crop_mode
    assert eval_view(network, 96).size == 96
