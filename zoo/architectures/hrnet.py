"""SE-HRNet-W64: HRNet with squeeze-and-excitation on every residual block.

Wang et al. 2020, https://arxiv.org/abs/1908.07919; reference: PaddleClas
ppcls/arch/backbone/legendary_models/hrnet.py with `has_se=True` (Apache-2.0).
"""

from __future__ import annotations

from typing import Any

from timm.layers.squeeze_excite import SEModule
from timm.models._builder import build_model_with_cfg, pretrained_cfg_for_features
from timm.models.hrnet import HighResolutionNet, HighResolutionNetFeatures, cfg_cls
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

_REDUCTION = 16


def _squeeze_and_excite(model: nn.Module) -> None:
    """Put an SE module on the last batch norm of every residual block."""
    blocks: list[Any] = [b for b in model.modules() if isinstance(b, BasicBlock | Bottleneck)]
    for block in blocks:
        like = block.conv1.weight
        last: Any = getattr(block, "bn3", block.bn2)
        channels = last.num_features
        block.se = SEModule(
            channels, rd_channels=channels // _REDUCTION, device=like.device, dtype=like.dtype
        )


class SEHighResolutionNet(HighResolutionNet):
    """The classifier."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _squeeze_and_excite(self)


class SEHighResolutionNetFeatures(HighResolutionNetFeatures):
    """The feature pyramid; takes the arguments of timm's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _squeeze_and_excite(self)


def _se_hrnet_w64(
    pretrained: bool = False, *, features_only: bool = False, **kwargs: Any
) -> nn.Module:
    """SE-HRNet-W64; without the bias of the head's convolutions, which Paddle does not have."""
    kwargs.setdefault("head_conv_bias", False)
    model: Any = build_model_with_cfg(
        SEHighResolutionNetFeatures if features_only else SEHighResolutionNet,
        "se_hrnet_w64_ssld",
        pretrained,
        model_cfg=cfg_cls["hrnet_w64"],
        # the head's tensors have no place in the feature pyramid
        pretrained_strict=not features_only,
        **({"kwargs_filter": ("num_classes", "global_pool")} if features_only else {}),
        **kwargs,
    )
    if features_only:
        model.pretrained_cfg = pretrained_cfg_for_features(model.pretrained_cfg)
        model.default_cfg = model.pretrained_cfg
    return model


CREATE = {"se_hrnet_w64_ssld": _se_hrnet_w64}
