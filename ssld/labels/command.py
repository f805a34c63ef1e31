"""`ssld labels verify`, `stats`, `push` and `pull`."""

from __future__ import annotations

import json
from pathlib import Path

from ssld.common.errors import InputError
from ssld.common.files import LOCK
from ssld.labels.config import PullConfig, PushConfig, StatsConfig, VerifyConfig
from ssld.labels.format import KINDS, MANIFEST, problems, read_index, read_manifest
from ssld.labels.samples import read_samples
from ssld.labels.stats import describe, summary
from ssld.labels.transport import PULLED
from ssld.labels.transport import pull as pull_from
from ssld.labels.transport import push as push_to


def verify(config: VerifyConfig) -> int:
    """Compare every file with what was recorded when it was written; returns 1 when one is another.

    Raises:
        InputError: it is no label set, or not finished.
    """
    folder = Path(config.labels)
    manifest, index = read_manifest(folder), read_index(folder)
    for kind in KINDS:
        read_samples(folder, kind, manifest["samples"][kind]["sha256"])
    shards = [shard for kind in KINDS for shard in index[kind]]
    wrong = 0
    for problem in problems(folder, shards):
        print(problem, flush=True)
        wrong += 1
    if not wrong:
        print(f"labels: {folder}: all {len(shards):,} shards have their sha256")
    return 1 if wrong else 0


def stats(config: StatsConfig) -> None:
    """Print what is in a label set.

    Raises:
        InputError: it is none, not finished, or damaged as far as `summary` looks.
    """
    facts = summary(Path(config.labels))
    print(json.dumps(facts, indent=2) if config.json else describe(facts))


def push(config: PushConfig) -> None:
    """Copy a label set to an address.

    Raises:
        InputError: see `ssld.labels.transport.push`.
    """
    sent = push_to(Path(config.labels), config.to)
    print(f"labels: {config.to} has them, {sent:,} files were sent")


def pull(config: PullConfig) -> None:
    """Copy a label set from an address.

    Raises:
        InputError: see `ssld.labels.transport.pull`.
    """
    out = Path(config.out)
    if out.is_dir() and not (out / MANIFEST).is_file():
        if any(path.name not in (LOCK, PULLED) for path in out.iterdir()):
            raise InputError(f"out {out} is not empty and no label set: give another folder")
    came = pull_from(config.source, out)
    print(f"labels: {out} has them, {came:,} shards came, every sha256 compared")
