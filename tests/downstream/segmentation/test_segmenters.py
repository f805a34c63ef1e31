"""Segmentation networks learn, have the published heads, and take pictures of any size."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from segmenting import dilated, hrnet, narrow_nas_fpn, narrow_ocrnet, random, shapes, small
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.backbone.backbone import describe, open_backbone, rebuild
from downstream.dense.model import backbone_for
from downstream.segmentation.confusion import Confusion
from downstream.segmentation.heads.deeplab import DeepLabV3Plus, set_multi_grid
from downstream.segmentation.heads.fcn import FCN
from downstream.segmentation.heads.nas_fpn import NASFPNSegmenter
from downstream.segmentation.heads.ocrnet import OCRNet
from downstream.segmentation.heads.segformer import SegFormer
from downstream.segmentation.heads.segmenter import Segmenter, concatenated
from downstream.segmentation.heads.unet import UNet
from downstream.segmentation.inference import predict
from downstream.segmentation.losses import pixel_loss
from downstream.segmentation.model import build, on_backbone
from downstream.segmentation.networks import SEGMENTERS
from ssld.common.errors import InputError

CASES = {  # network, learning rate, steps, side of the pictures in px
    "fcn on hrnet": (lambda: FCN(hrnet(), 4), 3e-3, 60, 64),
    "fcn on resnet-d": (lambda: FCN(dilated(32), 4), 1e-2, 120, 96),
    "deeplabv3plus": (lambda: DeepLabV3Plus(dilated(4, 32), 4), 1e-2, 40, 64),
    "ocrnet": (lambda: narrow_ocrnet(hrnet()), 1e-2, 60, 64),
    "nas_fpn": (narrow_nas_fpn, 1e-2, 80, 64),
    "unet": (lambda: UNet(small(), 4), 1e-2, 60, 64),
    "segformer": (lambda: SegFormer(small(), 4), 1e-2, 60, 64),
}


def learn(network: Segmenter, rate: float, steps: int, side: int) -> float:
    """mIoU on the four pictures that it was trained on."""
    images, masks = shapes(side=side)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3  # so few steps
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters())
    for step in range(steps):
        network.train()
        optimizer.param_groups[0]["lr"] = rate * min(1, 2 * (1 - step / steps))
        logits = network(images)
        main, *auxiliary = logits if isinstance(logits, tuple) else (logits,)
        loss = pixel_loss(main, masks).mean()
        for part in auxiliary:
            loss = loss + network.aux_weight * pixel_loss(part, masks).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9 and (reached := miou(network, images, masks)) > 0.95:
            break
    return reached


def miou(network: Segmenter, images: Tensor, masks: Tensor) -> float:
    confusion = Confusion(4)
    network.eval()
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        confusion.add(i, mask, predict(network, image).argmax(0))
    return confusion.metrics()["miou"]


@pytest.mark.parametrize("case", CASES)
def test_four_pictures_are_learned_by_heart(case):
    make, rate, steps, side = CASES[case]
    assert learn(make(), rate, steps, side) > 0.95


@pytest.mark.parametrize("case", CASES)
def test_any_size_is_padded_and_cut_back(case):
    network = CASES[case][0]().eval()
    images = torch.randn(2, 3, 64, 70)[..., :50, :]
    with torch.no_grad():
        found = network(images)
        whole = torch.zeros(2, 3, 64, 96)  # a multiple of all strides
        whole[..., :50, :70] = images
        tight = whole[..., : -(-50 // network.stride) * network.stride, :]
        tight = tight[..., : -(-70 // network.stride) * network.stride]
        logits = network.head(network.backbone(tight))[0]
    assert found.shape == (2, 4, 50, 70) and found.dtype == torch.float32
    wanted = F.interpolate(logits, tight.shape[-2:], mode="bilinear")[..., :50, :70]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("case", CASES)
def test_auxiliary_logits_are_for_training_only(case):
    network, images = CASES[case][0](), torch.randn(2, 3, 40, 64)
    has_auxiliary = case == "ocrnet"
    assert network.aux_weight == (0.4 if has_auxiliary else 0)
    found = network.train()(images)
    assert isinstance(found, tuple) == has_auxiliary
    if has_auxiliary:
        assert [x.shape for x in found] == [(2, 4, 40, 64)] * 2
    assert network.eval()(images).shape == (2, 4, 40, 64)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_reaches_every_parameter_of_the_head(case):
    network = CASES[case][0]().train()
    images, masks = shapes(2)
    logits = network(images)
    parts = logits if isinstance(logits, tuple) else (logits,)
    torch.stack([pixel_loss(part, masks).mean() for part in parts]).sum().backward()
    for name, parameter in network.head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("case", CASES)
def test_half_precision_has_logits_and_gradients_in_float32(case):
    network = CASES[case][0]().train()
    images, masks = shapes(2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
        main = logits[0] if isinstance(logits, tuple) else logits
        loss = pixel_loss(main, masks).mean()
    loss.backward()
    assert main.dtype == loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


class Widths(nn.Module):
    """A backbone that is never run."""

    def __init__(self, strides, channels) -> None:
        super().__init__()
        self.strides, self.channels = strides, channels


W18 = Widths((4, 8, 16, 32), (18, 36, 72, 144))


def convolutions(module: nn.Module) -> list[tuple[int, ...]]:
    """Output channels, input channels of a group, size and dilation."""
    return [
        (*m.weight.shape[:3], m.dilation[0]) for m in module.modules() if isinstance(m, nn.Conv2d)
    ]


def test_fcn_on_hrnet_w18_is_the_published_head():
    head = FCN(W18, 19).head
    assert convolutions(head) == [(270, 270, 1, 1), (19, 270, 1, 1)]
    weights = torch.cat([m.weight.flatten() for m in head.modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.001, rel=0.02)


def test_fcn_on_one_map_is_torchvisions():
    head = FCN(Widths((8,), (2048,)), 19).head
    assert convolutions(head) == [(512, 2048, 3, 1), (19, 512, 1, 1)]


def test_ocrnet_on_hrnet_w18_is_the_published_head():
    network = OCRNet(W18, 19)
    head = network.head
    assert network.aux_weight == 0.4
    assert convolutions(head.regions) == [(270, 270, 1, 1), (19, 270, 1, 1)]
    assert convolutions(head.pixels) == [(512, 270, 3, 1)]
    key = [(256, 512, 1, 1), (256, 256, 1, 1)]
    value = [(256, 512, 1, 1), (512, 256, 1, 1)]
    assert convolutions(head.attention) == key + key + value
    assert convolutions(head.bottleneck) + convolutions(head.classifier) == [
        (512, 1024, 1, 1),
        (19, 512, 1, 1),
    ]


def test_deeplabv3plus_is_the_published_head():
    head = DeepLabV3Plus(Widths((4, 8), (256, 2048)), 19).head
    pyramid = convolutions(head.pyramid)
    assert [c for c in pyramid if c[2] == 3] == [(2048, 1, 3, rate) for rate in (12, 24, 36)]
    # 1x1, the pointwise halves of the three, the pooled one, and that which joins all five
    assert [c[:2] for c in pyramid if c[2] == 1] == [(256, 2048)] * 5 + [(256, 1280)]
    assert convolutions(head.low) == [(48, 256, 1, 1)]
    first, second = [(304, 1, 3, 1), (256, 304, 1, 1)], [(256, 1, 3, 1), (256, 256, 1, 1)]
    assert convolutions(head.decoder) == first + second
    assert convolutions(head.classifier) == [(19, 256, 1, 1)]


def test_nas_fpn_is_the_published_head():
    head = NASFPNSegmenter(Widths((8, 16, 32), (80, 224, 640)), 21).head
    assert [c[:2] for c in convolutions(head.pyramid.laterals)] == [
        (256, 80),
        (256, 224),
        (256, 640),
    ]
    assert convolutions(head.pyramid.cells) == [(256, 1, 3, 1), (256, 256, 1, 1)] * 49
    assert convolutions(head.layers) == [(256, 256, 3, 1)] * 3
    assert convolutions(head.classifier) == [(21, 256, 1, 1)]


def test_multi_grid_changes_three_dilations_and_no_weight():
    backbone = dilated(4, 32, name="resnet50d", zero_init_last=False).eval()
    before = copy.deepcopy(backbone)
    image = torch.randn(1, 3, 64, 64)
    DeepLabV3Plus(backbone, 3)
    assert set_multi_grid(backbone)  # again: nothing changes
    grids = {
        name: (m.dilation, m.padding, old.dilation)
        for (name, m), old in zip(backbone.named_modules(), before.modules(), strict=True)
        if isinstance(m, nn.Conv2d) and (m.dilation != old.dilation or m.padding != old.padding)
    }
    assert grids == {
        "model.layer4.0.conv2": ((4, 4), (4, 4), (2, 2)),
        "model.layer4.1.conv2": ((8, 8), (8, 8), (4, 4)),
        "model.layer4.2.conv2": ((16, 16), (16, 16), (4, 4)),
    }
    with torch.no_grad():
        (low, high), (old_low, old_high) = backbone(image), before(image)
    assert torch.equal(low, old_low)
    assert high.shape == old_high.shape and not torch.equal(high, old_high)
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: open_backbone(random("resnet50d"), strides=(4, 32)),  # not dilated
        lambda: dilated(4, 32),  # basic blocks
        lambda: dilated(4, 32, name="mobilenetv2_050"),
        hrnet,
    ],
    ids=["not dilated", "basic blocks", "mobilenet", "hrnet"],
)
def test_other_backbones_have_no_multi_grid(backbone):
    network = backbone()
    before = [(m.dilation, m.padding) for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert not set_multi_grid(network)
    after = [(m.dilation, m.padding) for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert after == before


WANTED = {  # strides and channels of the maps that each network asks for
    ("fcn", "resnet14t"): ((8,), (2048,)),
    ("fcn", "hrnet_w18_small"): ((4, 8, 16, 32), (16, 32, 64, 128)),
    ("ocrnet", "hrnet_w18_small"): ((4, 8, 16, 32), (16, 32, 64, 128)),
    ("ocrnet", "test_resnet"): ((8,), (96,)),
    ("nas_fpn", "test_resnet"): ((8, 16, 32), (48, 192, 96)),
    ("unet", "test_resnet"): ((4, 8, 16, 32), (32, 48, 192, 96)),
    ("segformer", "mobilenetv2_050"): ((4, 8, 16, 32), (16, 16, 48, 160)),
    ("deeplabv3plus", "resnet50d"): ((4, 8), (256, 2048)),
    ("deeplabv3plus", "mobilenetv2_050"): ((4, 8), (16, 160)),
}


@pytest.mark.parametrize(("name", "arch"), WANTED)
def test_networks_ask_for_the_maps_they_want(name, arch):
    network = build(name, random(arch), 3)
    assert (network.backbone.strides, network.backbone.channels) == WANTED[name, arch]
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_network_is_built_again_from_its_description(name):
    config = random("resnet14t")  # bottleneck blocks
    first = on_backbone(name, backbone_for(SEGMENTERS[name], config), 3)
    again = on_backbone(name, rebuild(describe(first.backbone)), 3)
    again.load_state_dict(first.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(image), first.eval()(image))


def test_an_unknown_network_is_refused():
    with pytest.raises(InputError, match="'fcm', there are fcn, .*; did you mean 'fcn'?"):
        build("fcm", random("test_resnet"), 3)


def test_deeplabv3plus_refuses_what_cannot_be_dilated():
    with pytest.raises(InputError, match="hrnet_w18_small has no dilation to output stride 8"):
        build("deeplabv3plus", random("hrnet_w18_small"), 3)


def test_a_backbone_without_the_maps_is_refused():
    with pytest.raises(InputError, match="mixer_s16_224 has one map, and takes images of one size"):
        build("fcn", random("mixer_s16_224"), 3)


def naive_bilinear(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel centres at i + 1/2 of both grids, the border repeated: float64 [h, w] -> larger."""
    found = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * x.shape[0] / height - 0.5, 0), x.shape[0] - 1)
            z = min(max((j + 0.5) * x.shape[1] / width - 0.5, 0), x.shape[1] - 1)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[0] - 1), min(z0 + 1, x.shape[1] - 1)
            top = x[y0, z0] * (1 - z + z0) + x[y0, z1] * (z - z0)
            bottom = x[y1, z0] * (1 - z + z0) + x[y1, z1] * (z - z0)
            found[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return found


def test_maps_are_concatenated_at_the_size_of_the_first():
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(1, c, 16 // s, 24 // s, generator=generator)
        for c, s in ((2, 1), (3, 2), (1, 4))
    ]
    found = concatenated(maps)
    wanted = [naive_bilinear(x.double().numpy(), 16, 24) for m in maps for x in m[0]]
    np.testing.assert_allclose(found[0].numpy(), np.stack(wanted), atol=1e-5)


@pytest.mark.parametrize("per_image", [None, torch.tensor(0), torch.tensor(12.5)])
def test_without_a_valid_pixel_loss_and_gradient_are_zero(per_image):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((2, 4, 4), 255, dtype=torch.uint8), per_image)
    loss.mean().backward()
    assert loss.tolist() == [0, 0]
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros_like(logits))
