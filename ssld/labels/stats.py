"""What is in a label set: how much, how large, and what the teacher says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssld.labels.format import (
    INDEX,
    KINDS,
    MANIFEST,
    Shard,
    ids_name,
    open_shard,
    read_index,
    read_manifest,
)

LOOKED_AT = 64
"""Shards, evenly spread, that are looked into."""


def summary(folder: Path) -> dict[str, Any]:
    """Facts of a finished label set, as JSON holds them.

    Raises:
        InputError: it is none, or not finished.
    """
    manifest, index = read_manifest(folder), read_index(folder)
    files = [folder / name for name in (MANIFEST, INDEX, *map(ids_name, KINDS))]
    beside = sum(file.stat().st_size for file in files)
    views = sum(x.samples for x in index["train"]) * manifest["views"]
    held_out = sum(x.samples for x in index["val"])
    size = sum(shard.size for kind in KINDS for shard in index[kind])
    return {
        "folder": str(folder),
        **{key: manifest[key] for key in ("views", "top_k", "classes", "size", "teacher_sha256")},
        "samples": manifest["samples"]["train"]["count"],
        "held_out": held_out,
        "shards": sum(len(index[kind]) for kind in KINDS),
        "bytes": size + beside,
        "bytes_per_view": (size + beside) / max(1, views + held_out),
        "unreadable": sum(x.unreadable for kind in KINDS for x in index[kind]),
        **_said(folder, index["train"]),
    }


def _said(folder: Path, shards: list[Shard]) -> dict[str, Any]:
    """What the teacher says, by an evenly spread part of the shards."""
    count = min(LOOKED_AT, len(shards))
    chosen = [shards[i * len(shards) // count] for i in range(count)]
    top, tail, agree = [], [], []
    for shard in chosen:
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
    if "best_as_in_view_0" in facts:
        share = f"{facts['best_as_in_view_0']:.1%}"
        lines.append(f"         {share} of the other views have the class of their image's view 0")
    return "\n".join(lines)
