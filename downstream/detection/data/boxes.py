"""Annotated boxes of any format (`formats.py`) as one source of images and boxes.

The enemy is a mean average precision of about 0 without a message. So what cannot be told apart
from a wrong file is an error, and what is certain to be a slip in single boxes is mended, counted
and reported (`box_report.py`), because one slip in 860,000 boxes should not keep anyone from
training:

error   an id that nothing has; an id, a name or a file that occurs twice; an image that is missing;
        NaN and infinity; corners or shares where px sizes belong (and the reverse); a stated size
        that the file does not have; no box in the whole set; more than half of the boxes dropped; a
        class that the network's list does not have
fixed   a box that reaches over the image's edge is cut (apart: by at most 1 px, which is rounding)
dropped no width or height above 0 (negative ones too: nobody knows which corner was meant); no area
        inside the image; an image that cannot be read and whose size nobody stated
noticed a box that is there twice, which stays as evaluation elsewhere has it, too; an image that
        cannot be read, which counts as such when it is its turn

Both training and evaluation see the same boxes. (COCO's own evaluation neither cuts nor drops.)
What is done with keypoints and masks says `keypoint_cleaning.py` and `instance_masks.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from downstream.dense.outlines import Rle
from downstream.dense.preflight import findings
from downstream.dense.texts import short_line
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.box_report import BoxReport, ClassBoxes
from downstream.detection.data.cleaning import clean, notice, refuse_other_conventions
from downstream.detection.data.formats import read_annotations
from downstream.detection.data.frames import Frames, decide_frames, read_headers
from downstream.detection.data.instance_masks import PackedMasks, draw_masks
from downstream.detection.data.keypoint_cleaning import (
    KeypointCounts,
    clean_points,
    count_points,
    none_labeled,
)
from ssld.common.errors import InputError, did_you_mean
from ssld.data.storage import Address, absolute, read_all


@dataclass(frozen=True)
class Boxes:
    """Of one image, in px of the upright image (after EXIF orientation), continuous: pixel i covers
    [i, i + 1)."""

    xyxy: np.ndarray
    """float32 [n, 4]: within the image, x2 > x1 and y2 > y1."""
    labels: np.ndarray
    """int64 [n]: class number."""
    crowd: np.ndarray
    """bool [n]: COCO's iscrowd, VOC's difficult: never trained on, ignored in evaluation."""
    areas: np.ndarray
    """float32 [n] px², for COCO's size bins: its `area` (of the outline), else the box's."""
    keypoints: np.ndarray | None
    """float32 [n, k, 3]: x, y, visibility (0 not labeled, 1 hidden, 2 visible). Continuous like the
    boxes: COCO's pixel numbers plus .5."""
    masks: list[Rle] | None = None
    """Of n, where they were asked for."""


