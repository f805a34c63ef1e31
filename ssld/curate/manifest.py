"""manifest.json: what a curation was made of and what came of it, the same bytes for the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import read_object, write_atomically
from ssld.common.packages import versions
from ssld.curate.context import Work
from ssld.curate.folder import settings
from ssld.curate.near_duplicates.matching import RULE_VERSION
from ssld.curate.near_duplicates.search import Examination
from ssld.curate.select.score import Scorer
from ssld.curate.select.select import KEPT, Outcome
from ssld.curate.sets.index import Index, exact_duplicates

MANY_HITS = 50
"""A reference image with so many near-duplicates is more likely a logo, a blank page or lettering
than a photograph that was copied so often: reported, for the user to look at."""
DECIDING = ("opencv-python", "faiss-gpu", "pyarrow")
"""Libraries that verdicts and tables hang on besides."""
TABLES = ("pairs", "inside", "selected", "dropped")
NO_RESULT = ("workers", "engine", "shard_size", "out")
"""Settings that change no result."""


def write_on_main(
    work: Work,
    sets: dict[str, Index],
    scorer: Scorer | None,
    facts: dict[str, Any],
    written: Sequence[str],
) -> None:
    """Write manifest.json on one of the processes, while the others wait.

    Facts of other stages stay where settings and sets are what they were; where they are not, the
    tables that other stages once wrote fit no more and are removed: nothing is lost but the last
    step, `work/` keeps what was looked at.

    Args:
        facts: counts, achieved_k, leakage, warnings: what stages found out.
        written: tables that fit.
    """
    if work.main:
        manifest = _manifest(work, sets, scorer)
        before = _before(work.out)
        if all(before.get(name) == manifest[name] for name in ("settings_sha256", "sets")):
            kept = {name: before[name] for name in ("teacher", "label_names")} if not scorer else {}
            manifest = before | manifest | kept
        else:
            stale = [f"{x}.parquet" for x in TABLES if x not in written] + ["report.html"]
            stale = [name for name in stale if (work.out / name).is_file()]
            for name in stale:
                (work.out / name).unlink()
            if stale:
                work.say(
                    f"{work.out}: removed what was made with other settings or images: {stale}"
                )
        text = json.dumps(manifest | facts, indent=1) + "\n"
        write_atomically(work.out / "manifest.json", text)
    work.processes.wait()


def _manifest(work: Work, sets: dict[str, Index], scorer: Scorer | None) -> dict[str, Any]:
    chosen = settings(work)
    deciding = {name: value for name, value in chosen.items() if name not in NO_RESULT}
    return {
        "settings_sha256": hashlib.sha256(json.dumps(deciding).encode()).hexdigest(),
        "settings": {name: value for name, value in chosen.items() if name != "out"},
        "rule": RULE_VERSION,
        "versions": versions() | {name: version(name) for name in DECIDING},
        "sets": {name: _facts(index) for name, index in sets.items()},
        "teacher": _teacher(scorer),
        "label_names": scorer.class_titles if scorer else None,
    }


def _before(out: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, InputError):
        return read_object(out / "manifest.json", "it is written anew")
    return {}


def _facts(index: Index) -> dict[str, Any]:
    digest = hashlib.sha256()
    for _, table in index.read(["sample_id", "sha256"]):
        for row in table.to_pylist():
            digest.update(f"{row['sample_id']}\0".encode() + (row["sha256"] or b""))
    return {
        "sources": [source.path for source in index.images.sources],
        "images": len(index.images),
        "readable": int(index.readable().sum()),
        "sha256": digest.hexdigest(),
    }


def _teacher(scorer: Scorer | None) -> dict[str, Any] | None:
    if scorer is None:
        return None
    network = scorer.network
    return {
        "architecture": network.architecture,
        "sha256": scorer.sha256,
        "input_size": network.input_size,
        "mean": network.mean,
        "std": network.std,
        "classes": scorer.num_classes,
    }


def examined(
    work: Work, examination: Examination, labeled: Index | None, hits: Counter[str]
) -> dict[str, Any]:
    """Facts on near-duplicates and on what sets have in common; warnings are printed, too.

    Args:
        hits: location of a reference image -> near-duplicates of it.
    """
    pool, reference, ready = examination.pool, examination.reference, examination.ready
    near = int(examination.contaminated.sum())
    leakage = [_leak("gallery", "protected", len(examination.exact), near)]
    if labeled:
        leakage += [
            _leak("gallery", "labeled", len(exact_duplicates(pool, labeled)), None),
            _leak("labeled", "protected", len(exact_duplicates(labeled, reference)), None),
        ]
    structureless = list(reference.locations(ready.rows[ready.structureless]).values())
    warnings = _warnings(examination, structureless, hits)
    for line in warnings:
        work.say(f"warning: {line}")
    return {
        "counts": {
            "gallery": len(pool.images),
            "readable": int(pool.readable().sum()),
            "examined": int(examination.examined.sum()),
            "near_duplicates": near,
        },
        "structureless": structureless,
        "leakage": leakage,
        "warnings": warnings,
    }


def _leak(a: str, b: str, exact: int, near: int | None) -> dict[str, Any]:
    return {"a": a, "b": b, "exact": exact, "near": near}


def _warnings(examination: Examination, structureless: list[str], hits: Counter[str]) -> list[str]:
    """What a user should look at."""
    warnings = []
    if structureless:
        features = " and the teacher's features" if examination.scores else ""
        warnings.append(
            f"{len(structureless)} protected image(s) have too little structure to be verified and "
            f"are matched by exact hashes{features} only: "
            f"{', '.join(structureless[:3])}{', ...' if len(structureless) > 3 else ''}"
        )
    unreadable = len(examination.reference.images) - len(examination.ready.rows)
    if unreadable:
        warnings.append(f"{unreadable} protected image(s) cannot be read and protect nothing")
    return warnings + [
        f"{count} near-duplicates of {name}: implausibly many, look at them in the report and "
        "override what is wrong"
        for name, count in hits.most_common()
        if count >= MANY_HITS
    ]


def selected(outcome: Outcome, k: int) -> dict[str, Any]:
    """Facts on the selection."""
    counts = Counter(outcome.decision.tolist())
    achieved = outcome.selection.achieved
    return {
        "reasons": {name: count for name, count in sorted(counts.items()) if name != KEPT},
        "selected": counts[KEPT],
        "achieved_k": achieved.tolist(),
        "short_classes": int((achieved < k).sum()),
    }
