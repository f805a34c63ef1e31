"""Which layout of masks a path is of, and its reader. What two layouts fit is refused: nobody but
its owner knows which of them is the newer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from downstream.dense.coco_json import read_content
from downstream.dense.cvat import NAME as CVAT
from downstream.dense.cvat import is_cvat, read_cvat
from downstream.dense.generated import is_generated
from downstream.dense.labelme import has_shapes, read_labelme
from downstream.segmentation.data.class_table import ClassTable
from downstream.segmentation.data.layouts import (
    ade,
    camvid,
    camvid_splits,
    cityscapes,
    generated,
    is_roboflow,
    mmseg,
    nested_splits,
    plain,
    roboflow,
    split_folders,
    voc,
)
from downstream.segmentation.data.pairing import Pairs
from downstream.segmentation.data.panoptic import PanopticLabels, is_panoptic, read_panoptic
from downstream.segmentation.data.shapes import keep_outline, of_coco, of_shapes
from ssld.common.errors import InputError
from ssld.data.storage import is_remote

LAYOUTS = {
    "Cityscapes": (("leftImg8bit", "gtFine"), cityscapes),
    "VOC": (("JPEGImages", "SegmentationClass"), voc),
    "mmsegmentation": (("img_dir", "ann_dir"), mmseg),
    "images and masks": (("images", "masks"), plain),
    "ADE": (("images", "annotations"), ade),
}
"""Folders, and the reader of a root that has both."""


def find_masks(
    path: str, class_names: list[str] | None
) -> tuple[str, Pairs, ClassTable | PanopticLabels]:
    """The name of the layout, the pairs and what the pixels mean, of one of

    - `DIR::SPLIT` of `images/SPLIT`, `masks/SPLIT` (or mmsegmentation's `img_dir`, `ann_dir`, ADE's
      `images`, `annotations`, CamVid's `SPLIT`, `SPLIT_labels`, Roboflow's `SPLIT/x_mask.png`,
      lightly-train's `SPLIT/images`, `SPLIT/masks`) and a class table (`class_table.py`),
    - `DIR::SPLIT` of Cityscapes: `leftImg8bit/SPLIT`, `gtFine/SPLIT`,
    - `DIR::SPLIT` of VOC: `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation/SPLIT.txt`,
    - `FILE.json` or `FILE.json::IMAGES` of COCO, panoptic (`panoptic.py`) or with outlines,
    - `DIR` or `DIR::SPLIT` of labelme's JSON files, `DIR` or `FILE.xml` of CVAT's (`shapes.py`),
    - a folder that `ssld pseudo-label` wrote.

    (docs/formats.md has the tools that write them).

    Args:
        class_names: of the network or of the training set, where they are known.

    Raises:
        InputError: no layout fits, or two do; what the readers raise.
    """
    root, _, part = path.partition("::")
    if is_remote(root):
        raise InputError(f"{path}: masks are read from local folders only; copy it to a disk first")
    place, split = Path(root), part or None
    if not place.exists():
        raise InputError(f"{root}: no such file or folder; check the path")
    if place.is_dir():
        layout, (pairs, table) = _of_folder(path, place, split, class_names)
        return layout, pairs, table
    if is_cvat(place):
        shapes = read_cvat(path, place, None, split, masks=True)
        return "CVAT", *of_shapes(shapes, place.parent, class_names)
    if has_shapes(place):
        raise InputError(
            f"{place}: is labelme's file of one picture; give its folder {place.parent}"
        )
    content = read_content(str(place), keep_outline)
    if is_panoptic(content):
        return "COCO panoptic", *read_panoptic(place, content, split, class_names)
    return "COCO", *of_coco(place, content, split, class_names)


def _of_folder(
    path: str, root: Path, split: str | None, class_names: list[str] | None
) -> tuple[str, tuple[Pairs, ClassTable]]:
    """The name of a folder's layout, the pairs and the classes.

    Raises:
        InputError: no layout fits, or two do.
    """
    if is_generated(root):
        return "pseudo-labels", generated(root)
    fitting: dict[str, Callable[[], tuple[Pairs, ClassTable]]] = {
        name: partial(read, root, split)
        for name, (parts, read) in LAYOUTS.items()
        if all((root / part).is_dir() for part in parts)
    }
    if "images and masks" in fitting or not _has_pngs(root / "annotations"):
        fitting.pop("ADE", None)  # json or xml files, that say the same in another form
    part = root / (split or ".")
    if camvid_splits(root):
        fitting["CamVid"] = partial(camvid, root, split)
    if nested_splits(root):
        fitting["SPLIT/images and SPLIT/masks"] = partial(split_folders, root, split)
    if part.is_dir() and is_roboflow(part):
        fitting["Roboflow"] = partial(roboflow, root, split)
    if part.is_dir() and any(map(has_shapes, sorted(part.glob("*.json")))):
        fitting["labelme"] = lambda: of_shapes(
            read_labelme(path, part, masks=True), part, class_names
        )
    if is_cvat(root / CVAT):
        fitting["CVAT"] = lambda: of_shapes(
            read_cvat(path, root / CVAT, split, None, masks=True), root, class_names
        )
    if len(fitting) == 1:
        name, read = next(iter(fitting.items()))
        return name, read()
    if fitting:
        raise InputError(
            f"{root}: has the layouts of {' and of '.join(fitting)}; move the folders or files of "
            "all but one away"
        )
    wanted = "; ".join(f"{' and '.join(parts)} ({name})" for name, (parts, _) in LAYOUTS.items())
    raise InputError(
        f"{root}: has none of the layouts of masks, which are the folders {wanted}; SPLIT/images "
        "and SPLIT/masks; SPLIT and SPLIT_labels (CamVid); x_mask.png beside x.jpg (Roboflow); "
        f"labelme's JSON files; CVAT's {CVAT}; or a file .json (COCO); check the path"
    )


def _has_pngs(folder: Path) -> bool:
    return next(folder.rglob("*.png"), None) is not None
