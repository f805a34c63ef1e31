"""The settings of `ssld evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssld.common.paths import check_file, check_inputs
from ssld.common.settings import (
    NonNegativeInt,
    OneOrSeveral,
    PositiveInt,
    Precision,
    Settings,
    Share,
    require,
    require_path,
)
from ssld.models.config import Triple


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """`ssld evaluate`: top-1 and top-5 with 95 % intervals of one classifier on labeled images; of
    a detector or segmenter average precision or mean IoU on annotated ones."""

    model: str
    """timm name, `hf-hub:` or `local-dir:` id, run folder or exported model folder."""
    data: OneOrSeveral
    """Labeled sources; of a detector or segmenter as `data.val` of its run."""
    checkpoint: str | None = None
    """Safetensors weights for a timm name."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    input_size: PositiveInt | None = None
    """Side in px; by default what the weights' metadata says."""
    mean: Triple | None = None
    """Mean of the normalisation; by default what the weights' metadata says."""
    std: Triple | None = None
    """Deviation of the normalisation; by default what the weights' metadata says."""
    batch_size: PositiveInt = 256
    """Images per forward pass."""
    workers: NonNegativeInt = 4
    """Loader processes."""
    precision: Precision = "fp32"
    """Number format of the forward pass."""
    max_unreadable: Share = 0.1
    """Stop when more than this share of a source's files cannot be read."""
    out: str | None = None
    """Also write the result to this JSON file, and what a detector finds beside it, as COCO
    results, to STEM-predictions.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path(self.checkpoint, "checkpoint", "model")
        require(bool(self.data), "data is empty: name a labeled source")


def check(config: EvaluateConfig) -> None:
    """
    Raises:
        InputError: a source or weights are not there, or `out` is a file that is not replaced.
    """
    check_inputs(config)
    check_file("out", config.out, "evaluation")
