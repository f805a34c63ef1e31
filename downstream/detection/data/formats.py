"""Which format a path is of, and its reader. What two formats fit is refused: nobody but its owner
knows which of them is the newer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from downstream.dense.cvat import NAME as CVAT
from downstream.dense.cvat import is_cvat, read_cvat
from downstream.dense.generated import ANNOTATIONS, is_generated, open_generated
from downstream.dense.labelme import has_shapes, read_labelme
from downstream.dense.texts import shown
from downstream.detection.data.annotations import Annotations, of_shapes
from downstream.detection.data.coco import read_coco
from downstream.detection.data.createml import is_createml, read_createml
from downstream.detection.data.voc import LISTS, Folders, find_voc, read_voc
from downstream.detection.data.yolo import read_yolo
from downstream.detection.data.yolo_layouts import LABELS, has_labels, is_yolo
from ssld.common.errors import InputError
from ssld.data.storage import is_remote


def read_annotations(path: str, masks: bool = False) -> Annotations:
    """
    Args:
        path: one of (docs/formats.md has the tools that write them)

            - `FILE.json` of COCO or Create ML, `FILE.xml` of CVAT, each with `::FOLDER` where its
              images are not beside it, in `images/` or in a folder of its name,
            - `data.yaml::SPLIT` of YOLO,
            - `DIR` or `DIR::SPLIT`: VOC's (`Annotations/`, `JPEGImages/`; xml files beside the
              pictures), YOLO's (`images/`, `labels/`; a `data.yaml`; lists of images; txt files
              and `classes.txt` beside the pictures), labelme's or Create ML's JSON files beside
              the pictures, CVAT's `annotations.xml` with `images/`; `DIR/Annotations` or
              `DIR/labels` to choose where a folder has both,
            - a folder that `ssld pseudo-label` wrote.
        masks: keep the outlines.

    Raises:
        InputError: no such format, or two that fit; what the readers raise.
    """
    place, _, extra = path.partition("::") if not is_remote(path) else (path, "", "")
    if is_remote(place):
        raise InputError(f"{path}: annotated images are read from a local folder; copy them there")
    root, split = Path(place), extra or None
    if "\0" in path:
        raise InputError(f"{shown(path)}: no such file or folder; check the path")
    if root.is_file():
        return _of_file(path, root, split, masks)
    if not root.is_dir():
        raise InputError(
            f"{place}: no such file or folder; give COCO's json, YOLO's data.yaml::train, or a "
            "folder of VOC's, YOLO's, labelme's or CVAT's"
        )
    if is_generated(root):
        _, images = open_generated(root, "detection")
        annotations = read_coco(str(root / ANNOTATIONS), masks=masks, images_in=images)
        return dataclasses.replace(annotations, path=path)
    fitting = _fitting(path, root, split, masks)
    if len(fitting) > 1:
        one, other = list(fitting)[:2]
        raise InputError(
            f"{place}: has both {one} and {other}; choose one: give the folder Annotations or "
            "labels itself, the data.yaml, or the json or xml file, or move the other files away"
        )
    if fitting:
        return next(iter(fitting.values()))()
    files = [file for pattern in ("*.json", "annotations/*.json", "*/_annotations.coco.json")
             for file in sorted(root.glob(pattern))]  # fmt: skip
    hint = (
        f"; COCO's json is given as a file: {', '.join(map(str, files[:3]))}"
        if files
        else ("; images without boxes are for `ssld predict`, or data.unlabeled of `ssld sed`")
    )
    raise InputError(
        f"{place}: has neither Annotations/ and JPEGImages/ (VOC), xml files beside the "
        "pictures, images/ and labels/, data.yaml or txt files and classes.txt beside the pictures "
        f"(YOLO), labelme's or Create ML's JSON files, nor CVAT's {CVAT}{hint}"
    )


def _of_file(path: str, root: Path, split: str | None, masks: bool) -> Annotations:
    ending = root.suffix.lower()
    if ending == ".json" and is_createml(root):
        return _read_createml(path, [root], split, masks)
    if ending == ".json" and has_shapes(root):
        raise InputError(f"{root}: is labelme's file of one picture; give its folder {root.parent}")
    if ending == ".json":
        return read_coco(str(root), split, masks)
    if ending == ".xml" and is_cvat(root):
        return of_shapes(read_cvat(path, root, None, split, masks), masks)
    if is_yolo(root, split):
        return read_yolo(path, root, split, masks)
    raise InputError(
        f"{root}: not json, data.yaml or a folder; give COCO's json, YOLO's data.yaml::train, "
        "CVAT's xml, or a folder of VOC's, YOLO's or labelme's"
    )


def _fitting(
    path: str, root: Path, split: str | None, masks: bool
) -> dict[str, Callable[[], Annotations]]:
    """A reader by what the folder has, in a few words."""
    if root.name in LISTS and (voc := find_voc(root.parent, split)) and voc.xml == root:
        return {"": partial(_read_voc, path, voc, split, masks)}
    if root.name == LABELS and (root.parent / "images").is_dir():
        return {"": partial(read_yolo, path, root.parent, split, masks)}
    readers: dict[str, Callable[[], Annotations]] = {}
    voc, folder = find_voc(root, split), root / (split or ".")
    if voc is not None:
        readers["VOC's xml files"] = partial(_read_voc, path, voc, split, masks)
    if has_labels(root, split) or (voc is None and is_yolo(root, split)):
        readers["YOLO's labels"] = partial(read_yolo, path, root, split, masks)
    if (root / CVAT).is_file() and is_cvat(root / CVAT):
        readers[f"CVAT's {CVAT}"] = lambda: of_shapes(
            read_cvat(path, root / CVAT, split, None, masks), masks
        )
    files = sorted(folder.glob("*.json"))
    if files and is_createml(files[0]):
        readers["Create ML's JSON files"] = partial(_read_createml, path, files, None, masks)
    elif any(map(has_shapes, files)):
        readers["labelme's JSON files"] = lambda: of_shapes(
            read_labelme(path, folder, masks), masks
        )
    return readers


def _read_voc(path: str, voc: Folders, split: str | None, masks: bool) -> Annotations:
    _refuse_masks(path, "VOC's xml", masks)
    return read_voc(path, voc, split)


def _read_createml(path: str, files: list[Path], images: str | None, masks: bool) -> Annotations:
    _refuse_masks(path, "Create ML's JSON", masks)
    return of_shapes(read_createml(path, files, images), masks)


def _refuse_masks(path: str, what: str, masks: bool) -> None:
    if masks:
        raise InputError(
            f"{path}: {what} has boxes and no masks; give COCO's json, YOLO's outlines, labelme's "
            "or CVAT's files, or choose a detector of boxes"
        )
