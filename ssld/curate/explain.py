"""`ssld curate explain PATH`: why one image was kept or dropped, from the tables alone."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from ssld.common.errors import InputError
from ssld.common.text_table import ABSENT, text_table
from ssld.curate.config import ExplainConfig
from ssld.curate.tables import INDEX, PAIRS, REASONS, Curation, opened, rows

NEAREST = 5
"""Reference images that an image of the pool is shown beside."""
SHOWN = 20
"""Images of the pool that one of the reference set or a labeled one is shown beside."""
NAMED = 5
"""Files that an error names."""
COMPARED = 10_000
"""Names among which the nearest is looked for."""
TOP = 3
"""Classes that are shown."""

Row = dict[str, Any]


def explain(config: ExplainConfig) -> None:
    """Print what the tables say of one image.

    Raises:
        InputError: no tables yet; no such image, or several.
    """
    curation = Curation(Path(config.out))
    images = _find(curation, config.path)
    blocks = ["\n".join([_file(row), *EXPLAINED[row["set"]](curation, row)]) for row in images]
    print("\n\n".join([images[0]["location"], *blocks]))


def _find(curation: Curation, path: str) -> list[Row]:
    """Its rows of the index: one for each set that it is in."""
    index = opened(curation.out / "index")
    if index is None:
        raise InputError(f"out {curation.out}: no index there yet; run `ssld curate` with it first")

    def where(holds: pc.Expression) -> list[Row]:
        return index.to_table(columns=INDEX.names, filter=holds).to_pylist()

    location, whole = pc.field("location"), os.path.abspath(path)
    exact = (location == path) | (pc.field("sample_id") == path) | (pc.field("path") == whole)
    images = where(exact)
    if path and not images:
        images = where(pc.ends_with(location, path))  # type: ignore[attr-defined]
        # After a / or the : between a shard and a key, the end of a path is a whole name.
        names = [row for row in images if row["location"][: -len(path)].endswith(("/", ":"))]
        images = names or images
    locations = list(dict.fromkeys(row["location"] for row in images))
    if not locations:
        raise InputError(f"path {path}: no such image in {curation.out}{_nearest(index, path)}")
    if len(locations) > 1:
        shown = ", ".join(locations[:NAMED]) + (", ..." if len(locations) > NAMED else "")
        raise InputError(f"path {path} may be {len(locations)} images: {shown}; give more of it")
    return sorted(images, key=lambda row: list(EXPLAINED).index(row["set"]))


def _nearest(index: ds.Dataset, path: str) -> str:
    """Names like it, among those that share the first or the second half of its file name, or
    else among the first."""
    name = path.rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    holds = pc.match_substring  # type: ignore[attr-defined]
    halves = [stem[: len(stem) // 2 or 1], stem[len(stem) // 2 :]]
    near = [holds(pc.field("location"), half, ignore_case=True) for half in halves if half]
    locations: list[str] = []
    for where in (near[0] | near[-1] if near else None, None):
        table = index.head(COMPARED, columns=["location"], filter=where)
        locations = locations or table["location"].to_pylist()
    names = {location.rpartition("/")[2]: location for location in reversed(locations)}
    close = difflib.get_close_matches(name, names, n=NAMED, cutoff=0.5)
    return f"; did you mean {', '.join(names[name] for name in close)}?" if close else ""


def _file(row: Row) -> str:
    if row["reason"]:
        return f"{row['set']} file that cannot be read: {row['reason']}"
    return (
        f"{row['set']} image, {row['width']:,} x {row['height']:,} px, {row['mode']}, "
        f"{row['bytes']:,} bytes, sha256 {row['sha256'].hex()[:16]}"
    )


def _pool(curation: Curation, row: Row) -> list[str]:
    location = row["location"]
    pairs = curation.rows("pairs", PAIRS.names, pc.field("gallery") == location)
    lines = [_decision(curation, location, pairs)]
    where = (pc.field("other") == location) & pc.field("reason").isin(["copy", "inside"])
    count = len(curation.rows("dropped", ["path"], where))
    if count:
        lines.append(f"gallery images left out as copies or near-duplicates of it: {count:,}")
    scores = rows(
        curation.out / "scores", ["classes", "probabilities"], pc.field("row") == row["row"]
    )
    if scores is not None and len(scores) and scores["classes"][0].is_valid:
        best = zip(*(column[0].as_py()[:TOP] for column in scores.columns), strict=True)
        shown = [[_class(curation, cls), f"{share:.1%}"] for cls, share in best if cls >= 0]
        lines += ["", text_table(["class", "probability"], shown)]
    if pairs:
        title = "nearest protected images that it was compared with"
        lines += ["", _table(title, "protected", sorted(pairs, key=_evidence), NEAREST)]
    return lines


def _evidence(pair: Row) -> tuple:
    """The strongest first."""
    return (
        pair["verdict"] != "duplicate",
        -(pair["inliers"] or 0),
        -(pair["cosine"] or 0),
        pair["gallery"],
        pair["protected"],
    )


def _class(curation: Curation, number: int) -> str:
    name = curation.class_name(number)
    return name if name.startswith(f"class {number}") else f"class {number} ({name})"


def _table(title: str, other: str, pairs: Sequence[Row], most: int) -> str:
    head = [other, "cosine", "inliers", "mirrored", "NCC", "verdict"]
    more = f"\nand {len(pairs) - most:,} more" if len(pairs) > most else ""
    return f"{title}\n{text_table(head, [_cells(pair, other) for pair in pairs[:most]])}{more}"


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


def _decision(curation: Curation, location: str, pairs: Sequence[Row]) -> str:
    columns = ["class", "rank", "score"]
    for row in curation.rows("selected", columns, pc.field("location") == location):
        k = curation.setting("select", "k", None)
        of = f" of at most {k:,}" if k else ""
        name = _class(curation, row["class"])
        return f"kept: rank {row['rank']:,}{of} in {name}, score {row['score']:.1%}"
    columns = ["protected", "reason", "other", "class", "score"]
    for row in curation.rows("dropped", columns, pc.field("path") == location):
        return f"dropped: {_why(curation, row, pairs)}"
    duplicates = [pair for pair in pairs if pair["verdict"] == "duplicate"]
    if duplicates:
        nearest = min(duplicates, key=_evidence)["protected"]
        return f"nothing is selected yet; it is a near-duplicate of the protected image {nearest}"
    if curation.has("pairs"):
        return "nothing is selected yet; no near-duplicate of a protected image, as far as seen"
    return "nothing is selected yet"


def _why(curation: Curation, row: Row, pairs: Sequence[Row]) -> str:
    words = REASONS[row["reason"]]
    match row["reason"]:
        case "protected":
            return f"{words}, {row['protected']}"
        case "unreadable":
            return f"{words} ({row['other']})"
        case "min_score":
            least = curation.setting("select", "min_score", None)
            which = "" if least is None else f", which is {least:g}"
            if row["class"] is None or row["score"] is None:
                return f"{words}{which}: no score"
            name = _class(curation, row["class"])
            return f"{words}{which}: score {row['score']:.1%} in {name}"
        case "beyond_k":
            seen = pairs or not curation.has("pairs")
            not_seen = ": not compared with the protected images, since it was not needed"
            return f"{_rank(curation, row) or words}{'' if seen else not_seen}"
    return f"{words}, {row['other']}" if row["other"] else words


def _rank(curation: Curation, row: Row) -> str | None:
    """Its place among all that competed in its class, where that is known."""
    if row["class"] is None or row["score"] is None:
        return None
    ahead = (pc.field("class") == row["class"]) & (pc.field("score") >= row["score"])
    beyond = ahead & (pc.field("reason") == "beyond_k")
    rank = len(rows(curation.out / "selected.parquet", ["class"], ahead) or ())
    rank += len(rows(curation.out / "dropped.parquet", ["class"], beyond) or ())
    k = curation.setting("select", "k", None)
    of = "" if k is None else f", k is {k:,}"
    return f"rank {rank:,} of {_class(curation, row['class'])}{of}"


def _reference(curation: Curation, row: Row) -> list[str]:
    if not curation.has("pairs"):
        return ["the gallery was not compared with it yet"]
    where = (pc.field("protected") == row["location"]) & (pc.field("verdict") == "duplicate")
    pairs = sorted(curation.rows("pairs", PAIRS.names, where), key=_evidence)
    if not pairs:
        return ["no gallery image is a near-duplicate of it, as far as seen"]
    several = f"{len(pairs):,} gallery images are near-duplicates of it"
    title = "1 gallery image is a near-duplicate of it" if len(pairs) == 1 else several
    return ["", _table(title, "gallery", pairs, SHOWN)]


def _labeled(curation: Curation, row: Row) -> list[str]:
    where = (pc.field("other") == row["location"]) & (pc.field("reason") == "labeled")
    twins = [x["path"] for x in curation.rows("dropped", ["path"], where)]
    if not twins:
        return ["no gallery image was left out for it"]
    more = f" and {len(twins) - SHOWN:,} more" if len(twins) > SHOWN else ""
    return [f"left out of the gallery, the same file or pixels: {', '.join(twins[:SHOWN])}{more}"]


EXPLAINED = {"gallery": _pool, "protected": _reference, "labeled": _labeled}
"""What is said of an image, by the set that it is in."""
