"""Stage `duplicates`: gallery images against the protected set, whichever are asked for.

Exact copies are joined by their hashes (`overlap.py`) and not looked at any further. Everything
else is shortlisted and verified (`protected.py`, `matching.py`): all of the gallery when this stage
is run by itself, only what may be selected when `select.py` asks. What has been examined is never
examined again, and what it found does not depend on what else was.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.common.errors import InputError, one_line
from ssld.common.files import cannot_write
from ssld.curate import tables
from ssld.curate.context import Part, Work
from ssld.curate.near_duplicates.matching import DECIMALS, RULE_VERSION, verdicts
from ssld.curate.near_duplicates.overrides import read_overrides, with_twins
from ssld.curate.near_duplicates.reference_set import Pair, ProtectedSet
from ssld.curate.near_duplicates.shortlist import Shortlist
from ssld.curate.near_duplicates.sift import Features, features
from ssld.curate.select.scores import Scores
from ssld.curate.sets import exact as overlap
from ssld.curate.sets.images import Shard, batched, key
from ssld.curate.sets.index import Index
from ssld.curate.workers import BATCH
from ssld.data.decode import Unreadable
from ssld.data.sources import read_address
from ssld.data.storage import Address

EXAMINED = pa.schema(
    [
        ("row", pa.int64()),  # of the gallery
        ("protected", pa.int32()),  # number in the prepared set; -1 where nothing was shortlisted
        ("cosine", pa.float32()),
        ("inliers", pa.int32()),
        ("mirrored", pa.bool_()),
        ("affine", pa.list_(pa.float32(), 6)),
        ("ncc", pa.float32()),
    ]
)
"""What a part holds; verdicts are made from it when it is read."""

_FOUND = pa.schema(
    [
        ("number", pa.int64()),  # row of the protected set
        *(field for field in EXAMINED if field.name != "protected"),
        *(tables.PAIRS.field(name) for name in ("exact", "verdict", "overridden")),
    ]
)
"""The same on its way to PAIRS."""

Read = tuple[Address, bytes]
"""Where an image is and the sha256 that it had when it was indexed."""


def features_at(reads: Sequence[Read]) -> list[Features | str]:
    """Features of each image, or why there are none."""
    found: list[Features | str] = []
    for address, sha256 in reads:
        try:
            data = read_address(address)
            same = hashlib.sha256(data).digest() == sha256
            found.append(features(data) if same else "its bytes are others now")
        except (OSError, Unreadable) as error:
            found.append(one_line(error))
    return found


def reads(index: Index, shard: Shard, rows: np.ndarray) -> list[Read]:
    """How to read rows of one shard."""
    columns = ["path", "offset", "size", "sha256"]
    part = index.table(shard, columns).take(pa.array(rows - shard.first))
    values = [part[name].to_pylist() for name in columns]
    return [(Address(path, *rest), sha256) for path, *rest, sha256 in zip(*values, strict=True)]


def refuse_changed(found: Sequence[object], reads: Sequence[Read]) -> None:
    """Raises InputError where there is a reason, a string, why an image is not what it was."""
    for value, (address, _) in zip(found, reads, strict=True):
        if isinstance(value, str):
            raise InputError(
                f"{address.path} is not what it was when it was indexed ({value}); give the same "
                "command again, which indexes it anew"
            )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The protected set, ready to be compared with."""

    folder: Path
    key: str
    rows: np.ndarray
    """int64: row of the set of each of its images, the unreadable left out."""
    structureless: np.ndarray
    """bool: too few descriptors to be verified."""


