"""Plain vision transformers as backbones: one map of their own, and others made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from downstream.backbone.backbone import Backbone, describe, open_backbone, rebuild
from downstream.backbone.config import BackboneConfig
from downstream.detection.model import on_backbone
from downstream.segmentation.model import on_backbone as segmenter_on
from ssld.common.errors import InputError


def opened(name: str = "test_vit", strides=(4, 8, 16, 32), **settings) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(name, pretrained=False, **settings)
    return open_backbone(config, strides=strides).eval()


def maps_of(backbone: Backbone, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return backbone(image)


def test_one_map_is_the_classifiers_own():
    backbone = opened()
    torch.manual_seed(1)
    classifier: Any = timm.create_model("test_vit").eval()
    own = {name.removeprefix("model."): x for name, x in backbone.state_dict().items()}
    classifier.load_state_dict({x: own[x] for x in own if not x.startswith("pyramid")}, False)
    found: list[torch.Tensor] = []
    classifier.blocks[-1].register_forward_hook(lambda *x: found.append(x[-1]))
    side = backbone.input_size
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        classifier(image)
    tokens = found[0][:, classifier.num_prefix_tokens :]  # [2, h w, c]
    wanted = tokens.transpose(1, 2).reshape(2, -1, side // 16, side // 16)
    maps = maps_of(backbone, image)
    assert torch.equal(maps[2], wanted)
    assert torch.equal(maps[3], F.max_pool2d(wanted, 2, ceil_mode=True))


@pytest.mark.parametrize("size", [(64, 96), (100, 150), (33, 17)])
def test_maps_have_the_strides_that_are_said(size):
    backbone = opened()
    assert backbone.strides == (4, 8, 16, 32) and backbone.channels == (16, 32, 64, 64)
    for x, stride, channels in zip(
        maps_of(backbone, torch.randn(1, 3, *size)),
        backbone.strides,
        backbone.channels,
        strict=True,
    ):
        assert x.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_what_is_new_learns_at_the_heads_rate_and_is_never_frozen():
    backbone = opened(lr="tuned")
    scales = backbone.lr_scales()
    new = {name for name, _ in backbone.named_parameters() if name.startswith("pyramid.")}
    assert new and all(scales[name] == 1 for name in new)
    assert scales["model.blocks.5.attn.qkv.weight"] == 0.15
    assert scales["model.patch_embed.proj.weight"] == 0.05
    assert all(x.requires_grad for name, x in backbone.named_parameters() if name in new)


def test_it_is_built_again_from_its_description():
    backbone = opened()
    again = rebuild(json.loads(json.dumps(describe(backbone)))).eval()
    again.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 3, 48, 80)
    assert all(map(torch.equal, maps_of(again, image), maps_of(backbone, image)))


def test_detectors_and_segmenters_learn_on_it():
    images = torch.randn(2, 3, 64, 96)
    sizes = torch.tensor([[64, 96], [60, 90]])
    box = {"boxes": torch.tensor([[4.0, 8, 40, 50]]), "labels": torch.tensor([1])}
    target = {**box, "weights": torch.ones(1)}
    narrow = {"channels": 16, "anchor_sizes": [8, 16, 32, 64, 128]}
    detector = on_backbone("retinanet", opened(strides=(8, 16, 32)), 3, narrow).train()
    losses = detector(images, sizes, [target, target])
    torch.stack(list(losses.values())).sum().backward()
    for name, x in detector.named_parameters():
        if "pyramid" in name or "blocks" in name:
            assert x.grad is not None and x.grad.isfinite().all(), name
    segmenter = segmenter_on("fcn", opened(), 3).eval()
    with torch.no_grad():
        assert segmenter(images).shape == (2, 3, 64, 96)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("test_vit", {"patch_size": 14, "img_size": 112}, "of stride 14, from which none of"),
        ("mixer_s16_224", {}, "takes images of one size alone"),
    ],
)
def test_others_are_refused(name, args, said):
    with pytest.raises(InputError, match=said):
        opened(name, args=args)
