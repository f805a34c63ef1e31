"""SpineNet: blocks of seven scales that are not in the order of their scales, and join as a search
found best; a backbone that has its own feature pyramid, P3 to P7.

Du et al. 2020, https://arxiv.org/abs/1912.05027, section 3; blocks, widths and the five sizes:
tensorflow/tpu models/official/detection/modeling/architecture/spinenet.py, what a classifier makes
of the pyramid: heads.py, `ClassificationHead` with aggregation `all` (Apache-2.0).

All weights are random: none are published for PyTorch, and those of TensorFlow are not converted.
What differs: 3x3 and 5x5 pooling has its padding on both sides (TensorFlow: behind), and a map that
is enlarged is cut where sizes are not divisible, so that every map lies on its stride at any size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from timm.layers.classifier import ClassifierHead
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.create_act import get_act_layer
from timm.layers.drop import DropPath
from timm.layers.weight_init import lecun_normal_
from timm.models._builder import build_model_with_cfg
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

FILTERS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
"""Of the inner convolutions of blocks, by level (`FILTER_SIZE_MAP`)."""
LEVELS = (3, 4, 5, 6, 7)
"""Of the pyramid; a map of level l has stride 2^l."""
STEM = 64
"""Channels of the first convolution, in every size."""


class Spec(NamedTuple):
    """A block: its level, whether it is a bottleneck (else two 3x3 convolutions), its parents by
    number, where 0 and 1 are the stem's two, and whether the pyramid's map of its level is made
    of it."""

    level: int
    bottleneck: bool
    parents: tuple[int, ...]
    output: bool = False

    def filters(self, scale: float) -> int:
        return int(FILTERS[self.level] * scale)

    def channels(self, scale: float) -> int:
        return self.filters(scale) * (4 if self.bottleneck else 1)


SPECS = (
    Spec(2, True, ()),
    Spec(2, True, (0,)),
    Spec(2, True, (0, 1)),
    Spec(4, False, (0, 1)),
    Spec(3, True, (2, 3)),
    Spec(4, True, (2, 4)),
    Spec(6, False, (3, 5)),
    Spec(4, True, (3, 5)),
    Spec(5, False, (6, 7)),
    Spec(7, False, (6, 8)),
    Spec(5, True, (8, 9)),
    Spec(5, True, (8, 10)),
    Spec(4, True, (5, 10), output=True),
    Spec(3, True, (4, 10), output=True),
    Spec(5, True, (7, 12), output=True),
    Spec(7, True, (5, 14), output=True),
    Spec(6, True, (12, 14), output=True),
)
"""`SPINENET_BLOCK_SPECS` behind the stem's two."""


def _added() -> list[list[int]]:
    """By block, those that are added to what it takes, without a convolution: blocks before an
    output that no block has taken yet, of its level and width."""
    taken: set[int] = set()
    found = []
    for number, spec in enumerate(SPECS):
        taken.update(spec.parents)
        found.append(
            [
                i
                for i, other in enumerate(SPECS[:number])
                if spec.output and i not in taken
                if (other.level, other.channels(1)) == (spec.level, spec.channels(1))
            ]
        )
        taken.update(found[-1])
    return found


ADDED = _added()


