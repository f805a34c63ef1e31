"""DCNv2 against a loop over points in float64, and against the convolution that it starts as."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from downstream.backbone.backbone import open_backbone
from downstream.backbone.config import BackboneConfig
from downstream.detection.heads.deformable import DeformableConv, deform_last_stage
from ssld.common.errors import InputError

SHAPES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_starts_as_the_plain_convolution_to_the_last_bit(shape):
    conv = nn.Conv2d(5, 7, **shape)
    for parameter in conv.parameters():  # whole numbers: sums are exact in any order
        parameter.data = torch.randint(-4, 5, parameter.shape).float()
    x = torch.randint(-9, 10, (2, 5, 11, 13)).float()
    new = DeformableConv.from_conv(conv)
    assert torch.equal(new(x), conv(x))
    assert new.weight is conv.weight and new.bias is conv.bias


@pytest.mark.parametrize("shape", SHAPES)
def test_starts_as_the_plain_convolution_of_real_numbers(shape):
    conv = nn.Conv2d(5, 7, **shape).double()
    x = torch.randn(2, 5, 11, 13, dtype=torch.float64)
    torch.testing.assert_close(DeformableConv.from_conv(conv)(x), conv(x), rtol=0, atol=1e-13)


def naive(layer: DeformableConv, x: Tensor, distances: Tensor, factors: Tensor) -> Tensor:
    """The sum of arXiv 1811.11168, section 3.2, read bilinearly, with zeros outside the map."""
    outputs, inputs, k, _ = layer.weight.shape
    b, _, rows, columns = distances.shape
    out = torch.zeros(b, outputs, rows, columns, dtype=x.dtype)

    def read(i: int, y: float, x_: float) -> Tensor:
        value = torch.zeros(inputs, dtype=x.dtype)
        for yy in (math.floor(y), math.floor(y) + 1):
            for xx in (math.floor(x_), math.floor(x_) + 1):
                if 0 <= yy < x.shape[2] and 0 <= xx < x.shape[3]:
                    value += (1 - abs(y - yy)) * (1 - abs(x_ - xx)) * x[i, :, yy, xx]
        return value

    for i in range(b):
        for r in range(rows):
            for c in range(columns):
                for p in range(k * k):
                    move = distances[i, 2 * p : 2 * p + 2, r, c].tolist()
                    y = r * layer.stride - layer.padding + p // k * layer.dilation + move[0]
                    z = c * layer.stride - layer.padding + p % k * layer.dilation + move[1]
                    share = 2 / (1 + torch.exp(-factors[i, p, r, c]))
                    out[i, :, r, c] += layer.weight[:, :, p // k, p % k] @ (share * read(i, y, z))
    return out if layer.bias is None else out + layer.bias.view(-1, 1, 1)


@pytest.mark.parametrize("shape", [{"stride": 1}, {"stride": 2, "bias": True}, {"dilation": 2}])
def test_moved_and_weighted_points_against_a_loop(shape):
    torch.manual_seed(0)
    layer = DeformableConv(3, 4, **shape).double()
    nn.init.normal_(layer.motion.weight, std=0.3)
    nn.init.normal_(layer.motion.bias)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        motion = layer.motion(x)
        expected = naive(layer, x, motion[:, :18], motion[:, 18:])
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_autocast_computes_in_float32_and_answers_as_a_convolution_does():
    torch.manual_seed(0)
    layer = DeformableConv(3, 4)
    nn.init.normal_(layer.motion.weight)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        again = layer(y.mean(1, keepdim=True).expand(-1, 3, -1, -1))  # bfloat16 comes in, too
    assert y.dtype == again.dtype == torch.bfloat16
    assert torch.equal(y, layer(x).bfloat16())
    y.float().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and layer.motion.weight.grad is not None


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, (3, 1)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
    ],
)
def test_what_cannot_become_deformable_is_refused(conv):
    with pytest.raises(InputError, match="cannot become deformable"):
        DeformableConv.from_conv(conv)


def test_the_last_stage_of_a_resnet_d_and_nothing_else():
    args = {"zero_init_last": False}  # or the stage would not count in the maps at all
    backbone = open_backbone(BackboneConfig(name="resnet26d", pretrained=False, args=args))
    backbone.train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = backbone.eval()(x)
        assert deform_last_stage(backbone.train(), 32) == [
            "model.layer4.0.conv2",
            "model.layer4.1.conv2",
        ]
        assert all(module.training for module in backbone.modules())
        torch.testing.assert_close(backbone.eval()(x), maps, rtol=1e-5, atol=1e-5)
    after = backbone.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {k for k in after.keys() - before.keys() if ".conv2.motion." not in k} == set()
    scales = backbone.lr_scales()
    assert scales.keys() == dict(backbone.named_parameters()).keys()


def test_a_stage_of_depthwise_convolutions_is_refused():
    config = BackboneConfig(name="mobilenetv3_small_050", pretrained=False)
    with pytest.raises(InputError, match=r"last stage \(stride 32\).* no 3x3 .*use a ResNet-D"):
        deform_last_stage(open_backbone(config), 32)


def test_a_place_that_is_no_number_is_nowhere():
    """A network that has diverged says so; torchvision's kernel would read foreign memory."""
    conv = DeformableConv.from_conv(nn.Conv2d(3, 4, 3, padding=1))
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        conv.motion.bias[0] = torch.nan  # the first point's y alone, its x and factor are numbers
    found = conv(x)
    found.sum().backward()
    whole = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    without = conv.weight.detach().clone()
    without[:, :, 0, 0] = 0
    torch.testing.assert_close(found, nn.functional.conv2d(x, without, conv.bias, padding=1))
    assert not torch.allclose(found, whole)
    assert conv(torch.full_like(x, torch.nan)).isnan().all()
