"""The settings of `ssld plan detection`, `ssld plan segmentation` and `ssld plan transfer`."""

from __future__ import annotations

from dataclasses import dataclass, field

from downstream.detection import config as detection
from downstream.segmentation import config as segmentation
from downstream.transfer.config import TransferConfig
from downstream.transfer.known_datasets import resolve
from ssld.common.paths import check_file
from ssld.common.settings import IN_SHORT_HELP, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What the three have besides a run's own settings."""

    seconds: PositiveFloat = 10.0
    """Length of each measurement."""
    json: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """Also write the result to this file."""


@dataclass(frozen=True)
class PlanDetectionConfig(detection.DetectionConfig, Planned):
    """`ssld plan detection`: does it fit into memory, and how long will it take?

    Takes the settings of `ssld detection`; writes nothing into `out`. Exit code 1 when it finds a
    problem.
    """


@dataclass(frozen=True)
class PlanSegmentationConfig(segmentation.SegmentationConfig, Planned):
    """`ssld plan segmentation`: does it fit into memory, and how long will it take?

    Takes the settings of `ssld segmentation`; writes nothing into `out`. Exit code 1 when it finds
    a problem.
    """


@dataclass(frozen=True)
class PlanTransferConfig(TransferConfig, Planned):
    """`ssld plan transfer`: does it fit into memory, and how long will it take?

    Takes the settings of `ssld transfer`; writes nothing into `out`. Exit code 1 when it finds a
    problem.
    """


def check(
    config: PlanDetectionConfig | PlanSegmentationConfig | PlanTransferConfig,
) -> PlanDetectionConfig | PlanSegmentationConfig | PlanTransferConfig:
    """The settings with the sources of a known data set.

    Raises:
        InputError: a package or a data set is not there, or `json` is a file that is not replaced.
    """
    check_file("json", config.json, "plan")
    if isinstance(config, PlanTransferConfig):
        return resolve(config)  # type: ignore[return-value]
    if isinstance(config, PlanDetectionConfig):
        detection.require_installed(config)
    else:
        segmentation.require_installed(config)
    return config
