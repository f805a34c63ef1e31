"""PP-HGNetV2 whose stem pools as Paddle does.

Paddle's "SAME" max pooling leaves the padding out; timm pads with zeros first, which differs where
the activations are negative: after the stem's learnable affine layer they can be. Reference:
PaddleClas ppcls/arch/backbone/legendary_models/pp_hgnet_v2.py (Apache-2.0).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models._builder import build_model_with_cfg
from timm.models.hgnet import HighPerfGpuNet, StemV2, model_cfgs
from torch import Tensor
from torch.nn import functional as F


class PaddleStem(StemV2):
    """Pools over real pixels only; the 2x2 convolutions keep their zero padding."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem1(x)
        pooled = self.pool(F.pad(x, (0, 1, 0, 1), value=float("-inf")))
        x = self.stem2a(F.pad(x, (0, 1, 0, 1)))
        x = self.stem2b(F.pad(x, (0, 1, 0, 1)))
        return self.stem4(self.stem3(torch.cat([pooled, x], dim=1)))


class PaddleHighPerfGpuNet(HighPerfGpuNet):
    """timm's network with Paddle's stem: the same modules, another forward pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stem: Any = self.stem
        stem.__class__ = PaddleStem


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> HighPerfGpuNet:
    size = name.split("_")[1]
    indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        PaddleHighPerfGpuNet,
        name,
        pretrained,
        model_cfg=model_cfgs[f"hgnetv2_{size}"],
        feature_cfg=dict(flatten_sequential=True, out_indices=indices),
        **{"use_lab": size in ("b0", "b1", "b2", "b3"), **kwargs},  # learnable affine layers
    )


CREATE = {name: partial(_create, name) for name in (f"hgnetv2_b{i}_ssld" for i in range(7))}
