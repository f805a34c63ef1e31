"""What detection and segmentation have in common, as frozen dataclasses; neither torch nor timm is
imported, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from downstream.backbone.config import BackboneConfig
from ssld.common.settings import Limits, OneOrSeveral, PositiveInt, ShareBelowOne, require
from ssld.data.config import LoaderConfig
from ssld.engine.config import LoopConfig


@dataclass(frozen=True)
class AnnotatedConfig(LoaderConfig):
    """Annotated images."""

    train: OneOrSeveral = field(default_factory=list)
    """Sources to train on."""
    labeled_share: Annotated[float, Limits(lambda x: 0 < x <= 1, "a share above 0, at most 1")] = (
        1.0
    )
    """Share of each training source to train on, drawn by `seed`; `labeled.txt` in the run folder
    lists it."""
    generated: OneOrSeveral = field(default_factory=list)
    """Sets with generated annotations, as `ssld pseudo-label` writes them, to train on besides."""
    generated_share: ShareBelowOne = 0.4
    """Share of a minibatch's images that are of `generated`, in expectation (Data Distillation,
    arXiv:1712.04440, section 3: 6:4)."""
    minibatch: Literal["mixed", "apart"] = "mixed"
    """mixed: human and generated annotations in one minibatch. apart: each forward pass sees one
    kind only; `accumulate` of them make a step, `generated_share` of which are generated."""
    val: OneOrSeveral = field(default_factory=list)
    """Held-out sources, never trained on."""
    classes: list[str] | None = None
    """Names of the classes in the network's order; by default those of the first training source.
    Sources are matched by name."""


@dataclass(frozen=True)
class DownstreamConfig(LoopConfig):
    """A network on a backbone."""

    batch_size: PositiveInt = 16
    """Images per optimizer step over all processes."""
    init: str | None = None
    """Run folder, or a copy of its `model`, whose weights the network starts from; by default the
    backbone's, and a random head."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: AnnotatedConfig = field(default_factory=AnnotatedConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.backbone.name or self.backbone.checkpoint),
            "backbone.name is missing: --backbone resnet50d, or a run folder of ssld",
        )
        require(bool(self.data.train), "data.train is empty: name at least one source")
        require(bool(self.data.val), "data.val is empty: name held-out images to evaluate on")
