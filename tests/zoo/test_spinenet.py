"""SpineNet against a plain loop over the reference's table, and as a network of timm."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import zoo.registration
from zoo.architectures.spinenet import CREATE, fused
from zoo.publish.card import _needs_zoo

NARROW = {"filter_size_scale": 0.125, "endpoints_num_filters": 8}
# As tensorflow/tpu has it: level, kind, two parents, output; 0 and 1 are the stem's.
TABLE = """
2 bottleneck 0 1 -
4 residual 0 1 -
3 bottleneck 2 3 -
4 bottleneck 2 4 -
6 residual 3 5 -
4 bottleneck 3 5 -
5 residual 6 7 -
7 residual 6 8 -
5 bottleneck 8 9 -
5 bottleneck 8 10 -
4 bottleneck 5 10 out
3 bottleneck 4 10 out
5 bottleneck 7 12 out
7 bottleneck 5 14 out
6 bottleneck 12 14 out
"""


def spinenet(name: str = "spinenet49", **args: object) -> nn.Module:
    """Narrow, float64, with statistics that are not those of the start."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **{**NARROW, **args}).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


def resampled(x: Tensor, module: nn.Module, level: int, target: int) -> Tensor:
    x = module.reduce(x)
    if target > level:
        x = module.shrink(x)
    if target > level + 1:
        side = 3 if target == level + 2 else 5
        stride = 2 ** (target - level - 1)
        x = F.pad(x, (side // 2,) * 4, value=-torch.inf)
        x = x.unfold(2, side, stride).unfold(3, side, stride).amax((4, 5))
    for _ in range(target, level):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return module.expand(x)


@pytest.mark.parametrize("args", [{}, {"block_repeats": 2, "resample_alpha": 1.0}])
def test_maps_are_those_of_the_table(args: dict) -> None:
    model = spinenet(**args)
    x = torch.randn(1, 3, 128, 256, dtype=torch.float64)
    with torch.no_grad():
        maps, levels = [model.stem(x)], [2, 2]
        maps.append(model.stem_end(maps[0]))
        kinds, used, ends = ["bottleneck"] * 2, set(), {}
        for block, line in zip(model.blocks, TABLE.strip().splitlines(), strict=True):
            level, kind, first, second, output = line.split()
            parents, target = (int(first), int(second)), int(level)
            used |= set(parents)
            one, two = (
                resampled(maps[i], module, levels[i], target)
                for i, module in zip(parents, block.resample, strict=True)
            )
            y = one + two
            for i in range(len(maps)):
                like = (levels[i], kinds[i]) == (target, kind)
                if output == "out" and i not in used and like:
                    y = y + maps[i]
                    used.add(i)
            maps.append(block.layers(y.relu()))
            levels.append(target)
            kinds.append(kind)
            if output == "out":
                ends[target] = maps[-1]
        expected = [model.endpoints[i](ends[i + 3]) for i in range(5)]
        found = model.maps(x)
    for level, wanted in zip(found, expected, strict=True):
        assert wanted.std() > 1e-3
        torch.testing.assert_close(level, wanted, rtol=1e-9, atol=1e-9)


def test_a_classifier_sees_the_mean_of_all_levels() -> None:
    model, x = spinenet(), torch.randn(2, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        pooled = torch.stack([level.mean((2, 3)) for level in model.maps(x)]).mean(0)
        torch.testing.assert_close(model(x), model.head.fc(pooled))
        features = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)


def test_maps_of_any_size_lie_on_their_strides() -> None:
    model = spinenet()
    maps = model.forward_intermediates(
        torch.zeros(1, 3, 200, 136, dtype=torch.float64), intermediates_only=True
    )
    assert [tuple(x.shape[-2:]) for x in maps] == [(25, 17), (13, 9), (7, 5), (4, 3), (2, 2)]
    levels = [torch.full((1, 1, *x.shape[-2:]), float(10**i)) for i, x in enumerate(maps)]
    levels[2] = torch.arange(7.0)[:, None].expand(1, 1, 7, 5)
    rows = fused(levels)[0, 0, :, 0] * 5 - 11011
    assert rows.tolist() == pytest.approx((np.arange(25) // 4).tolist(), abs=1e-2)


def test_timm_knows_the_five_and_what_they_are() -> None:
    assert tuple(CREATE) == zoo.registration.UNTRAINED
    model = timm.create_model("spinenet49", features_only=True, out_indices=(0, 4), **NARROW)
    assert model.feature_info.reduction() == [8, 128]
    shapes = [tuple(x.shape) for x in model.eval()(torch.zeros(1, 3, 128, 128))]
    assert shapes == [(1, 8, 16, 16), (1, 8, 1, 1)]
    with pytest.raises(RuntimeError, match="No pretrained weights exist for spinenet49"):
        timm.create_model("spinenet49", pretrained=True, **NARROW)
    whole = timm.create_model("spinenet49s", num_classes=0, act_layer="silu", drop_path_rate=0.2)
    assert whole.num_features == 128 and isinstance(whole.get_classifier(), nn.Identity)
    rates = [block.layers[0].drop_path.drop_prob for block in whole.blocks]
    assert rates == pytest.approx([0.2 * i / 15 for i in range(1, 16)])
    assert not any(isinstance(m, nn.ReLU) for m in whole.modules())


def test_a_card_says_that_it_takes_this_package() -> None:
    assert [_needs_zoo(name) for name in ("spinenet49", "resnet50d")] == [True, False]


def test_every_parameter_learns() -> None:
    model = timm.create_model("spinenet49", num_classes=5, **NARROW)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "millions", "cost"),
    [("spinenet49", 22.1, 3.5)],
)
def test_classifiers_have_the_published_size(name: str, millions: float, cost: float) -> None:
    """tensorflow/tpu models/official/detection/MODEL_ZOO.md, images of 224 px, 1001 classes."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = timm.create_model(name, num_classes=1001).eval()
        model(torch.zeros(1, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert counter.get_total_flops() / 2e9 == pytest.approx(cost, rel=0.02)
