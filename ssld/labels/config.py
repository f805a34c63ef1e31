"""Settings of `ssld labels verify` and `stats`; those of `build` are a distillation's, in
`ssld/distill/config.py`."""

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
