"""The masks of a set's objects: drawn from their outlines, checked against image and box.

error   run lengths of another size than the image that was annotated; no mask in the whole set, or
        for more than half of the objects
fixed   run lengths whose size is off by 1 px, which are cut or padded; an object without a mask (no
        outline, none with three points, no pixel inside the image): it is taken as a crowd, never
        trained on and ignored in evaluation, with its box for a mask, as to learn from it that
        there is nothing would be wrong
noticed a mask that reaches out of its box
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from downstream.dense.outlines import Outline, Rle, coco_masks, of_box, to_rle
from downstream.dense.preflight import EXAMPLES, Finding, findings
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.frames import Frames
from ssld.common.errors import InputError

BOX_SLACK, BOX_SLACK_PX = 0.05, 2.0
"""Of the box's side, or px: what a mask may reach out of its box."""


class PackedMasks:
    """n masks in two arrays, which loader processes share."""

    def __init__(self, counts: Sequence[bytes]) -> None:
        self.packed = np.frombuffer(b"".join(counts), np.uint8)
        self._ends = np.cumsum([0, *map(len, counts)])

    def __getitem__(self, j: int, /) -> bytes:
        return self.packed[self._ends[j] : self._ends[j + 1]].tobytes()


@dataclass(frozen=True)
class DrawnMasks:
    """Of the objects that are kept."""

    masks: PackedMasks
    """In the upright image."""
    missing: np.ndarray
    """bool [kept]: has none but its box."""
    fixed: list[Finding]
    noticed: list[Finding]


def draw_masks(
    annotations: Annotations,
    outlines: Sequence[Outline],
    kept: np.ndarray,
    xyxy: np.ndarray,
    frames: Frames,
) -> DrawnMasks:
    """
    Args:
        outlines: of all m boxes.
        kept: int64, indices of the objects that are.
        xyxy: float32 [kept, 4], their boxes.

    Raises:
        InputError: see above.
    """
    sizes, turns = frames.sizes[annotations.image[kept]], frames.turns[annotations.image[kept]]
    rles: list[Rle] = []
    missing, off = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
    for row, j in enumerate(kept.tolist()):
        height, width = sizes[row].tolist()
        turn = int(turns[row])
        stored = (width, height) if turn >= 5 else (height, width)
        off[row] = _is_off(annotations, j, outlines[j], stored)
        rle = to_rle(outlines[j], stored, turn, annotations.shares)
        missing[row] = rle is None
        rles.append(of_box(xyxy[row].tolist(), (height, width)) if rle is None else rle)
    learned = ~annotations.crowd[kept]
    lacking = missing & learned
    if 2 * lacking.sum() > learned.sum():
        raise InputError(
            f"{annotations.path}: {lacking.sum()} of {learned.sum()} objects have no mask; give a "
            "set with outlines, or choose a detector of boxes"
        )
    without = np.array([_is_empty(outlines[j]) for j in kept.tolist()], bool)

    def found(what: str, mask: np.ndarray) -> list[Finding]:
        places = [annotations.where(int(j)) for j in kept[np.flatnonzero(mask)[:EXAMPLES]]]
        return findings(what, places, int(mask.sum()))

    return DrawnMasks(
        PackedMasks([rle["counts"] for rle in rles]),
        missing,
        [
            *found("objects without an outline, taken as crowd", lacking & without),
            *found(
                "objects whose outline holds no pixel of the image, taken as crowd",
                lacking & ~without,
            ),
            *found("run lengths of a size off by 1 px, cut or padded", off),
        ],
        found("masks that reach out of their box", learned & ~missing & _reach_out(rles, xyxy)),
    )


def _is_empty(outline: Outline) -> bool:
    return isinstance(outline, list) and not outline


def _is_off(annotations: Annotations, j: int, outline: Outline, size: tuple[int, int]) -> bool:
    """Whether run lengths are of a size that is off by a pixel.

    Raises:
        InputError: they are of another one.
    """
    if not isinstance(outline, dict) or outline["size"] == list(size):
        return False
    height, width = outline["size"]
    if max(abs(height - size[0]), abs(width - size[1])) > 1:
        raise InputError(
            f"{annotations.path}: {annotations.where(j)}: the run lengths of segmentation are of "
            f"height {height} and width {width}, but the image that was annotated has {size[0]} "
            f"and {size[1]}; give masks of the whole image"
        )
    return True


def _reach_out(rles: Sequence[Rle], xyxy: np.ndarray) -> np.ndarray:
    """bool [n]."""
    if not rles:
        return np.zeros(0, bool)
    boxes = coco_masks().toBbox(list(rles)).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    over = np.maximum(xyxy[:, :2] - low, high - xyxy[:, 2:])
    slack = np.maximum(BOX_SLACK_PX, BOX_SLACK * (xyxy[:, 2:] - xyxy[:, :2]))
    return np.any(over > slack, axis=1)