class Resample(nn.Module):
    """A parent's map at the size and with the channels of its child: 1x1 to a part of the parent's
    filters, the size, 1x1 (`resample_with_alpha`).

    Smaller by a 3x3 convolution of stride 2, and pooling from a quarter on; larger by repetition.
    """

    def __init__(self, parent: Spec, child: Spec, scale: float, alpha: float, layer: Any) -> None:
        super().__init__()
        inner = int(parent.filters(scale) * alpha)
        steps = child.level - parent.level
        self.factor = 2 ** max(0, -steps)
        self.reduce = layer(parent.channels(scale), inner, 1)
        self.shrink = layer(inner, inner, 3, stride=2) if steps > 0 else nn.Identity()
        self.pool: nn.Module = nn.Identity()
        if steps > 1:
            size = 3 if steps == 2 else 5
            self.pool = nn.MaxPool2d(size, 2 ** (steps - 1), padding=size // 2)
        self.expand = layer(inner, child.channels(scale), 1, apply_act=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.pool(self.shrink(self.reduce(x)))
        return self.expand(repeated(x, self.factor, size))


class ScalePermutedBlock(nn.Module):
    """What a block makes of all maps before it; `rates` of stochastic depth."""

    def __init__(
        self, number: int, scale: float, alpha: float, repeats: int, act: Any, rate: float
    ) -> None:
        super().__init__()
        spec, layer = SPECS[number], partial(ConvNormAct, act_layer=act)
        self.parents, self.added = spec.parents, ADDED[number]
        self.resample = nn.ModuleList(
            Resample(SPECS[i], spec, scale, alpha, layer) for i in spec.parents
        )
        self.act = act(inplace=True)
        self.layers = _layers(spec, spec.channels(scale), scale, repeats, act, rate)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        first, second = (
            resample(maps[i], size) for resample, i in zip(self.resample, self.parents, strict=True)
        )
        x = first + second
        for i in self.added:
            x = x + maps[i]
        return self.layers(self.act(x))


class SpineNet(nn.Module):
    """The classifier; its maps are P3 to P7 (`forward_intermediates`).

    Args:
        filter_size_scale: of the channels of all blocks.
        block_repeats: layers of each block.
        resample_alpha: share of a parent's filters that its map is resampled with.
        endpoints_num_filters: channels of P3 to P7.
        act_layer: relu, or silu as in the longer trainings of the paper's appendix.
        drop_path_rate: of stochastic depth in the last block, in proportion in those before.

    The others are timm's.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        filter_size_scale: float = 1.0,
        block_repeats: int = 1,
        resample_alpha: float = 0.5,
        endpoints_num_filters: int = 256,
        act_layer: str = "relu",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        act: Any = get_act_layer(act_layer)
        scale, repeats = filter_size_scale, block_repeats
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = endpoints_num_filters
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, STEM, 7, stride=2, act_layer=act),
            nn.MaxPool2d(3, 2, padding=1),
            _layers(SPECS[0], STEM, scale, repeats, act),
        )
        self.stem_end = _layers(SPECS[1], SPECS[0].channels(scale), scale, repeats, act)
        numbers = range(2, len(SPECS))
        rates = [drop_path_rate * (i - 1) / len(numbers) for i in numbers]
        self.blocks = nn.ModuleList(
            ScalePermutedBlock(i, scale, resample_alpha, repeats, act, rate)
            for i, rate in zip(numbers, rates, strict=True)
        )
        self.ends = [next(i for i in numbers if _is_end(i, level)) for level in LEVELS]
        self.endpoints = nn.ModuleList(
            ConvNormAct(SPECS[i].channels(scale), endpoints_num_filters, 1, act_layer=act)
            for i in self.ends
        )
        self.feature_info = [
            {"num_chs": endpoints_num_filters, "reduction": 2**level, "module": f"endpoints.{i}"}
            for i, level in enumerate(LEVELS)
        ]
        self.head = ClassifierHead(endpoints_num_filters, num_classes, global_pool, drop_rate)
        self.init_weights()

    def init_weights(self) -> None:
        """`variance_scaling_initializer` (nn_ops.py), and .01 for the classifier (heads.py)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                lecun_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Stem, the blocks in their order, and what makes P3 to P7 of them."""
        return {
            "stem": r"^stem",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^endpoints", (99999,))],
        }

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def maps(self, x: Tensor) -> list[Tensor]:
        """[b, 3, h, w] -> P3 to P7, [b, channels, h / 2^l, w / 2^l], rounded up."""
        height, width = x.shape[-2:]
        sizes = {i: (-(-height // 2**i), -(-width // 2**i)) for i in FILTERS}
        maps = [first := self.stem(x), self.stem_end(first)]
        for spec, block in zip(SPECS[2:], self.blocks, strict=True):
            maps.append(block(maps, sizes[spec.level]))
        return [end(maps[i]) for end, i in zip(self.endpoints, self.ends, strict=True)]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """See timm: the maps of `indices`, or (what the head takes, the maps)."""
        maps = self.maps(x)
        taken = [maps[i] for i in feature_take_indices(len(LEVELS), indices)[0]]
        return taken if intermediates_only else (fused(maps), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """The head goes; maps that are not wanted stay, as others are made of them."""
        if prune_head:
            self.reset_classifier(0, "")
        return feature_take_indices(len(LEVELS), indices)[0]

    def forward_features(self, x: Tensor) -> Tensor:
        """[b, 3, h, w] -> [b, channels, h / 8, w / 8]: the mean of P3 to P7."""
        return fused(self.maps(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def repeated(x: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Each value `factor` times in both directions, cut to `size`."""
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="nearest")[..., : size[0], : size[1]]


def fused(maps: list[Tensor]) -> Tensor:
    """The mean of maps, each at half the stride of the next, at the size of the first."""
    whole = maps[-1]
    for finer in maps[-2::-1]:
        whole = repeated(whole, 2, (finer.shape[-2], finer.shape[-1])) + finer
    return whole / len(maps)


def _is_end(number: int, level: int) -> bool:
    return SPECS[number].output and SPECS[number].level == level


def _layers(
    spec: Spec, inputs: int, scale: float, repeats: int, act: Any, rate: float = 0.0
) -> nn.Sequential:
    """The layers of a block; the first one's shortcut is a convolution where channels change."""
    kind, filters, outputs = _kind(spec), spec.filters(scale), spec.channels(scale)
    shortcut = ConvNormAct(inputs, outputs, 1, apply_act=False) if inputs != outputs else None
    return nn.Sequential(
        *(
            kind(
                outputs if i else inputs,
                filters,
                downsample=None if i else shortcut,
                act_layer=act,
                drop_path=DropPath(rate) if rate else None,
            )
            for i in range(repeats)
        )
    )


def _kind(spec: Spec) -> type[Bottleneck] | type[BasicBlock]:
    return Bottleneck if spec.bottleneck else BasicBlock


def _create(name: str, settings: dict[str, Any], pretrained: bool = False, **kwargs: Any) -> Any:
    return build_model_with_cfg(
        SpineNet,
        name,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
        **{**settings, **kwargs},
    )


SIZES: dict[str, dict[str, Any]] = {
    "spinenet49s": {"filter_size_scale": 0.65, "endpoints_num_filters": 128},
    "spinenet49": {},
    "spinenet96": {"block_repeats": 2},
    "spinenet143": {"block_repeats": 3, "resample_alpha": 1.0},
    "spinenet190": {
        "block_repeats": 4,
        "resample_alpha": 1.0,
        "filter_size_scale": 1.3,
        "endpoints_num_filters": 512,
    },
}
"""`SCALING_MAP`; what is not named is as in spinenet49."""
CREATE = {name: partial(_create, name, settings) for name, settings in SIZES.items()}
