"""Settings of a backbone; this file imports neither torch nor timm, so that `--help` is fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ssld.common.settings import IN_SHORT_HELP, Limits, Settings, require, require_path

PRESETS = {
    "detection": (0.05, 0.05, 0.1, 0.1, 0.15),
    "segmentation": (0.05, 0.05, 0.1, 0.1, 0.15),
    "transfer": (0.1, 0.1, 0.2, 0.2, 0.3),
}
"""The tuned learning rates of a distilled backbone, as factors of the heads', by task: stem and
stages 1 to 4.

The SSLD paper does not mention them, but its gain in detection rests on them. detection: PaddleClas
docs/en/advanced_tutorials/distillation/distillation_en.md, "feature map lr" of Faster R-CNN
R50vd-FPN (34.8 at 1.0; 34.3 with this list; 36.3 with it and the distilled weights). transfer:
PaddleClas docs/en/tutorials/quick_start_en.md, `lr_mult_list` of ResNet50_vd_ssld. None is
published for segmentation, it takes those of detection."""
PARTS = 5
"""Stem and four stages: what the presets have a factor for."""
Parts = Annotated[int, Limits(lambda x: 0 <= x <= PARTS, f"0 to {PARTS}")]
TASK_ARGUMENTS = (
    *("features_only", "out_indices", "feature_cls", "feature_location", "output_stride"),
)
"""Arguments of `timm.create_model` that the task decides on."""


@dataclass(frozen=True)
class BackboneConfig(Settings, section="backbone"):
    """The network that a detector, segmenter or classifier is built on."""

    name: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """timm name, `_ssld` name of the zoo, `hf-hub:org/name[@rev]`, `local-dir:folder`, or a run
    folder of ssld."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`, for example {pad_type: same}."""
    pretrained: bool = True
    """Start from its published weights, or those of the folder; false: from random ones."""
    checkpoint: str | None = None
    """Start from these weights: a safetensors file, what torch.save wrote, an exported model folder
    or a run folder."""
    freeze_batch_norm: bool | None = None
    """Keep statistics and affine parameters of batch norm as they are; null: if pretrained."""
    frozen_stages: Parts = 0
    """How many of its five parts, stem and stages 1 to 4, are not trained."""
    lr: Literal["auto", "same", "tuned"] | list[float] = "auto"
    """Its learning rate over the heads'. same: equal. tuned: the preset of the task for distilled
    weights, part by part. auto: tuned where the weights' metadata says distilled, else same. Or
    five factors, of stem and stages 1 to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path(self.checkpoint, "backbone.checkpoint", "backbone.name")
        known = [key for key in TASK_ARGUMENTS if key in self.args]
        require(not known, f"backbone.args.{''.join(known[:1])} is for the task to say: remove it")
        require(
            self.pretrained or not self.freeze_batch_norm,
            "backbone.freeze_batch_norm is true with random weights, which leaves parts of many "
            "networks without any gradient: set it to null, or backbone.pretrained to true",
        )
        require(
            self.pretrained or not self.frozen_stages,
            f"backbone.frozen_stages is {self.frozen_stages} with random weights, which would stay "
            "random: set it to 0, or backbone.pretrained to true",
        )
        require(
            isinstance(self.lr, str)
            or (len(self.lr) == PARTS and all(0 <= x < math.inf for x in self.lr)),
            f"backbone.lr is {self.lr}: give auto, same, tuned or {PARTS} factors of at least 0, "
            "of stem and stages 1 to 4",
        )

    @property
    def frozen_batch_norm(self) -> bool:
        """`freeze_batch_norm` with null resolved."""
        return self.pretrained if self.freeze_batch_norm is None else self.freeze_batch_norm


def with_backbone_name(words: Sequence[str]) -> list[str]:
    """A command's words with `--backbone NAME` as `--backbone.name NAME`."""
    return [
        f"--backbone.name{word.removeprefix('--backbone')}"
        if word == "--backbone" or word.startswith("--backbone=")
        else word
        for word in words
    ]
