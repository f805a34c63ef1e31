"""NAS-FPN: a feature pyramid, P3 to P7, whose seven joints a search found, as often as wanted one
behind the other.

Ghiasi et al. 2019, https://arxiv.org/abs/1904.07392, section 3 and figure 5; joints and order of
operations: tensorflow/tpu models/official/detection/modeling/architecture/nasfpn.py (Apache-2.0).

Left out: DropBlock, stochastic depth and bottleneck blocks in the joints (options of that file
that neither the paper's main table nor Zoph et al. 2020 set), and the biases before batch norms.
Maps that are enlarged are cut where sizes are not divisible, so that every map lies on its stride
at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = (3, 4, 5, 6, 7)
"""Of the maps that come out; one of level l has stride 2^l."""


class Joint(NamedTuple):
    """Two maps become one."""

    level: int
    attention: bool
    """Else a sum."""
    inputs: tuple[int, int]
    """By number: 0 to 4 are P3 to P7 as they come in, 5 the first joint, and so on."""
    added: tuple[int, ...] = ()
    """Maps of the level that no joint has taken; they are added."""


JOINTS = (
    Joint(4, True, (1, 3)),
    Joint(4, False, (1, 5)),
    Joint(3, False, (0, 6)),
    Joint(4, False, (6, 7)),
    Joint(5, True, (7, 8), added=(2,)),
    Joint(7, True, (6, 9), added=(4,)),
    Joint(6, True, (9, 10)),
)
"""`NASFPN_BLOCK_SPECS`. The last five are P3, P4, P5, P7 and P6 as they go out."""
OUT = (7, 8, 9, 11, 10)


class NASFPN(nn.Module):
    """Maps of strides 8, 16 and 32 to those of strides 8 to 128.

    Args:
        in_channels: of the three maps.
        channels: of the five.
        repeats: how often the seven joints stand one behind the other (paper: 7; 3 for mobile
            networks).
        separable: depthwise 3x3 and 1x1 convolutions in the place of 3x3 ones.
        activation: before each convolution.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        repeats: int = 7,
        *,
        separable: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels))
            if inputs != channels
            else nn.Identity()
            for inputs in in_channels
        )
        self.cells = nn.ModuleList(_Cell(channels, separable, activation) for _ in range(repeats))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # Keras's own choice, which the reference leaves
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """float [b, in_channels[i], h / 2^l, w / 2^l] of l = 3, 4, 5 -> [b, channels, h / 2^l, w /
        2^l] of l = 3 to 7; sizes are rounded up."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for _ in LEVELS[len(levels) :]:
            levels.append(_smaller(levels[-1], 2))
        for cell in self.cells:
            levels = cell(levels)
        return levels


class _Cell(nn.Module):
    """P3 to P7 -> P3 to P7, once through the joints."""

    def __init__(self, channels: int, separable: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.joints = nn.ModuleList(
            nn.Sequential(activation(), *_conv(channels, separable), nn.BatchNorm2d(channels))
            for _ in JOINTS
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps, levels = list(maps), [*LEVELS, *(joint.level for joint in JOINTS)]
        for joint, layers in zip(JOINTS, self.joints, strict=True):
            like = maps[joint.level - LEVELS[0]]
            # The map of the higher level says what counts in the other.
            coarse, fine = sorted(joint.inputs, key=lambda i: levels[i], reverse=True)
            x, y = (_resampled(maps[i], levels[i] - joint.level, like) for i in (coarse, fine))
            joined = x + (y * x.amax((2, 3), keepdim=True).sigmoid() if joint.attention else y)
            maps.append(layers(sum((maps[i] for i in joint.added), joined)))
        return [maps[i] for i in OUT]


def _conv(channels: int, separable: bool) -> list[nn.Module]:
    if not separable:
        return [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
    return [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    ]


def _resampled(x: Tensor, steps: int, like: Tensor) -> Tensor:
    """A map `steps` levels above (below, if negative) that of `like`, at its size."""
    if steps <= 0:
        return _smaller(x, 2**-steps)
    return enlarged(x, 2**steps, (like.shape[-2], like.shape[-1]), "nearest")


def _smaller(x: Tensor, factor: int) -> Tensor:
    """The largest of each square of cells."""
    return F.max_pool2d(x, factor, ceil_mode=True) if factor > 1 else x


def enlarged(x: Tensor, factor: int, size: tuple[int, int], mode: str) -> Tensor:
    """float [b, c, h, w] -> [b, c, *size]: `factor` times as large, and cut to the size."""
    corners = {} if mode == "nearest" else {"align_corners": False}
    x = F.interpolate(x, scale_factor=factor, mode=mode, **corners) if factor > 1 else x
    return x[..., : size[0], : size[1]]
