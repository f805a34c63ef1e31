"""The settings of `ssld zoo` and its commands."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from ssld.common.settings import OneOrSeveral, Settings, require
from zoo.licences import normalised
from zoo.release import HUB_ID


@dataclass(frozen=True)
class ListConfig:
    """`ssld zoo list`: the catalogue as a table, the most accurate first."""

    max_macs_m: float | None = None
    """At most so many million multiply-adds an image."""
    max_parameters_m: float | None = None
    """At most so many million parameters."""
    min_top1: float | None = None
    """At least this published top-1 accuracy in %."""
    license: str | None = None
    """A licence id, or the terms: permissive, conditions, noncommercial or unknown."""
    json: bool = False
    """Print JSON with every field instead."""


@dataclass(frozen=True)
class ShowConfig:
    """`ssld zoo show NAME`: all that is known of one weight."""

    name: str
    """A name of the catalogue."""
    json: bool = False
    """Print JSON instead."""


@dataclass(frozen=True)
class ConvertConfig:
    """`ssld zoo convert FILE.pdparams --class ResNet50_vd --out DIR`: without Paddle."""

    file: str
    """Weights as PaddleClas saves them."""
    out: str
    """Folder to write; must be new or empty."""
    paddle_class: str = ""
    """Written `--class`: the class in PaddleClas, for example ResNet50_vd."""

    def __post_init__(self) -> None:
        require(bool(self.paddle_class), "give the class in PaddleClas, `--class ResNet50_vd` say")


@dataclass(frozen=True)
class About(Settings):
    """What only the publisher of a release knows."""

    name: str | None = None
    """What the release is called; by default the repository's, else the source folder's name."""
    license: str | None = None
    """SPDX id or the hub's, `cc-by-nc-4.0` or `other` say; by default what is inherited allows."""
    teacher_license: str | None = None
    """The teacher's licence, where neither timm nor the teacher's own release says it."""
    data_license: str | None = None
    """The licence of the training images."""
    datasets: OneOrSeveral = field(default_factory=list)
    """Hub ids or names of the datasets that the training images are from."""
    evaluated_on: str | None = None
    """Hub id of the dataset that `data.val` is; leaderboards need it."""
    description: str | None = None
    """A paragraph for the card."""
    curation: str | None = None
    """How the training images were chosen: a text, or the path of a curation's manifest.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.name is None or (HUB_ID.fullmatch(self.name) is not None and "/" not in self.name),
            f"name {str(self.name)[:96]!r} cannot be used: give letters, digits, '-', '_' and '.'",
        )
        require(
            self.evaluated_on is None or HUB_ID.fullmatch(self.evaluated_on) is not None,
            f"evaluated_on {str(self.evaluated_on)[:96]!r} is no dataset of the hub: give org/name",
        )
        for license in (self.license, self.teacher_license, self.data_license):
            normalised(license)


@dataclass(frozen=True, kw_only=True)
class PublishConfig(About):
    """`ssld zoo publish RUN_OR_DIR --repo org/name`, or `--to DIR` for a local folder."""

    source: str
    """Run folder, exported model folder, or what `ssld zoo convert` or `pull` wrote."""
    repo: str | None = None
    """Hub repository, `org/name`; created where there is none."""
    to: str | None = None
    """Local folder instead, in the same layout: new, empty or an earlier release."""
    dry_run: bool = False
    """Say what would change, and change nothing."""
    private: bool = False
    """Create the repository as a private one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            (self.repo is None) != (self.to is None),
            "give either repo (`--repo org/name`) or to (`--to DIR`)",
        )

    @property
    def about(self) -> About:
        """What only the publisher knows, by itself."""
        return About(**{field.name: getattr(self, field.name) for field in fields(About)})


@dataclass(frozen=True)
class PullConfig:
    """`ssld zoo pull org/name@rev --out DIR`: every byte verified."""

    repo: str
    """Hub repository, with `@` and a revision to be sure what comes."""
    out: str
    """Folder to write; must be new or empty."""


@dataclass(frozen=True)
class VerifyConfig:
    """`ssld zoo verify DIR`: is every file what its `ssld.json` says?"""

    folder: str
    """What `ssld zoo` published, pulled or converted."""


@dataclass(frozen=True)
class BundleConfig:
    """`ssld zoo bundle NAMES --out TAR`: weights for a site without internet."""

    names: list[str]
    """Names of the catalogue, or folders of releases."""
    out: str
    """The tar file."""
    weights_dir: str | None = None
    """Folder with published files, instead of SSLD_ZOO_DIR or the network."""


@dataclass(frozen=True)
class UnbundleConfig:
    """`ssld zoo unbundle TAR --out DIR`: then set SSLD_ZOO_DIR to DIR."""

    tar: str
    """What `ssld zoo bundle` wrote."""
    out: str
    """Folder for the releases."""


@dataclass(frozen=True)
class ExportConfig:
    """`ssld zoo export NAME_OR_DIR --format onnx`: compared with the eager network first."""

    source: str
    """A name of the catalogue, an exported model folder, a release or a run folder."""
    format: Literal["onnx", "torchscript", "torchvision"]
    """onnx and torchscript: one file. torchvision: a folder with torchvision code and weights."""
    out: str
    """File or folder to write."""
    weights_dir: str | None = None
    """Folder with published files, instead of SSLD_ZOO_DIR or the network."""


def with_class(words: list[str]) -> list[str]:
    """`--class` is no name for a field of Python's."""
    return [
        word.replace("--class", "--paddle_class", 1) if word.split("=")[0] == "--class" else word
        for word in words
    ]
