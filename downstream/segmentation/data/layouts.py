"""Which mask belongs to which image, in layouts of folders. Nothing is opened but lists and class
tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from downstream.dense.generated import AGAIN, IMAGES, open_generated
from downstream.dense.texts import read_text, shown, writable
from downstream.segmentation.data.class_table import (
    FILES,
    IGNORE,
    ClassTable,
    Row,
    find_table,
    read_table,
    voc_colour,
)
from downstream.segmentation.data.pairing import (
    Pairs,
    endings,
    ends_with,
    numbers_of,
    pair,
    refuse_other_formats,
    stem_of,
)
from ssld.common.errors import InputError
from ssld.data.folder import EXTENSIONS, FolderSource

_CITYSCAPES = [
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
]
VOID_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, IGNORE)
CITYSCAPES = ClassTable(
    tuple(Row(*row) for row in _CITYSCAPES),
    "Cityscapes' table of classes",
    VOID_IDS,
    assumed=r"[a-z-]+_\d{6}_\d{6}_leftImg8bit",
)
"""The 19 classes of the benchmark in the order of their trainId; every other id up to 33 is void
or `ignoreInEval`. Source: cityscapesScripts, cityscapesscripts/helpers/labels.py (mcordts). Its
license plate, id -1, is 255 in an 8-bit mask."""
CITYSCAPES_TRAIN_IDS = replace(
    CITYSCAPES,
    rows=tuple(replace(row, id=i) for i, row in enumerate(CITYSCAPES.rows)),
    ignored_ids=(IGNORE,),
)
"""Of masks of train ids, in which -1 and 255 are 255."""
_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)
VOC = ClassTable(
    tuple(Row(i, name, voc_colour(i)) for i, name in enumerate(_VOC.split())),
    "PASCAL VOC's table of classes",
    (IGNORE,),
    assumed=r"20\d\d_\d{6}",
)
"""Background and the 20 classes in alphabetical order; 255 is the border of an object. Source:
VOC2012 development kit, section 3.1 and VOCcolormap.m."""


_TABLES = (
    f"write {FILES[0]} (or {', '.join(FILES[1:4])}) with the id and the name of each class, "
    '[{"id": 0, "name": "road"}, ...]; '
    f"{', '.join(FILES[4:])} of other tools are read, too"
)
MASK = "_mask"


def plain(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """`images/SPLIT/x.jpg` and `masks/SPLIT/x.png`, nested as they may be, and a class table."""
    return _of_folders(root, *(_folder(root / part, split) for part in ("images", "masks")))


def split_folders(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """`SPLIT/images/x.jpg` and `SPLIT/masks/x.png`, as lightly-train's guides have them, and a
    class table in the folder or in that of the split."""
    splits = nested_splits(root)
    if split not in splits:
        problem = "which split?" if split is None else f"no split {split!r};"
        raise InputError(f"{root}: {problem} {_choice(root, splits)}")
    folder = root / split
    table = root if find_table(root) else folder
    return _of_folders(table, folder / "images", folder / "masks")


def nested_splits(root: Path) -> list[str]:
    """Folders that have images/ and masks/."""
    return sorted(
        x.name for x in root.iterdir() if (x / "images").is_dir() and (x / "masks").is_dir()
    )


def mmseg(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """`img_dir/SPLIT`, `ann_dir/SPLIT`, as mmsegmentation's `customize_dataset.md` has them."""
    return _of_folders(root, *(_folder(root / part, split) for part in ("img_dir", "ann_dir")))


