"""What is in a label set: how much, how large, and what the teacher says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssld.common.errors import InputError
from ssld.labels.format import (
    INDEX,
    KINDS,
    MANIFEST,
    Shard,
    ids_name,
    open_shard,
    problems,
    read_index,
    read_manifest,
)

LOOKED_AT = 64
"""Shards, evenly spread, that are looked into."""
MUCH_IN_THE_TAIL = 0.05
"""Mean probability: .09 beyond ten classes of CIFAR-100 cost a point of agreement, .01 beyond five
of clothing nothing that shows (docs/labels.md)."""


def summary(folder: Path) -> dict[str, Any]:
    """Facts of a finished label set, as JSON holds them.

    Raises:
        InputError: it is none, not finished, or damaged: of all shards by their size, of those that
            are looked into by their sha256.
    """
    manifest, index = read_manifest(folder), read_index(folder)
    shards = [shard for kind in KINDS for shard in index[kind]]
    looked_at = _spread(index["train"])
    for problem in problems(folder, shards, contents={shard.file for shard in looked_at}):
        raise InputError(problem)
    files = [folder / name for name in (MANIFEST, INDEX, *map(ids_name, KINDS))]
    beside = sum(file.stat().st_size for file in files)
    views = sum(x.samples for x in index["train"]) * manifest["views"]
    held_out = sum(x.samples for x in index["val"])
    size = sum(shard.size for shard in shards)
    return {
        "folder": str(folder),
        **{key: manifest[key] for key in ("views", "top_k", "classes", "size", "teacher_sha256")},
        "samples": manifest["samples"]["train"]["count"],
        "held_out": held_out,
        "shards": len(shards),
        "bytes": size + beside,
        "bytes_per_view": (size + beside) / max(1, views + held_out),
        "unreadable": sum(x.unreadable for x in shards),
        **_said(folder, looked_at),
    }


def _spread(shards: list[Shard]) -> list[Shard]:
    """An evenly spread part of them."""
    count = min(LOOKED_AT, len(shards))
    return [shards[i * len(shards) // count] for i in range(count)]


def _said(folder: Path, shards: list[Shard]) -> dict[str, Any]:
    """What the teacher says."""
    top, tail, agree = [], [], []
    for shard in shards:
        tensors = open_shard(folder / shard.file)
        best = np.asarray(tensors["classes"][..., 0])
        known = ~np.isnan(tensors["tail"])
        top.append(np.exp(tensors["log_probs"][..., 0][known].astype(np.float64)))
        tail.append(np.exp(tensors["tail"][known].astype(np.float64)))
        agree.append((best[:, 1:] == best[:, :1])[known[:, 1:]])
    if not sum(map(len, top)):
        return {}
    same = np.concatenate(agree)
    return {
        "top1_probability": float(np.concatenate(top).mean()),
        "tail_probability": float(np.concatenate(tail).mean()),
        **({"best_as_in_view_0": float(same.mean())} if len(same) else {}),
    }


def describe(facts: dict[str, Any]) -> str:
    """The same as text."""
    unreadable = (
        f", {facts['unreadable']:,} views of them unreadable" if facts["unreadable"] else ""
    )
    lines = [
        f"labels:  {facts['folder']}, {facts['samples']:,} images in {facts['views']} views and "
        f"{facts['held_out']:,} held-out ones{unreadable}",
        f"stored:  {facts['top_k']} of {facts['classes']:,} classes a view, "
        f"{facts['bytes_per_view']:.1f} bytes a view, {facts['bytes'] / 2**20:,.1f} MiB in "
        f"{facts['shards']:,} shards",
    ]
    if "top1_probability" in facts:
        lines.append(
            f"teacher: sure of its first class by {facts['top1_probability']:.1%} on average, "
            f"{facts['tail_probability']:.2%} in the tail"
        )
        if facts["tail_probability"] > MUCH_IN_THE_TAIL and facts["top_k"] < facts["classes"]:
            lines.append(
                f"         that is much: more than {facts['top_k']} classes (--top_k) lose less, "
                "at 4 bytes each"
            )
    if "best_as_in_view_0" in facts:
        share = f"{facts['best_as_in_view_0']:.1%}"
        lines.append(f"         {share} of the other views have the class of their image's view 0")
    return "\n".join(lines)
