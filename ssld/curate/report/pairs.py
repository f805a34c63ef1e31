"""Found pairs as `page.js` shows them: least certain first, and how many there would be under
other thresholds; and pictures of a gallery that may have moved since."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssld.curate.near_duplicates import matching
from ssld.curate.near_duplicates.sift import FRAME_PX, Features, features
from ssld.curate.tables import INSIDE, Curation
from ssld.data.decode import Unreadable, decode, image_size
from ssld.report.page import pixels_uri

THUMB_PX = 112
"""Longer side of a picture in a table."""
QUALITY = 75

GONE = (OSError, Unreadable, LookupError, ValueError)
"""What reading an image may raise when the gallery was moved or changed."""

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Picture:
    """One image as a page shows it."""

    uri: str
    """data: URI; empty where it could not be read."""
    width: int
    height: int
    why: str = ""
    """Why it could not be read."""


class Pictures:
    """Images by location.

    Args:
        read: the bytes of the image at a location; OSError, Unreadable or KeyError if it is gone.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self.of_frame = lru_cache(512)(self._of_frame)

    def thumbnail(self, location: str) -> Picture:
        """A picture for a table."""
        try:
            return _small(self._read(location), THUMB_PX)
        except GONE as error:
            return Picture("", THUMB_PX, THUMB_PX, _why(error))

    def _of_frame(self, location: str) -> tuple[Picture, Features | None]:
        """A picture whose px are those of the frame in which its features lie."""
        try:
            data = self._read(location)
            picture, seen = _small(data, FRAME_PX), features(data)
        except GONE as error:
            return Picture("", FRAME_PX, FRAME_PX // 2, _why(error)), None
        return Picture(picture.uri, *seen.frame), seen


def _why(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read now: {' '.join(why.split()) or type(error).__name__}"


def _small(data: bytes, longer_px: int) -> Picture:
    longer = max(image_size(data))
    pixels = decode(data, reduce=next((r for r in (8, 4, 2) if longer >= longer_px * r), 1))
    height, width = pixels.shape[:2]
    scale = longer_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(pixels, size, interpolation=method)
    return Picture(pixels_uri(small, "JPEG", quality=QUALITY), *size)


SHOWN = 240
"""Pairs that are drawn: 20 pages, about 10 MB."""
SHOWN_OVERRIDDEN = 60
"""Of those that somebody decided and that are more certain."""
SHOWN_INSIDE = 12
LINES = 40
"""Inlier lines of a pair."""
MOST_INLIERS = 60
"""Right end of the sliders: as many inliers are a duplicate wherever they stand."""
NO_NCC = -1
"""In hundredths, below any threshold."""

AS_STORED = ("inliers", "mirrored", "exact", "verdict", "overridden", "fixed", "by_cosine")
"""Of a pair, as they are."""

Row = dict[str, Any]


class Rule:
    """The thresholds of a policy, as `matching.verdicts` shows them."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        every = np.arange(MOST_INLIERS + 1)
        self.sure = int(self(every, np.full(len(every), np.nan)).argmax())
        self.least = int(self(every, np.ones(len(every))).argmax())
        hundredths = np.arange(101)
        passed = self(np.full(101, self.least), hundredths / 100)
        self.ncc = int(passed.argmax())

    def __call__(self, inliers: np.ndarray, ncc: np.ndarray) -> np.ndarray:
        """Which pairs of images with structure are duplicates; bool [n]."""
        none = np.zeros(len(inliers))
        return matching.verdicts(inliers, ncc, none, none.astype(bool), self.policy)


class Evidence:
    """What the rule looks at, as columns of the pairs that matter."""

    def __init__(self, pairs: pa.Table, structureless: Iterable[str], rule: Rule) -> None:
        self.rule = rule
        self.inliers = pairs["inliers"].fill_null(0).to_numpy()
        # As they were before float32: .7 is not below .7. NaN where there is none.
        self.ncc, self.cosine = (
            pairs[name].to_numpy().astype(np.float64).round(matching.DECIMALS)
            for name in ("ncc", "cosine")
        )
        self.duplicate = np.array([x == "duplicate" for x in pairs["verdict"].to_pylist()], bool)
        self.overridden = pairs["overridden"].fill_null(False).to_numpy()
        self.exact = pairs["exact"].is_valid().to_numpy()
        known = set(structureless)
        flat = np.array([x in known for x in pairs["protected"].to_pylist()], bool)
        elsewhere = rule(self.inliers, self.ncc) != self.duplicate
        self.by_cosine = flat | (elsewhere & ~self.overridden & ~self.exact)
        self.fixed = self.by_cosine | self.overridden | self.exact
        """bool [n]: not for inliers and NCC to decide."""

    def certainty(self) -> np.ndarray:
        """float [n]: how far the evidence is from where the verdict would be another; 0 is at a
        threshold, 1 is about twice the inliers that are enough, or a perfect correlation."""
        sure, least, ncc = self.rule.sure - 0.5, self.rule.least - 0.5, self.rule.ncc / 100
        alike = (np.nan_to_num(self.ncc, nan=-1.0) - ncc) / max(1 - ncc, 0.01)
        weak = np.minimum((self.inliers - least) / max(least, 1), alike)
        margin = np.maximum((self.inliers - sure) / max(sure, 1), weak)
        bound = matching.STRUCTURELESS_COSINE
        margin = np.where(self.by_cosine, (self.cosine - bound) / (1 - bound), margin)
        return np.where(self.exact, np.inf, np.abs(margin))

    def order(self) -> np.ndarray:
        """int [n]: rows, the least certain first; where inliers tie, those of which correlation
        and cosine speak most against the verdict, then as in the table."""
        likeness = (np.nan_to_num(self.ncc) + np.nan_to_num(self.cosine)) / 2
        support = np.where(self.duplicate, likeness, 1 - likeness)
        return np.lexsort((support, self.certainty().round(6)))


def least_certain(pairs: pa.Table, evidence: Evidence) -> list[Row]:
    """At most `SHOWN` rows, the least certain first, half of them duplicates and half clear ones
    where there are as many, and at most `SHOWN_OVERRIDDEN` more that somebody decided."""
    order = evidence.order()
    duplicate = evidence.duplicate[order]
    halves = [order[duplicate][: SHOWN // 2], order[~duplicate][: SHOWN // 2]]
    others = order[~np.isin(order, np.concatenate(halves))]
    halves.append(others[: SHOWN - sum(map(len, halves))])
    overridden = order[evidence.overridden[order]][:SHOWN_OVERRIDDEN]
    shown = order[np.isin(order, np.concatenate([*halves, overridden]))]
    rows = pairs.take(pa.array(shown))
    for name in ("fixed", "by_cosine"):
        rows = rows.append_column(name, pa.array(getattr(evidence, name)[shown]))
    return rows.to_pylist()


def recount(pairs: pa.Table, evidence: Evidence, selected: set[str]) -> Row:
    """What a page needs to count near-duplicates under other thresholds.

    An image goes if any of its pairs passes, so only pairs that no other of the same image beats
    in both inliers and NCC matter, and images with the same such pairs are counted together.

    Returns:
        `images`: [[images, selected ones, inliers, NCC in hundredths, inliers, NCC, ...], ...],
        one row for each set of pairs; `always`: [images, selected ones] that go whatever the
        thresholds are; `now`: images that go.
    """
    inliers = np.minimum(evidence.inliers, MOST_INLIERS)
    ncc = np.floor(np.nan_to_num(evidence.ncc, nan=NO_NCC) * 100 + 1e-3).astype(int)
    always = np.where(evidence.fixed, evidence.duplicate, inliers >= MOST_INLIERS)
    gallery = pairs["gallery"].to_pylist()
    gone = {gallery[i] for i in np.flatnonzero(always)}
    points: dict[str, list[tuple[int, int]]] = {}
    for i in np.flatnonzero(~evidence.fixed & ~always):
        if gallery[i] not in gone:
            points.setdefault(gallery[i], []).append((int(inliers[i]), max(NO_NCC, int(ncc[i]))))
    alike: Counter[tuple] = Counter()
    chosen: Counter[tuple] = Counter()
    for location, of_image in points.items():
        best = tuple(_unbeaten(of_image))
        alike[best] += 1
        chosen[best] += location in selected
    return {
        "images": [
            [count, chosen[best], *(x for point in best for x in point)]
            for best, count in sorted(alike.items())
        ],
        "always": [len(gone), len(gone & selected)],
        "now": len({gallery[i] for i in np.flatnonzero(evidence.duplicate)}),
        "most": MOST_INLIERS,
        "fewest": matching.MIN_INLIERS,
        "sure": evidence.rule.sure,
        "least": evidence.rule.least,
        "ncc": evidence.rule.ncc,
    }


def _unbeaten(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    best: list[tuple[int, int]] = []
    for inliers, ncc in sorted(points, reverse=True):
        if not best or ncc > best[-1][1]:
            best.append((inliers, ncc))
    return best


class Album:
    """Drawn pairs, each picture stored once."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._numbers: dict[str, int] = {}
        self.stored: list[Row] = []

    def draw(self, row: Row, left: str, right: str) -> Row:
        """A row of pairs or inside as `page.js` draws it: pictures by number, lines between
        matched points as [x, y, x, y], and the map of the left picture onto the right one."""
        (picture, query), (_, other) = map(self._pictures.of_frame, (row[left], row[right]))
        drawn = {key: row.get(key) for key in AS_STORED}
        drawn |= {"names": [row[left], row[right]], "lines": []}
        drawn["pictures"] = [self._number(row[left]), self._number(row[right])]
        drawn["cosine"], drawn["ncc"] = _rounded(row["cosine"]), _rounded(row["ncc"])
        drawn["affine"] = _of_picture(row["affine"], row["mirrored"], picture)
        if query is not None and other is not None and row["affine"]:
            start, end, _ = matching.inlier_points(query, other)
            lines = np.rint(np.concatenate([start, end], axis=1)[:LINES]).astype(int)
            drawn["lines"] = lines.tolist()
        return drawn

    def _number(self, location: str) -> int:
        if location not in self._numbers:
            picture, _ = self._pictures.of_frame(location)
            self._numbers[location] = len(self.stored)
            self.stored.append(vars(picture))
        return self._numbers[location]


def _rounded(value: float | None) -> float | None:
    """Of a float32, as it was before."""
    if value is None or not math.isfinite(value):  # JSON has no NaN
        return None
    return round(value, matching.DECIMALS)


def _of_picture(
    affine: list[float] | None, mirrored: bool | None, picture: Picture
) -> list[float] | None:
    """The map for points of the query as it is; the tables' is for those of its mirror image."""
    if affine is None:
        return None
    a, b, c, d, e, f = affine
    if mirrored:
        last = picture.width - 1
        a, c, d, f = -a, a * last + c, -d, d * last + f
    return [round(x, 5) for x in (a, b, c, d, e, f)]


def overview(curation: Curation) -> Row:
    """What the page says of the pairs in words."""
    if curation.pairs is None:
        return {}
    return {
        "found": len(curation.pairs),
        "compared": f"{curation.compared:,}",
        "shown": SHOWN,
        "overrides": str(curation.out / "overrides.jsonl"),
    }


def data(curation: Curation, pictures: Pictures) -> Row:
    """Everything that `page.js` needs."""
    album, shown = Album(pictures), {"pairs": [], "recount": None}
    if curation.pairs is not None:
        rule = Rule(curation.setting("duplicates", "policy", "copy"))
        evidence = Evidence(curation.pairs, curation.manifest.get("structureless", []), rule)
        pairs = least_certain(curation.pairs, evidence)
        shown["pairs"] = [album.draw(row, "gallery", "protected") for row in pairs]
        shown["recount"] = recount(curation.pairs, evidence, _selected(curation))
    inside = curation.rows("inside", INSIDE.names, pc.field("verdict") == "duplicate")
    inside.sort(key=lambda row: (row["inliers"], row["gallery"], row["kept"]))
    shown["inside"] = [album.draw(row, "gallery", "kept") for row in inside[:SHOWN_INSIDE]]
    return shown | {"pictures": album.stored, "overrides": previous_overrides(curation)}


def _selected(curation: Curation) -> set[str]:
    """Selected images that were compared closely enough to be affected by thresholds."""
    assert curation.pairs is not None
    where = pc.field("location").isin(curation.pairs["gallery"].unique())
    return {row["location"] for row in curation.rows("selected", ["location"], where)}


def previous_overrides(curation: Curation) -> list[Row]:
    """The lines of overrides.jsonl that are whole: an exported file must not lose them."""
    path, overrides = curation.out / "overrides.jsonl", []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line.decode("utf-8"))
            overrides.append({key: str(row[key]) for key in ("gallery", "protected", "verdict")})
        except (ValueError, TypeError, LookupError, RecursionError):
            continue  # the next `ssld curate` refuses it by its line
    return overrides
