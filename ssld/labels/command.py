"""`ssld labels verify` and `ssld labels stats`."""

from __future__ import annotations

import json
from pathlib import Path

from ssld.labels.config import StatsConfig, VerifyConfig
from ssld.labels.format import KINDS, problem_of, read_index, read_manifest
from ssld.labels.samples import read_samples
from ssld.labels.stats import describe, summary


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
    problems = [x for x in (problem_of(folder, shard) for shard in shards) if x]
    for problem in problems:
        print(problem)
    if not problems:
        print(f"labels: {folder}: all {len(shards):,} shards have their sha256")
    return 1 if problems else 0


def stats(config: StatsConfig) -> None:
    """Print what is in a label set.

    Raises:
        InputError: it is none, or not finished.
    """
    facts = summary(Path(config.labels))
    print(json.dumps(facts, indent=2) if config.json else describe(facts))
