"""A look at every mask before a run: what its ids mean, what does not fit, and what it is made of.

Wrong class ids give an mIoU near zero without any other sign, so all masks are read: by threads,
for decoding PNG leaves Python's lock; 3000 masks take seconds.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from downstream.dense.texts import short_line, shown
from downstream.segmentation.data.class_table import FILES, IGNORE
from downstream.segmentation.data.foreign_tables import NAMES
from downstream.segmentation.data.masks import MaskSource
from downstream.segmentation.data.pixels import UNKNOWN, wrong_size
from ssld.common.errors import InputError
from ssld.common.streams import bar_output
from ssld.common.text_table import text_table
from ssld.data.decode import Unreadable, image_size, orientation_of

SUSPECT_SHARE = 0.001
"""Share of all pixels from which on what is ignored by default may be a class that lacks."""
NAMED_PLACES = 20
"""Places that are kept of each kind of finding; all are counted."""


@dataclass
class Misfit:
    """Something that does not fit."""

    count: int = 0
    places: list[str] = field(default_factory=list)
    """The first `NAMED_PLACES`, with the reason."""

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < NAMED_PLACES:
            self.places.append(place)


@dataclass(frozen=True)
class ClassPixels:
    """What the masks have of one class."""

    name: str
    id: int
    """In masks; of a panoptic set the category id."""
    pixels: int
    images: int
    """Masks with at least one pixel of it."""


@dataclass
class MaskReport:
    """What was found; `check` says whether it can be trained and evaluated on."""

    path: str
    layout: str
    images: int
    classes: list[ClassPixels]
    """By class number."""
    ignored_ids: list[int]
    ignored_pixels: int = 0
    ignored_images: int = 0
    """Masks with at least one such pixel."""
    table: str = ""
    """Where the classes are from."""
    silent: bool = False
    """See `ClassTable.silent`."""
    assumed: bool = False
    """Whether the classes are those of a public set of this layout, and nothing says that the set
    is that one."""
    smallest: tuple[int, int] | None = None
    """Height and width in px of the mask with the fewest pixels."""
    largest: tuple[int, int] | None = None
    turned: int = 0
    """Images with an EXIF orientation; their masks are taken as those of the upright image."""
    unknown: dict[str, Misfit] = field(default_factory=dict)
    """Masks with an id (or #rrggbb) that no class has, by that id."""
    wrong_size: Misfit = field(default_factory=Misfit)
    unreadable: Misfit = field(default_factory=Misfit)
    """Images and masks that are damaged; a run counts them and goes on without."""
    without_mask: Misfit = field(default_factory=Misfit)
    """Images that are left out."""
    remarks: list[str] = field(default_factory=list)
    """On the reading of annotations."""
    hashes: dict[str, str] = field(default_factory=dict)
    """sha256 of annotation files, of the list of pairs (`list`) and of all masks (`masks`)."""

    @property
    def labelled_pixels(self) -> int:
        return sum(c.pixels for c in self.classes)

    def shares(self) -> list[float]:
        """Share of the labelled pixels, by class number."""
        return [c.pixels / max(self.labelled_pixels, 1) for c in self.classes]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        tree = asdict(self)
        for entry, share in zip(tree["classes"], self.shares(), strict=True):
            entry["share"] = share
        return tree

    def check(self, training: Sequence[MaskReport] = ()) -> None:
        """Refuse what would silently ruin a result.

        Args:
            training: reports of all sets that are trained on: a class may occur in another one.

        Raises:
            InputError: an id that no class has, a mask of another size than its image, no labelled
                pixel at all, pixels of one class alone, a class that seems to be what is ignored,
                classes that are guessed; names file, image and field.
        """
        for key, finding in self.unknown.items():
            raise InputError(f"{finding.places[0]} ({_masks(finding.count)} with {key})")
        if self.wrong_size.count:
            raise InputError(f"{self.wrong_size.places[0]} ({_masks(self.wrong_size.count)} so)")
        if not self.labelled_pixels:
            why = f" ({self.unreadable.places[0]})" if self.unreadable.count else ""
            raise InputError(
                f"{self.path}: none of the {self.images} masks has a pixel of any class{why}; "
                "check the ids of the class table"
            )
        require_classes(self, training or [self])

    def lines(self) -> list[str]:
        """For a terminal."""
        rows = [
            [str(i), short_line(c.name), str(c.id), f"{100 * share:.2f}", str(c.images)]
            for i, (c, share) in enumerate(zip(self.classes, self.shares(), strict=True))
        ]
        table = text_table(["class", "name", "id", "% of labelled pixels", "images"], rows)
        first, *others = self.facts()
        return [first, *table.splitlines(), *(x for fact in others for x in fact.splitlines())]

    def facts(self) -> list[str]:
        """See `downstream.dense.preflight.Report`."""
        total = self.labelled_pixels + self.ignored_pixels
        ids = ", ".join(map(str, self.ignored_ids)) or "none"
        share = 100 * self.ignored_pixels / max(total, 1)
        lines = [
            f"{self.path} ({self.layout}): {self.images} images with a mask, {self._sizes()}",
            f"ignored: {share:.2f} % of all pixels (ids {ids})",
        ]
        lines += self.remarks
        absent = [short_line(c.name) for c in self.classes if not c.pixels]
        if absent:
            lines.append(f"warning: no pixel of {', '.join(absent)}")
        if self.turned:
            lines.append(
                f"{self.turned} images are turned upright by their EXIF orientation; their masks "
                "are taken to be upright already"
            )
        lines += [_shown(name, x) for name, x in self._findings() if x.count]
        lines += [f"sha256 of {name}: {digest}" for name, digest in self.hashes.items()]
        return lines

    def _sizes(self) -> str:
        if self.smallest is None or self.largest is None:
            return "none of them readable"
        sizes = [f"{h} x {w}" for h, w in dict.fromkeys((self.smallest, self.largest))]
        return f"{' to '.join(sizes)} px"

    def _findings(self) -> list[tuple[str, Misfit]]:
        return [
            *((f"masks with {key}, which has no class", x) for key, x in self.unknown.items()),
            ("masks of another size than their image", self.wrong_size),
            ("unreadable images or masks", self.unreadable),
            ("images without a mask, left out", self.without_mask),
        ]


def _masks(count: int) -> str:
    return f"{count} mask{'s' * (count > 1)}"


def _shown(name: str, finding: Misfit, shown: int = 3) -> str:
    more = [f"  and {finding.count - shown} more"] * (finding.count > shown)
    places = [f"  {x}" for x in finding.places[:shown]]
    return "\n".join([f"{finding.count} {name}:", *places, *more])


@dataclass
class _Look:
    """What one pair shows."""

    digest: bytes = hashlib.sha256().digest()
    """sha256 of the mask's file; of nothing where that cannot be read."""
    counts: np.ndarray | None = None
    """Pixels of each value of a mask that was handed out, int64 [256]."""
    shape: tuple[int, int] | None = None
    turned: bool = False
    unknown: tuple[tuple[str, str], ...] = ()
    """Id or colour, and where."""
    wrong_size: str | None = None
    unreadable: str | None = None


def inspect(source: MaskSource) -> MaskReport:
    """Read every mask, and the header of every image, of a source."""
    table = source.labels.table
    counts, present = np.zeros(256, np.int64), np.zeros(256, np.int64)
    report = MaskReport(source.path, source.layout, len(source), [], table.ignored)
    digest = hashlib.sha256()
    for look in _looks(source):
        digest.update(look.digest)
        _add(report, look)
        if look.counts is not None:
            counts += look.counts
            present += look.counts > 0
    report.classes = [
        ClassPixels(row.name, row.id, int(counts[i]), int(present[i]))
        for i, row in enumerate(table.classes)
    ]
    report.ignored_pixels, report.ignored_images = int(counts[IGNORE]), int(present[IGNORE])
    report.table, report.silent, report.assumed = table.where, table.silent, _is_guess(source)
    report.remarks = list(source.remarks)
    for name in source.unlabelled:
        report.without_mask.add(name)
    report.hashes = {f: hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in source.files}
    report.hashes |= {"list": _list_hash(source), "masks": digest.hexdigest()}
    return report


def _is_guess(source: MaskSource) -> bool:
    """Whether the classes are a public set's whose images have other names than these."""
    pattern = source.labels.table.assumed
    stems = (Path(source.sample_id(i)).stem for i in range(len(source)))
    return pattern is not None and not all(re.fullmatch(pattern, stem) for stem in stems)


def require_classes(report: MaskReport, training: Sequence[MaskReport]) -> None:
    """
    Args:
        training: reports whose classes are counted together.

    Raises:
        InputError: see `MaskReport.check`.
    """
    pixels = np.sum([[c.pixels for c in one.classes] for one in training], axis=0)
    present = [c for c, count in zip(report.classes, pixels, strict=True) if count]
    absent = [c for c, count in zip(report.classes, pixels, strict=True) if not count]
    if report.assumed and absent:
        raise InputError(
            f"{report.path}: has the folders of {report.layout}'s set but no class table, images "
            f"of other names, and pixels of {len(present)} of its {len(report.classes)} classes, "
            f"so nobody knows what its ids mean; write {NAMES} into it, with the name of id 0, 1, "
            f"... on each line, or {FILES[0]}"
        )
    share = report.ignored_pixels / max(1, report.ignored_pixels + report.labelled_pixels)
    if report.silent and absent and share > SUSPECT_SHARE:
        others = f" (and {len(absent) - 1} more classes)" if len(absent) > 1 else ""
        raise InputError(
            f"{report.path}: no pixel is of class {shown(absent[0].name)}, id {absent[0].id}"
            f"{others}, but {report.ignored_images} masks have {report.ignored_pixels:,} pixels "
            f"({share:.1%}) of id {IGNORE}, which is ignored as {report.table} does not name it: "
            f'give the class id {IGNORE} there, or write in {FILES[0]} {{"classes": [...], '
            f'"ignore": {IGNORE}}}'
        )
    if len(present) < 2:
        raise InputError(
            f"{report.path}: all pixels that count are of class {shown(present[0].name)}, so there "
            f"is nothing to tell apart; do the ids in {report.table} fit the masks? (ignored: "
            f"{share:.1%} of the pixels)"
        )


def _looks(source: MaskSource) -> Iterator[_Look]:
    """A look at each pair, in order."""
    threads = max(1, min(16, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(threads) as pool:
        looks = pool.map(lambda i: _look(source, i), range(len(source)))
        yield from tqdm(
            looks, total=len(source), desc="masks", unit="img", leave=False,
            **bar_output(lines=False),
        )  # fmt: skip


def _look(source: MaskSource, i: int) -> _Look:
    look, where = _Look(), f"mask {source.mask_location(i)}"
    try:
        data = source.read_mask(i)
        look.digest = hashlib.sha256(data).digest()
        ids, id_map = source.decode_mask(i, data)
        where = source.location(i)
        header = source.header(i)
        size, turned = image_size(header), orientation_of(header) != 1
    except (OSError, Unreadable) as error:
        look.unreadable = f"{where}: {error}"
        return look
    look.turned = turned
    where = f"mask {source.mask_location(i)}"
    if ids.shape != size:
        look.wrong_size = f"{where}: {wrong_size(ids.shape, size)}"
        return look
    numbers = id_map(ids)
    look.counts, look.shape = np.bincount(numbers.ravel(), minlength=256), size
    unknown = {}
    if look.counts[UNKNOWN]:
        values, pixels = np.unique(ids[numbers == UNKNOWN], return_counts=True)
        for value, count in zip(values.tolist(), pixels.tolist(), strict=True):
            what, why = source.labels.unknown(value, ids.dtype == np.uint32)
            unknown.setdefault(what, f"{where}: {count} px: {why}")  # the first of several segments
    look.unknown = tuple(unknown.items())
    return look


def _add(report: MaskReport, look: _Look) -> None:
    report.turned += look.turned
    if look.unreadable is not None:
        report.unreadable.add(look.unreadable)
    if look.wrong_size is not None:
        report.wrong_size.add(look.wrong_size)
    for what, place in look.unknown:
        report.unknown.setdefault(what, Misfit()).add(place)
    if look.shape is not None:
        report.smallest = min(report.smallest or look.shape, look.shape, key=math.prod)
        report.largest = max(report.largest or look.shape, look.shape, key=math.prod)


def _list_hash(source: MaskSource) -> str:
    """Of sample ids, the images' bytes and the masks' names, in order."""
    digest = hashlib.sha256()
    for i in range(len(source)):
        line = f"{source.sample_id(i)}\t{source.size(i)}\t{source.mask_name(i)}\n"
        digest.update(line.encode())
    return digest.hexdigest()
