"""Maps of several strides from the one of a plain vision transformer.

ViTDet (Li et al. 2022, arXiv:2203.16527, section 3), as detectron2's SimpleFeaturePyramid
(modeling/backbone/vit.py) has it: from the last map, of stride 16, those of 4 and 8 by transposed
convolutions, that of 32 by pooling. *Deviations*: its 1 x 1 and 3 x 3 convolutions to one width are
those of the detectors' own pyramids, and attention is global in all blocks, as it was when the
weights were trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from ssld.common.errors import InputError


class SimplePyramid(nn.Module):
    """One map -> maps of other strides.

    Args:
        channels, stride: of the map.
        strides: wanted, each a power of two times or below `stride`, from shallow to deep.
        name: of the backbone, for messages.

    Attributes:
        channels: of the maps: halved at each doubling of the size.

    Raises:
        InputError: a stride that cannot be had from this one, or too few channels.
    """

    def __init__(self, channels: int, stride: int, strides: Sequence[int], name: str) -> None:
        super().__init__()
        levels, self.channels = [], []
        for wanted in strides:
            doublings = _doublings(stride, wanted, name)
            if doublings <= 0:
                factor = 2**-doublings
                levels.append(nn.MaxPool2d(factor, ceil_mode=True) if factor > 1 else nn.Identity())
                self.channels.append(channels)
                continue
            layers: list[nn.Module] = []
            for i in range(doublings):
                width, half = channels // 2**i, channels // 2 ** (i + 1)
                layers += [LayerNorm2d(width), nn.GELU()] if i else []
                layers.append(nn.ConvTranspose2d(width, half, 2, 2))
            levels.append(nn.Sequential(*layers))
            self.channels.append(channels // 2**doublings)
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[b, channels, h, w] -> [b, channels[i], h * stride / strides[i], ...]."""
        return [level(x) for level in self.levels]


def _doublings(stride: int, wanted: int, name: str) -> int:
    """How often the size doubles from a map of `stride` to one of `wanted`."""
    for doublings in range(-8, 9):
        if wanted * 2.0**doublings == stride:
            return doublings
    raise InputError(
        f"backbone {name} has one map, of stride {stride}, from which none of stride {wanted} can "
        "be made: give it patches of 16 px (backbone.args {patch_size: 16})"
    )
