"""Settings of `ssld transfer`; imports neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from downstream.backbone.config import BackboneConfig
from ssld.common.settings import IN_SHORT_HELP, require
from ssld.data.config import DataConfig
from ssld.distill.config import ClassifierCheckpointConfig, LabelConfig, ProbeConfig

Dataset = Literal["aircraft", "cifar100", "dtd", "sun397"]


@dataclass(frozen=True)
class TransferDataConfig(DataConfig):
    """Labeled images: a known data set by its name, or sources of one's own."""

    dataset: Dataset | None = field(default=None, metadata=IN_SHORT_HELP)
    """FGVC-Aircraft 2013b (100 variants), CIFAR-100, DTD (split 1) or SUN397 (partition 1), instead
    of `labeled` and `val`."""
    root: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """Folder of the data set, as torchvision has it, or of its archives as published."""
    download: bool = False
    """Fetch what is missing in `root`, and check it."""
    protocol: Literal["search", "final"] = "final"
    """Of `dataset`. search: train on its training images, evaluate on its validation images (every
    tenth training image of each class where it has none). final: train on both, evaluate on its
    test images."""


@dataclass(frozen=True)
class TransferCheckpointConfig(ClassifierCheckpointConfig):
    """When training state is saved, and which is the best."""

    best: Literal["agreement1", "agreement5", "divergence", "top1", "last"] = "last"
    """top1: the checkpoint is exported that is best on the held-out images. last: the last one,
    which no held-out image has chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.best in ("top1", "last"),
            f"checkpoint.best is {self.best}: there is no teacher here; give top1 or last",
        )


@dataclass(frozen=True)
class TransferConfig(LabelConfig):
    """`python -m downstream.transfer`: a backbone with a fresh classifier, all of it trained on
    labeled images (SSLD section 4.6, table 7)."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Whose weights to start from; nothing of it is frozen here."""
    data: TransferDataConfig = field(default_factory=TransferDataConfig)
    checkpoint: TransferCheckpointConfig = field(default_factory=TransferCheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Also before the first step, of the backbone as it came (probe.json)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.backbone.name or self.backbone.checkpoint),
            "backbone.name is missing: --backbone resnet50d, or a run folder of ssld",
        )
        self._check_data()
        require(
            not self.backbone.freeze_batch_norm and not self.backbone.frozen_stages,
            "backbone.freeze_batch_norm and backbone.frozen_stages: transfer trains the whole "
            "network, leave them out",
        )

    def _check_data(self) -> None:
        data = self.data
        require(
            bool(data.dataset) != bool(data.labeled),
            "give data.dataset and data.root, or data.labeled, and not both",
        )
        require(
            not data.dataset or bool(data.root),
            f"data.root is missing: name the folder of {data.dataset}",
        )
        require(
            not (data.dataset and data.val),
            "data.val is given beside data.dataset, which has its own: leave one of them out",
        )
        require(not data.unlabeled, "data.unlabeled is given, and transfer reads labels: leave it")
