"""NAS-FPN against its figure, written out join by join."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from downstream.dense.nas_fpn import NASFPN, enlarged


def pyramid(repeats: int = 1, **options: bool) -> NASFPN:
    """Of four channels, in float64, with statistics that are not those of the start."""
    torch.manual_seed(0)
    network = NASFPN((2, 4, 3), 4, repeats, **options).double()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.running_mean.normal_()
    return network.eval()


def maps(height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32)]
    return [
        torch.randn(2, c, *size, generator=generator, dtype=torch.float64)
        for c, size in zip((2, 4, 3), sizes, strict=True)
    ]


def down(x: Tensor, times: int = 1) -> Tensor:
    """Halved by the largest of each 2x2, where there are fewer at the rim of those."""
    for _ in range(times):
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), value=-torch.inf)
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    return x


def up(x: Tensor, factor: int, like: Tensor) -> Tensor:
    rows, columns = (torch.arange(n) // factor for n in like.shape[-2:])
    return x[..., rows, :][..., columns]


def attend(coarse: Tensor, fine: Tensor) -> Tensor:
    """Global pooling of the coarse one weighs the channels of the fine one (section 3.2)."""
    weight = 1 / (1 + (-coarse.flatten(2).max(2).values).exp())
    return coarse + fine * weight[..., None, None]


def cell(p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor, p7: Tensor, joints: list) -> list[Tensor]:
    """Figure 5: [b, c, h, w] each."""
    a = joints[0](attend(up(p6, 4, p4), p4))
    b = joints[1](p4 + a)
    out3 = joints[2](up(b, 2, p3) + p3)
    out4 = joints[3](down(out3) + b)
    out5 = joints[4](attend(down(out4), down(out3, 2)) + p5)
    out7 = joints[5](attend(down(out5, 2), down(b, 3)) + p7)
    out6 = joints[6](attend(up(out7, 2, p6), down(out5)))
    return [out3, out4, out5, out6, out7]


@pytest.mark.parametrize("size", [(256, 128), (136, 200)])
def test_two_cells_are_those_of_the_figure(size: tuple[int, int]) -> None:
    network, given = pyramid(2), maps(*size)
    with torch.no_grad():
        found = network(given)
        levels = [lateral(x) for lateral, x in zip(network.laterals, given, strict=True)]
        assert levels[1] is given[1]  # as wide as the pyramid: no convolution
        levels += [down(levels[2]), down(levels[2], 2)]
        for one in network.cells:
            levels = cell(*levels, joints=list(one.joints))
    for level, expected in zip(found, levels, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-12, atol=1e-12)


def test_a_joint_is_activation_convolution_and_norm() -> None:
    for separable, kinds in (
        (False, ["SiLU", "Conv2d", "BatchNorm2d"]),
        (True, ["SiLU", "Conv2d", "Conv2d", "BatchNorm2d"]),
    ):
        network = NASFPN((2, 4, 3), 4, 1, separable=separable, activation=torch.nn.SiLU)
        joints = network.cells[0].joints
        assert [[type(m).__name__ for m in joint] for joint in joints] == [kinds] * 7


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_what_is_enlarged_lies_on_its_stride_at_any_size(mode: str) -> None:
    """A map of 5 cells at stride 2 of 9: not 9 / 5 times as large."""
    x = torch.arange(5.0).expand(1, 1, 5, 5)
    row = enlarged(x, 2, (9, 9), mode)[0, 0, 4]
    at = (torch.arange(9) + 0.5) / 2 - 0.5  # centres of the cells
    expected = at.round() if mode == "nearest" else at.clamp(0, 4)
    expected = torch.arange(9) // 2 if mode == "nearest" else expected
    torch.testing.assert_close(row, expected.float())
