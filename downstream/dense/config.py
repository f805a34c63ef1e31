"""What detection and segmentation have in common, as frozen dataclasses; neither torch nor timm is
imported, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field

from downstream.backbone.config import BackboneConfig
from ssld.common.settings import OneOrSeveral, PositiveInt, require
from ssld.data.config import LoaderConfig
from ssld.engine.config import LoopConfig


@dataclass(frozen=True)
class AnnotatedConfig(LoaderConfig):
    """Annotated images."""

    train: OneOrSeveral = field(default_factory=list)
    """Sources to train on."""
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