def prepare(work: Work, protected: Index, scorer_key: str | None, views: list[Path]) -> Prepared:
    """Features and, with a teacher, embeddings of the readable protected images.

    Raises:
        InputError: none can be read.
    """
    rows = np.flatnonzero(protected.readable())
    if not len(rows):
        raise InputError(
            "protected: none of the images can be read, so that nothing would be protected; give "
            "the images that you evaluate on"
        )
    name = key("protected", RULE_VERSION, protected.keys, scorer_key)
    folder = work.out / "work" / f"protected-{name}"
    if work.main and not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        found = _protected_features(work, protected, set(rows.tolist()))
        try:
            ProtectedSet.build(temporary, found, _embeddings(views, rows))
            temporary.replace(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(folder, error) from error
    work.processes.wait()
    return Prepared(folder, name, rows, np.array(ProtectedSet(folder).structureless))


def _protected_features(work: Work, protected: Index, wanted: set[int]) -> Iterator[Features]:
    items = [
        reads(protected, shard, piece)
        for shard in protected.images.shards
        for piece in batched(np.array([row for row in shard.rows if row in wanted]), BATCH)
    ]
    with work.bar("features protected", len(wanted)) as bar:
        for item, found in zip(items, work.ordered(features_at, items), strict=True):
            refuse_changed(found, item)
            yield from found  # type: ignore[misc]
            bar.update(len(found))


def _embeddings(views: list[Path], rows: np.ndarray) -> np.ndarray | None:
    if not views:
        return None
    return np.concatenate([np.load(path, mmap_mode="r") for path in views])[rows]


def examine(
    folder: Path, item: tuple[np.ndarray, list[Read], Shortlist | None]
) -> tuple[list[str | None], pa.Table]:
    """The job of a worker: a batch of images -> why some cannot be read, and rows of EXAMINED.

    Args:
        folder: of a `Prepared` protected set.
        item: rows of the gallery, how to read them, and the teacher's shortlist.
    """
    rows, images, shortlist = item
    found = features_at(images)
    whole = [None if isinstance(value, str) else value for value in found]
    problems = [value if isinstance(value, str) else None for value in found]
    pairs = _opened(folder).examine(whole, shortlist)
    return problems, _examined_table(rows.tolist(), pairs)


_opened = functools.lru_cache(1)(ProtectedSet)  # in each worker: memory maps do not pickle


class Examination:
    """Which gallery images have been examined, and what that says.

    Args:
        scores: whose embeddings make the shortlist; None takes votes alone.
    """

    def __init__(
        self, work: Work, gallery: Index, protected: Index, scores: Scores | None, ready: Prepared
    ) -> None:
        self.work, self.gallery, self.protected = work, gallery, protected
        self.scores, self.ready = scores, ready
        self.exact = overlap.same(gallery, protected)
        self.examined = np.zeros(len(gallery.images), bool)
        self.leaked = np.zeros(len(gallery.images), bool)
        self.overrides = read_overrides(work, gallery, protected)
        for row, (number, _) in self.exact.items():
            self.leaked[row] = self.overrides.get((row, number), True)
        self._named = with_twins(gallery, [row for (row, _), bad in self.overrides.items() if bad])
        self.unseen = [*self.exact, *self._named]
        """Rows that leak without having been looked at, unless an override says other."""
        self._readable = gallery.readable()
        self._known: set[Path] = set()
        self._load()

    def folder(self, shard: Shard) -> Path:
        """Where the parts of a shard of the gallery are."""
        scored = self.scores.keys[shard.number] if self.scores else None
        name = key(self.ready.key, self.gallery.keys[shard.number], scored)
        return self.work.out / "work" / "pairs" / f"{shard.number:06d}-{name}"

    def examine(self, rows: np.ndarray) -> np.ndarray:
        """Examine those of `rows` (int64, sorted) that have not been; returns which leak, bool."""
        pending = rows[~self.examined[rows] & ~np.isin(rows, list(self.exact))]
        pending = pending[self._readable[pending]]
        pieces = [
            (shard, here, Part(self.folder(shard) / f"{key(here.tolist())}.parquet", len(here)))
            for shard, here in self.gallery.images.by_shard(pending)
        ]
        mine = self.work.mine(pieces)
        tables_ = self._pairs([(shard, here) for shard, here, _ in mine])
        self.work.write("duplicates", [part for *_, part in mine], EXAMINED, tables_)
        self.work.processes.wait()
        self._load()
        return self.leaked[rows]

    def _pairs(self, pieces: list[tuple[Shard, np.ndarray]]) -> Iterator[tuple[int, pa.Table]]:
        batches = [(s, rows) for s, here in pieces for rows in batched(here, BATCH)]
        job = functools.partial(examine, self.ready.folder)
        found = self.work.ordered(job, self._items(pieces))
        for (shard, rows), (problems, table) in zip(batches, found, strict=True):
            if any(problems):
                refuse_changed(problems, reads(self.gallery, shard, rows))
            yield len(rows), table

    def _items(
        self, pieces: list[tuple[Shard, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, list[Read], Shortlist | None]]:
        """The shortlist of a shard at once: searching 64 by 64 takes seven times as long."""
        ready = ProtectedSet(self.ready.folder)
        for shard, rows in pieces:
            how, shortlist = reads(self.gallery, shard, rows), None
            if self.scores:
                embeddings = self.scores.embeddings(shard)
                shortlist = ready.shortlist(embeddings[rows - shard.first])
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                yield rows[part], how[part], shortlist[part] if shortlist else None

    def _load(self) -> None:
        """Take in what parts say that have not been read yet."""
        for shard in self.gallery.images.shards:
            for path in sorted(self.folder(shard).glob("[!.]*.parquet")):
                if path not in self._known:
                    self._known.add(path)
                    table = pq.read_table(path)
                    rows = table["row"].to_numpy()
                    self.examined[rows] = True
                    self.leaked[rows[self._duplicate(table)]] = True
        self.leaked[self._named] = True
        self.work.processes.wait()  # or another process's next part would be read here

    def _duplicate(self, table: pa.Table) -> np.ndarray:
        """bool [n]: the rule's and the user's verdict on rows of EXAMINED."""
        number = table["protected"].to_numpy()
        found = verdicts(
            table["inliers"].to_numpy(),
            exact_decimals(table["ncc"]),
            # A share of votes says nothing of pictures that have hardly any.
            exact_decimals(table["cosine"]) if self.scores else np.zeros(len(table)),
            self.ready.structureless[number],
            self.work.config.duplicates.policy,
        )
        found &= number >= 0
        if self.overrides:
            pairs = zip(table["row"].to_pylist(), self.ready.rows[number].tolist(), strict=True)
            for i, pair in enumerate(pairs):
                if pair in self.overrides and number[i] >= 0:
                    found[i] = self.overrides[pair]
        return found

    def pairs(self) -> Iterator[tuple[Shard, pa.Table]]:
        """Rows of PAIRS, shard by shard of the gallery, sorted by both rows."""
        protected = self.protected.column("location")
        for shard in self.gallery.images.shards:
            parts = [pq.read_table(path) for path in self.folder(shard).glob("[!.]*.parquet")]
            table = pa.concat_tables([EXAMINED.empty_table(), *parts])
            table = table.filter(pa.array(table["protected"].to_numpy() >= 0))
            whole = pa.concat_tables([self._examined(table), self._unexamined(shard, table)])
            whole = whole.sort_by([("row", "ascending"), ("number", "ascending")])
            names = self.gallery.table(shard, ["location"])["location"]
            columns = {
                **{name: whole[name] for name in whole.column_names},
                "gallery": names.take(pa.array(whole["row"].to_numpy() - shard.first)),
                "protected": protected.take(whole["number"]),
                "rule": pa.array(np.full(len(whole), RULE_VERSION, np.int16)),
            }
            yield shard, pa.table({name: columns[name] for name in tables.PAIRS.names})

    def _examined(self, table: pa.Table) -> pa.Table:
        """Rows of EXAMINED with their verdicts, as _FOUND."""
        number = self.ready.rows[table["protected"].to_numpy()]
        pairs = zip(table["row"].to_pylist(), number.tolist(), strict=True)
        overridden = [pair in self.overrides for pair in pairs] if self.overrides else False
        columns = {
            **{name: table[name] for name in EXAMINED.names},
            "number": number,
            "exact": pa.nulls(len(table), pa.string()),
            "verdict": np.where(self._duplicate(table), "duplicate", "clear").tolist(),
            "overridden": np.broadcast_to(overridden, len(table)),
        }
        return pa.table({name: columns[name] for name in _FOUND.names}, _FOUND)

    def _unexamined(self, shard: Shard, table: pa.Table) -> pa.Table:
        """Exact copies, whose numbers are known without looking, and pairs that only the user
        names, as _FOUND."""
        number = self.ready.rows[table["protected"].to_numpy()]
        known = set(zip(table["row"].to_pylist(), number.tolist(), strict=True))
        same = {"cosine": 1.0, "inliers": 0, "mirrored": False, "ncc": 1.0}
        found = {
            (row, number): {**same, "exact": what, "verdict": True}
            for row, (number, what) in self.exact.items()
        }
        for pair, duplicate in self.overrides.items():
            if pair not in known:
                given = found.setdefault(pair, {"inliers": 0, "mirrored": False})
                given |= {"verdict": duplicate, "overridden": True}
        rows = [
            {
                "row": row,
                "number": number,
                "overridden": False,
                **values,
                "verdict": "duplicate" if values["verdict"] else "clear",
            }
            for (row, number), values in found.items()
            if row in shard.rows
        ]
        return pa.Table.from_pylist(rows, _FOUND)


def exact_decimals(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [n] of what was rounded before it was stored as float32, nan for null: .7 is .7."""
    return column.to_numpy(zero_copy_only=False).astype(np.float64).round(DECIMALS)


def _examined_table(rows: list[int], pairs: list[Pair]) -> pa.Table:
    values = [
        {**dataclasses.asdict(pair), "row": rows[pair.image], "protected": pair.protected}
        for pair in pairs
    ]
    without = set(range(len(rows))) - {pair.image for pair in pairs}
    values += [
        {"row": rows[i], "protected": -1, "cosine": 0.0, "inliers": 0, "mirrored": False}
        for i in sorted(without)
    ]
    return pa.Table.from_pylist(values, EXAMINED)
