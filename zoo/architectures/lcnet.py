"""PP-LCNet at widths that timm does not name (Cui et al. 2021, https://arxiv.org/abs/2109.15099)."""

from __future__ import annotations

from typing import Any

from timm.models.mobilenetv3 import MobileNetV3, _gen_lcnet


def lcnet_025_ssld(pretrained: bool = False, **kwargs: Any) -> MobileNetV3:
    """PP-LCNet of a quarter of the width."""
    return _gen_lcnet("lcnet_025_ssld", 0.25, pretrained=pretrained, **kwargs)


def lcnet_250_ssld(pretrained: bool = False, **kwargs: Any) -> MobileNetV3:
    """PP-LCNet of 2.5 times the width."""
    return _gen_lcnet("lcnet_250_ssld", 2.5, pretrained=pretrained, **kwargs)
