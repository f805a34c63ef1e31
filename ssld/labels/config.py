"""Settings of `ssld labels verify`, `stats`, `push` and `pull`; those of `build` are a
distillation's, in `ssld/distill/config.py`."""

from __future__ import annotations

from dataclasses import dataclass

from ssld.common.settings import Settings


@dataclass(frozen=True)
class VerifyConfig(Settings):
    """`ssld labels verify DIR`: every shard against its sha256. Exit code 1 when one is wrong."""

    labels: str
    """Folder of `ssld labels build`."""


@dataclass(frozen=True)
class StatsConfig(Settings):
    """`ssld labels stats DIR`: how much there is, how large, and what the teacher says."""

    labels: str
    """Folder of `ssld labels build`."""
    json: bool = False
    """Print it as JSON."""


@dataclass(frozen=True)
class PushConfig(Settings):
    """`ssld labels push DIR ADDRESS`: copy a label set; the same command goes on."""

    labels: str
    """Folder of `ssld labels build`."""
    to: str
    """Where to: a data set of a hub, `hf://datasets/org/name`, in one commit; any other address of
    fsspec, `s3://bucket/labels` say; or a folder."""


@dataclass(frozen=True)
class PullConfig(Settings):
    """`ssld labels pull ADDRESS --out DIR`: every shard is compared with its sha256; the same
    command goes on where it stopped."""

    source: str
    """Where the labels were pushed to; a hub's with `@` and a revision to be sure what comes."""
    out: str
    """Folder to write; new, empty, or one in which the same labels were being pulled."""