class BoxSource:
    """Images and their boxes; a `Source` (`ssld/data/source.py`) besides.

    Flat arrays and Arrow strings, so that loader processes share the memory.

    Args:
        annotations: as read; they are checked against the images, mended and counted.
        class_names: the network's classes in its order; by default the files' own.

    Raises:
        InputError: see above.
    """

    def __init__(self, annotations: Annotations, class_names: Sequence[str] | None = None) -> None:
        self.path = annotations.path
        self.folder = annotations.folder
        self.class_names, mapped = _map_classes(annotations, class_names)
        own = dict(zip(annotations.class_names, annotations.category_ids, strict=True))
        self.category_ids = [own.get(name, -1 - k) for k, name in enumerate(self.class_names)]
        """Ids in the files, by class number; below 0 (and distinct) for a class that they lack."""
        self.image_ids = annotations.image_ids
        """COCO's, or numbers from 1 on."""
        self.keypoints = annotations.keypoints
        """What the keypoints are, where the set has any."""
        self._names = pa.array(annotations.names, pa.large_string())
        self._images = annotations.images
        self._rows = np.arange(len(self._names))
        """Numbers in `_images`."""
        unreadable: dict[int, str] = {}
        if self._images is not None:
            frames = Frames(annotations.stated, np.ones(len(self), np.int64), [])
        else:
            headers = read_headers(self.folder, annotations.names)
            frames = decide_frames(self.path, annotations.names, headers, annotations.stated)
            unreadable = headers.unreadable
        refuse_other_conventions(annotations, frames)
        self.sizes = frames.sizes
        """int64 [n, 2]: height and width of the upright images; 0 for an unreadable one of unstated
        size."""
        cleaned = clean(annotations, frames)
        self.image = annotations.image[cleaned.kept]
        """int64 [m]: number of the image that each box is in, ascending."""
        self.xyxy = cleaned.xyxy
        """float32 [m, 4]."""
        self.counted = ~annotations.crowd[cleaned.kept]
        """bool [m]: is no crowd."""
        points = clean_points(annotations, cleaned.kept, self.xyxy, frames)
        self.keypoint_fault = points.fault
        """Why keypoints cannot be learned from this set, where they cannot."""
        drawn = None
        if annotations.outlines is not None:
            drawn = draw_masks(annotations, annotations.outlines, cleaned.kept, self.xyxy, frames)
            self.counted &= ~drawn.missing
        self._offsets = np.searchsorted(self.image, np.arange(len(self) + 1))
        self._labels = mapped[annotations.labels[cleaned.kept]]
        self._areas = cleaned.areas
        self._points = points.points
        self._masks = drawn and drawn.masks
        noticed = notice(annotations, cleaned.kept, unreadable)
        digests = (hashlib.sha256(Path(x).read_bytes()).digest() for x in annotations.files)
        self.report = BoxReport(
            path=self.path,
            format=annotations.format,
            folder=self.folder,
            images=len(self),
            boxes=len(self._labels),
            crowd=int((~self.counted).sum()),
            without_boxes=int((np.diff(self._offsets) == 0).sum()),
            classes=self._count_classes(),
            masks=drawn is not None,
            keypoints=self._count_keypoints(),
            fixed=[*cleaned.fixed, *points.fixed, *(drawn.fixed if drawn else [])],
            dropped=cleaned.dropped,
            noticed=[*noticed, *points.noticed, *(drawn.noticed if drawn else [])],
            remarks=[
                *annotations.remarks,
                *frames.lines,
                *[f"keypoints cannot be learned here: {points.fault}"] * bool(points.fault),
            ],
            files_sha256=hashlib.sha256(b"".join(digests)).hexdigest(),
            boxes_sha256=self._hash(),
        )
        """What was understood, mended and left out."""
        if not self.counted.any():
            raise InputError(
                f"{self.path}: none of the {len(self)} images has a box to learn from"
                f"{' (all are crowd or difficult)' if self.report.boxes else ''}; check the "
                "annotations"
            )

    def subset(self, images: np.ndarray) -> BoxSource:
        """Some of the images, with the classes of all.

        Args:
            images: their numbers, ascending, int64 [n].

        Raises:
            InputError: none of them has a box to learn from.
        """
        part, boxes = copy.copy(self), np.flatnonzero(np.isin(self.image, images))
        part.image_ids = [self.image_ids[i] for i in images.tolist()]
        part._names, part._rows = self._names.take(pa.array(images)), self._rows[images]
        part.sizes = self.sizes[images]
        part.image = np.searchsorted(images, self.image[boxes])
        part._offsets = np.searchsorted(part.image, np.arange(len(images) + 1))
        part.xyxy, part.counted = self.xyxy[boxes], self.counted[boxes]
        part._labels, part._areas = self._labels[boxes], self._areas[boxes]
        part._points = None if self._points is None else self._points[boxes]
        part._masks = self._masks and PackedMasks([self._masks[j] for j in boxes.tolist()])
        part.report = part._report_of_subset(self.report)
        part.keypoint_fault = self.keypoint_fault or none_labeled(part.report.keypoints)
        if not part.counted.any():
            raise InputError(
                f"{self.path}: none of the {len(part)} images that are chosen of {len(self)} has a "
                "box to learn from; choose more"
            )
        return part

    def _report_of_subset(self, whole: BoxReport) -> BoxReport:
        """What was fixed, dropped and noticed stays that of the whole set."""
        classes = self._count_classes()
        gone = [
            short_line(before.name)
            for before, now in zip(whole.classes, classes, strict=True)
            if before.boxes and not now.boxes
        ]
        points = self._count_keypoints()
        seen = {entry.name for entry in whole.keypoints if entry.labeled}
        lost = [entry.name for entry in points if entry.name in seen and not entry.labeled]
        never = f"keypoints that are labeled in none of the {len(self)} chosen images"
        what = f"classes of which none of the {len(self)} chosen images has an object"
        return dataclasses.replace(
            whole,
            images=len(self),
            boxes=len(self._labels),
            crowd=int((~self.counted).sum()),
            without_boxes=int((np.diff(self._offsets) == 0).sum()),
            classes=classes,
            keypoints=points,
            noticed=[*whole.noticed, *findings(what, gone), *findings(never, lost)],
            remarks=[*whole.remarks, f"{len(self)} of {whole.images} images are chosen"],
            boxes_sha256=self._hash(),
        )

    def __len__(self) -> int:
        return len(self._names)

    def sample_id(self, i: int) -> str:
        return self._names[i].as_py()

    def location(self, i: int) -> str:
        if self._images is not None:
            return self._images.location(int(self._rows[i]))
        return os.path.join(self.folder, self.sample_id(i))

    def address(self, i: int) -> Address:
        """Where the image's bytes lie."""
        if self._images is not None:
            return self._images.address(int(self._rows[i]))
        return Address(absolute(self.location(i)))

    def size(self, i: int) -> int | None:
        return None if self._images is None else self._images.size(int(self._rows[i]))

    def read(self, i: int) -> bytes:
        if self._images is not None:
            return self._images.read(int(self._rows[i]))
        return read_all(self.location(i))

    def image_size(self, i: int) -> tuple[int, int]:
        """Height and width of the upright image; 0, 0 for an unreadable one of unstated size."""
        return int(self.sizes[i, 0]), int(self.sizes[i, 1])

    def boxes(self, i: int) -> Boxes:
        part = slice(int(self._offsets[i]), int(self._offsets[i + 1]))
        keypoints = None if self._points is None else self._points[part]
        masks = self._masks and [
            {"size": self.sizes[i].tolist(), "counts": self._masks[j]}
            for j in range(part.start, part.stop)
        ]
        crowd, areas = ~self.counted[part], self._areas[part]
        return Boxes(self.xyxy[part], self._labels[part], crowd, areas, keypoints, masks)

    def _count_classes(self) -> list[ClassBoxes]:
        labels, images = self._labels[self.counted], self.image[self.counted]
        once = np.unique(np.stack([images, labels], axis=1), axis=0)[:, 1]
        boxes, in_images = (np.bincount(x, minlength=len(self.class_names)) for x in (labels, once))
        return [
            ClassBoxes(name, self.category_ids[k], int(boxes[k]), int(in_images[k]))
            for k, name in enumerate(self.class_names)
        ]

    def _count_keypoints(self) -> list[KeypointCounts]:
        if self.keypoints is None or self._points is None:
            return []
        return count_points(self.keypoints, self._points, self._labels, self.counted)

    def _hash(self) -> str:
        digest = hashlib.sha256("\0".join([*self.class_names, *self._names.to_pylist()]).encode())
        arrays = [self.sizes, self._offsets, self.xyxy, self._labels, ~self.counted, self._areas]
        arrays += [] if self._points is None else [self._points]
        arrays += [] if self._masks is None else [self._masks.packed]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def open_boxes(
    path: str, class_names: Sequence[str] | None = None, masks: bool = False
) -> BoxSource:
    """Open annotated images.

    Args:
        path: see `read_annotations`.
        class_names: the network's classes in its order, for a set that must fit another one: they
            are matched by name. A class of the set's that has boxes must be among them.
        masks: draw all outlines, which takes time and memory.

    Raises:
        InputError: one sentence naming file, image and field; see the top of this file.
    """
    annotations = read_annotations(path, masks)
    return BoxSource(_in_order(annotations), class_names)