def ade(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """`images/SPLIT`, `annotations/SPLIT`, as ADE20K's."""
    return _of_folders(root, *(_folder(root / part, split) for part in ("images", "annotations")))


def camvid(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """`SPLIT` and `SPLIT_labels` or `SPLITannot`, as CamVid's on Kaggle and SegNet's."""
    splits = camvid_splits(root)
    if split not in splits:
        problem = "which split?" if split is None else f"no split {split!r};"
        raise InputError(f"{root}: {problem} {_choice(root, list(splits))}")
    return _of_folders(root, root / split, splits[split])


def camvid_splits(root: Path) -> dict[str, Path]:
    """The folder of masks of each split."""
    folders = sorted(x.name for x in root.iterdir() if x.is_dir() and not x.name.startswith("."))
    return {
        name.removesuffix(ending): root / name
        for ending in ("_labels", "annot")
        for name in folders
        if name.endswith(ending) and name.removesuffix(ending) in folders
    }


def roboflow(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """`SPLIT/x.jpg` and `SPLIT/x_mask.png`, with `SPLIT/_classes.csv`, as Roboflow's."""
    folder = root / (split or ".")
    file = find_table(folder) or find_table(root)
    if file is None:
        raise InputError(f"{folder}: no class table; {_TABLES}")
    both = FolderSource(str(folder))
    pairs = pair(both, both, _unmasked, _masked)
    return _with(pairs, file), read_table(file)


def is_roboflow(folder: Path) -> bool:
    """Whether pictures have a mask beside them."""
    names = [name for name in os.listdir(folder) if name.lower().endswith((*EXTENSIONS,))]
    pictures = {_unmasked(name) for name in names} - {None}
    return any(_masked(name) in pictures for name in names)


def _unmasked(name: str) -> str | None:
    return None if stem_of(name).endswith(MASK) else stem_of(name).removesuffix("_sat")


def _masked(name: str) -> str | None:
    return stem_of(name).removesuffix(MASK) if stem_of(name).endswith(MASK) else None


def _of_folders(root: Path, images: Path, mask_folder: Path) -> tuple[Pairs, ClassTable]:
    """Images and masks of two folders; a mask is named as its image, or as it and then always the
    same (`_L` of CamVid, `_labelTrainIds`)."""
    file = find_table(root)
    if file is None:
        raise InputError(f"{root}: no class table; {_TABLES}")
    masks = FolderSource(str(mask_folder))
    refuse_other_formats(masks)
    source = FolderSource(str(images))
    image_end, mask_end = endings(source, masks)
    pairs = pair(source, masks, ends_with(image_end), ends_with(mask_end))
    return _with(pairs, file), read_table(file)


def cityscapes(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`, `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`, or
    where there are none `*_labelTrainIds.png`."""
    images = FolderSource(str(_folder(root / "leftImg8bit", split)))
    masks = FolderSource(str(_folder(root / "gtFine", split)))

    def key(ending: str) -> Callable[[str], str | None]:
        return lambda name: name.removesuffix(ending) if name.endswith(ending) else None

    names = [masks.sample_id(i) for i in range(len(masks))]
    by_id = any(name.endswith("_gtFine_labelIds.png") for name in names)
    ending = "_gtFine_labelIds.png" if by_id else "_gtFine_labelTrainIds.png"
    pairs = pair(images, masks, key("_leftImg8bit.png"), key(ending))
    file = find_table(root)
    table = CITYSCAPES if by_id else CITYSCAPES_TRAIN_IDS
    return _with(pairs, file), read_table(file) if file else table


def voc(root: Path, split: str | None) -> tuple[Pairs, ClassTable]:
    """The images that `ImageSets/Segmentation/SPLIT.txt` lists; every one must have a mask."""
    lists = root / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if split is None or not path.is_file():
        splits = sorted(x.stem for x in lists.glob("*.txt"))
        choice = _choice(root, splits) if splits else f"there is no list in {lists}"
        problem = "which split" if split is None else f"no split {split!r}"
        raise InputError(f"{root}: {problem}? {choice}")
    stems = _listed(path)
    images = FolderSource(str(root / "JPEGImages"))
    masks = FolderSource(str(root / "SegmentationClass"))
    image_of, mask_of = numbers_of(images, stem_of), numbers_of(masks, stem_of)
    for line, stem in stems.items():
        for known, folder in ((image_of, images.path), (mask_of, masks.path)):
            if stem not in known:
                raise InputError(f"{path}: line {line}: {stem!r} is not in {folder}; add it there")
    rows = [image_of[stem] for stem in stems.values()]
    names = [masks.sample_id(mask_of[stem]) for stem in stems.values()]
    file = find_table(root)
    table = read_table(file) if file else VOC
    return _with(Pairs(images, rows, names, masks.path, files=[str(path)]), file), table


def _listed(path: Path) -> dict[int, str]:
    """Stems by line number, from 1."""
    lines = enumerate(read_text(path).splitlines(), 1)
    stems = {line: text.split()[0] for line, text in lines if text.strip()}
    seen: dict[str, int] = {}
    for line, stem in stems.items():
        if seen.setdefault(stem, line) != line:
            raise InputError(
                f"{path}: line {line}: {stem!r} is on line {seen[stem]}, too; keep one"
            )
    if not stems:
        raise InputError(f"{path}: the list is empty; write a file name without ending on a line")
    return stems


def _folder(folder: Path, split: str | None) -> Path:
    """The folder of a split, which may be left out where there are none."""
    splits = sorted(x.name for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))
    if split is not None:
        if not (folder / split).is_dir():
            raise InputError(f"{folder}: no split {split!r}; {_choice(folder.parent, splits)}")
        return folder / split
    images = (x.suffix.lower() in EXTENSIONS for x in folder.iterdir())
    if splits and not any(images):
        raise InputError(f"{folder}: which split? {_choice(folder.parent, splits)}")
    return folder


def _choice(root: Path, splits: list[str]) -> str:
    return f"give {' or '.join(f'{root}::{split}' for split in splits[:5])}"


def generated(root: Path) -> tuple[Pairs, ClassTable]:
    """Of `ssld pseudo-label`: `images.parquet`, whose column `mask` names a file below `masks`.

    Raises:
        InputError: a file of the set is missing or damaged, or it is of a detector.
    """
    _, images = open_generated(root, "segmentation")
    masks = _mask_names(root / IMAGES)
    file = find_table(root)
    if file is None:
        raise InputError(f"{root}: no class table; {AGAIN}")
    pairs = Pairs(images, list(range(len(images))), masks, str(root / "masks"))
    return _with(pairs, file), read_table(file)


def _mask_names(file: Path) -> list[str]:
    """
    Raises:
        InputError: a row names no file below masks/.
    """
    if "mask" not in pq.read_schema(file).names:
        raise InputError(f"{file}: has no column mask; {AGAIN}")
    names = pq.read_table(file, columns=["mask"])["mask"].to_pylist()
    for row, name in enumerate(names):
        if not isinstance(name, str) or not writable(name) or not _is_below(name):
            raise InputError(
                f"{file}: row {row}: mask {shown(name)} is no file below masks/; {AGAIN}"
            )
    return names


def _is_below(name: str) -> bool:
    return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts


def _with(pairs: Pairs, file: Path | None) -> Pairs:
    """The same pairs, whose files are also `file`."""
    return pairs if file is None else replace(pairs, files=[*pairs.files, str(file)])
