"""`ssld curate explain PATH`: why one image was kept or dropped, from the tables alone."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ssld.common.errors import InputError
from ssld.common.text_table import ABSENT, text_table
from ssld.curate.config import ExplainConfig
from ssld.curate.report.tables import Curation, opened, rows
from ssld.curate.tables import INDEX, PAIRS, REASONS

NEAREST = 5
"""Protected images that a gallery image is shown beside."""
MOST_TAKEN = 20
"""Gallery images that a protected one is shown beside."""
NAMED = 5
"""Files that an error names."""
MOST_ALIKE = 10_000
"""Names among which the nearest is looked for."""
TOP = 3

Row = dict[str, Any]


def explain(config: ExplainConfig) -> None:
    """Print what the tables say of one image.

    Raises:
        InputError: no tables yet; no such image, or several.
    """
    curation = Curation(Path(config.out))
    found = _find(curation, config.path)
    blocks = ["\n".join([_file(row), *TOLD[row["set"]](curation, row)]) for row in found]
    print("\n\n".join([found[0]["location"], *blocks]))


def _find(curation: Curation, path: str) -> list[Row]:
    """Its rows of the index: one for each set that it is in."""
    index = opened(curation.out / "index")
    if index is None:
        raise InputError(f"out {curation.out}: no index there yet; run `ssld curate` with it first")
    location, whole = pc.field("location"), os.path.abspath(path)
    exact = (location == path) | (pc.field("sample_id") == path) | (pc.field("path") == whole)
    found = index.to_table(columns=INDEX.names, filter=exact).to_pylist()
    if path and not found:
        ends = pc.ends_with(location, path)  # type: ignore[attr-defined]
        found = index.to_table(columns=INDEX.names, filter=ends).to_pylist()
        # After a / or the : between a shard and a key, the end of a path is a whole name.
        names = [row for row in found if row["location"][: -len(path)].endswith(("/", ":"))]
        found = names or found
    locations = list(dict.fromkeys(row["location"] for row in found))
    if not locations:
        raise InputError(f"path {path}: no such image in {curation.out}{_nearest(curation, path)}")
    if len(locations) > 1:
        shown = ", ".join(locations[:NAMED]) + (", ..." if len(locations) > NAMED else "")
        raise InputError(f"path {path} may be {len(locations)} images: {shown}; give more of it")
    return sorted(found, key=lambda row: list(TOLD).index(row["set"]))


def _nearest(curation: Curation, path: str) -> str:
    """Names like it, among those that share the first or the second half of its file name."""
    stem = path.rpartition("/")[2].rpartition(".")[0] or path.rpartition("/")[2]
    halves = [stem[: len(stem) // 2 or 1], stem[len(stem) // 2 :]]
    location = pc.field("location")
    holds = pc.match_substring  # type: ignore[attr-defined]
    near = [holds(location, half, ignore_case=True) for half in halves if half]
    alike: list[str] = []
    for where in (near[0] | near[-1] if near else None, None):
        index = opened(curation.out / "index")
        assert index is not None
        table = index.head(MOST_ALIKE, columns=["location"], filter=where)
        alike = alike or table["location"].to_pylist()
    names = {one.rpartition("/")[2]: one for one in reversed(alike)}
    close = difflib.get_close_matches(path.rpartition("/")[2], names, n=NAMED, cutoff=0.5)
    return f"; did you mean {', '.join(names[name] for name in close)}?" if close else ""


def _file(row: Row) -> str:
    if row["reason"]:
        return f"{row['set']} file that cannot be read: {row['reason']}"
    return (
        f"{row['set']} image, {row['width']:,} x {row['height']:,} px, {row['mode']}, "
        f"{row['bytes']:,} bytes, sha256 {row['sha256'].hex()[:16]}"
    )


def _gallery(curation: Curation, row: Row) -> list[str]:
    location = row["location"]
    pairs = curation.rows("pairs", PAIRS.names, pc.field("gallery") == location)
    said = [_fate(curation, location, pairs)]
    where = (pc.field("other") == location) & pc.field("reason").isin(["copy", "inside"])
    count = len(curation.rows("dropped", ["path"], where))
    if count:
        said.append(f"gallery images left out as copies or near-duplicates of it: {count:,}")
    scores = rows(
        curation.out / "scores", ["classes", "probabilities"], pc.field("row") == row["row"]
    )
    if scores is not None and len(scores) and scores["classes"][0].is_valid:
        said += ["", _classes(curation, scores.to_pylist()[0])]
    if pairs:
        nearest = sorted(pairs, key=_evidence)[:NEAREST]
        title = "nearest protected images that it was compared with"
        said += ["", _table(title, "protected", nearest)]
        if len(pairs) > NEAREST:
            said.append(f"and {len(pairs) - NEAREST:,} more")
    return said


def _evidence(pair: Row) -> tuple:
    """The strongest first."""
    return (
        pair["verdict"] != "duplicate",
        -(pair["inliers"] or 0),
        -(pair["cosine"] or 0),
        pair["gallery"],
        pair["protected"],
    )


def _classes(curation: Curation, scores: Row) -> str:
    best = zip(scores["classes"][:TOP], scores["probabilities"][:TOP], strict=True)
    shown = [[_class(curation, number), f"{share:.1%}"] for number, share in best if number >= 0]
    return text_table(["class", "probability"], shown)


def _class(curation: Curation, number: int) -> str:
    name = curation.class_name(number)
    return name if name == f"class {number}" else f"class {number} ({name})"


def _table(title: str, other: str, pairs: Sequence[Row]) -> str:
    head = [other, "cosine", "inliers", "mirrored", "NCC", "verdict"]
    return f"{title}\n{text_table(head, [_cells(pair, other) for pair in pairs])}"


def _cells(pair: Row, other: str) -> list[str]:
    why = "your override" if pair["overridden"] else pair["exact"] and f"same {pair['exact']}"
    return [
        pair[other],
        ABSENT if pair["cosine"] is None else f"{pair['cosine']:.2f}",
        ABSENT if pair["exact"] and not pair["inliers"] else f"{pair['inliers']}",
        ("yes" if pair["mirrored"] else "no") if pair["inliers"] else ABSENT,
        ABSENT if pair["ncc"] is None else f"{pair['ncc']:.2f}",
        f"{pair['verdict']} ({why})" if why else pair["verdict"],
    ]


def _fate(curation: Curation, location: str, pairs: Sequence[Row]) -> str:
    columns = ["class", "rank", "score"]
    for row in curation.rows("selected", columns, pc.field("location") == location):
        k = curation.setting("select", "k", None)
        of = f" of at most {k:,}" if k else ""
        name = _class(curation, row["class"])
        return f"kept: rank {row['rank']:,}{of} in {name}, score {row['score']:.1%}"
    columns = ["protected", "reason", "other", "class", "score"]
    for row in curation.rows("dropped", columns, pc.field("path") == location):
        return f"dropped: {_why(curation, row, pairs)}"
    duplicate = [pair for pair in pairs if pair["verdict"] == "duplicate"]
    if duplicate:
        nearest = min(duplicate, key=_evidence)["protected"]
        return f"nothing is selected yet; it is a near-duplicate of the protected image {nearest}"
    if curation.has("pairs"):
        return "nothing is selected yet; no near-duplicate of a protected image, as far as seen"
    return "nothing is selected yet"


def _why(curation: Curation, row: Row, pairs: Sequence[Row]) -> str:
    reason = row["reason"]
    said = REASONS[reason]
    if reason == "protected":
        return f"{said}, {row['protected']}"
    if reason == "unreadable":
        return f"{said} ({row['other']})"
    if reason == "min_score":
        least = curation.setting("select", "min_score", None)
        return f"{said}{'' if least is None else f', which is {least:g}'}: {_score(curation, row)}"
    if reason == "beyond_k":
        return _beyond(curation, row, pairs)
    return f"{said}, {row['other']}" if row["other"] else said


def _score(curation: Curation, row: Row) -> str:
    if row["class"] is None or row["score"] is None:
        return "no score"
    return f"score {row['score']:.1%} in {_class(curation, row['class'])}"


def _beyond(curation: Curation, row: Row, pairs: Sequence[Row]) -> str:
    said = REASONS["beyond_k"]
    if row["class"] is not None and row["score"] is not None:
        ahead = (pc.field("class") == row["class"]) & (pc.field("score") >= row["score"])
        kept = opened(curation.out / "selected.parquet")
        dropped = opened(curation.out / "dropped.parquet")
        rank = kept.count_rows(filter=ahead) if kept else 0
        beyond = ahead & (pc.field("reason") == "beyond_k")
        rank += dropped.count_rows(filter=beyond) if dropped else 0
        k = curation.setting("select", "k", None)
        of = "" if k is None else f", k is {k:,}"
        said = f"rank {rank:,} of {_class(curation, row['class'])}{of}"
    if not pairs and curation.has("pairs"):
        said += ": not compared with the protected images, since it was not needed"
    return said


def _protected(curation: Curation, row: Row) -> list[str]:
    where = (pc.field("protected") == row["location"]) & (pc.field("verdict") == "duplicate")
    if not curation.has("pairs"):
        return ["the gallery was not compared with it yet"]
    taken = sorted(curation.rows("pairs", PAIRS.names, where), key=_evidence)
    if not taken:
        return ["no gallery image is a near-duplicate of it, as far as seen"]
    said = f"{len(taken):,} gallery image{' is a' if len(taken) == 1 else 's are'} near-duplicate"
    said += "" if len(taken) == 1 else "s"
    more = f"\nand {len(taken) - MOST_TAKEN:,} more" if len(taken) > MOST_TAKEN else ""
    return ["", _table(f"{said} of it", "gallery", taken[:MOST_TAKEN]) + more]


def _labeled(curation: Curation, row: Row) -> list[str]:
    where = (pc.field("other") == row["location"]) & (pc.field("reason") == "labeled")
    found = [x["path"] for x in curation.rows("dropped", ["path"], where)]
    if not found:
        return ["no gallery image was left out for it"]
    more = f" and {len(found) - MOST_TAKEN:,} more" if len(found) > MOST_TAKEN else ""
    return [
        f"left out of the gallery, the same file or pixels: {', '.join(found[:MOST_TAKEN])}{more}"
    ]


TOLD = {"gallery": _gallery, "protected": _protected, "labeled": _labeled}
"""What is said of an image, by the set that it is in."""