def _in_order(annotations: Annotations) -> Annotations:
    """Boxes by image, otherwise in the files' order."""
    order = np.argsort(annotations.image, kind="stable")
    if (order == np.arange(len(order))).all():
        return annotations
    places = annotations.places
    return dataclasses.replace(
        annotations,
        image=annotations.image[order],
        labels=annotations.labels[order],
        xyxy=annotations.xyxy[order],
        crowd=annotations.crowd[order],
        places=lambda j: places(int(order[j])),
        areas=None if annotations.areas is None else annotations.areas[order],
        points=None if annotations.points is None else annotations.points[order],
        outlines=annotations.outlines and [annotations.outlines[j] for j in order],
    )


def _map_classes(
    annotations: Annotations, wanted: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Names by class number, and the files' class -> class number, -1 for one that has no boxes."""
    if wanted is None:
        return list(annotations.class_names), np.arange(len(annotations.class_names))
    numbers = {name: k for k, name in enumerate(wanted)}
    mapped = np.array([numbers.get(name, -1) for name in annotations.class_names], np.int64)
    unknown = [k for k in np.flatnonzero(mapped < 0) if (annotations.labels == k).any()]
    if unknown:
        name = annotations.class_names[unknown[0]]
        others = f" (and {len(unknown) - 1} more classes)" if len(unknown) > 1 else ""
        first = int(np.flatnonzero(annotations.labels == unknown[0])[0])
        raise InputError(
            f"{annotations.path}: {annotations.where(first)} is of class {name!r}{others}, which "
            f"is not one of the {len(wanted)} classes of the network or the training set; give "
            f"sets with the same classes{did_you_mean(name, wanted)}"
        )
    return list(wanted), mapped
