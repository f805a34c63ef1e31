"""Which label file belongs to which image in YOLO's layouts: folders of images and of labels,
labels beside the images, lists of images (`train.txt`), and a `data.yaml` that names any of them.
Classes are named in `data.yaml` (`data_yaml.py`), `classes.txt` (labelImg, Label Studio),
`obj.names` (darknet, CVAT) or `_darknet.labels` (Roboflow)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from downstream.dense.pictures import posix, shortened
from downstream.dense.texts import name_lines, read_text, require_unique, shown, writable
from downstream.detection.data.data_yaml import (
    SPLITS,
    names_of,
    read_pose,
    read_yaml,
    split_places,
    splits_of,
)
from downstream.detection.data.keypoints import Keypoints
from ssld.common.errors import InputError
from ssld.data.folder import EXTENSIONS, FolderSource

YAML = (".yaml", ".yml")
MAX_DEPTH = 30
"""Folders in folders that nobody has but who links one to itself."""
TABLE = "data.yaml"
LABELS = "labels"
LISTS = ("classes.txt", "obj.names", "_darknet.labels")
NO_LABELS = ("classes", *SPLITS, "README.roboflow", "README.dataset", "notes")
"""Text files that tools write beside the label files."""


@dataclass
class Layout:
    """Images of a split, their labels and the classes."""

    images: list[str] = field(default_factory=list)
    """Paths, sorted within each folder and in the order of each list."""
    labels: list[str | None] = field(default_factory=list)
    """Path of each one's label file, None where there is none."""
    files: list[str] = field(default_factory=list)
    """With the names and the lists, for their hash."""
    class_names: list[str] = field(default_factory=list)
    keypoints: Keypoints | None = None
    """Of a pose set."""
    dimensions: int = 0
    """Numbers of each keypoint behind a box: x, y and, if 3, visibility."""
    remarks: list[str] = field(default_factory=list)
    """What the report should say of the reading."""

    def add(self, other: Layout) -> None:
        """Images, labels and files of another one."""
        self.remarks += other.remarks
        self.images += other.images
        self.labels += other.labels
        self.files += other.files


def is_yolo(root: Path, split: str | None) -> bool:
    """Whether a folder or a file is of this layout."""
    if root.is_file():
        return root.suffix.lower() in YAML
    named = [LABELS, f"{split}.txt", f"{split or '.'}/{LABELS}"]
    named += [f"{name}.txt" for name in SPLITS] if split is None else []
    return any((root / name).exists() for name in named) or has_labels(root, split)


def has_labels(root: Path, split: str | None) -> bool:
    """Whether a folder has label files, or a `data.yaml` that says where they are: lists of images
    alone (`train.txt`) may be those of another layout."""
    if _table(root) is not None:
        return True
    folders = [root / (split or "."), *(root / name for name in SPLITS if split is None)]
    places = [root / LABELS, *(folder / LABELS for folder in folders)]
    return any(next(_text_files(place), None) for place in places) or any(map(_is_flat, folders))


def _table(root: Path) -> Path | None:
    """`data.yaml`, or the one YAML of a folder, as ultralytics' `find_dataset_yaml` has it."""
    if (root / TABLE).is_file():
        return root / TABLE
    tables = [file for ending in YAML for file in root.glob(f"*{ending}")]
    if len(tables) != 1 or not any(line.startswith(("names:", "nc:")) for line in
                                   read_text(tables[0]).splitlines()):  # fmt: skip
        return None
    return tables[0]


def _is_flat(folder: Path) -> bool:
    """Whether a folder has a picture and its label file beside each other."""
    try:
        names = [os.path.splitext(name) for name in os.listdir(folder)]
    except OSError:
        return False
    texts = {stem for stem, ending in names if ending == ".txt" and stem not in NO_LABELS}
    return any(stem in texts and ending.lower() in EXTENSIONS for stem, ending in names)


def find_layout(path: str, root: Path, split: str | None) -> Layout:
    """
    Args:
        path: what the user gave, for messages.

    Raises:
        InputError: there is no such split, or several and none was asked for; an image or a label
            is missing, or two images have one label file.
    """
    table = root if root.is_file() else _table(root)
    content = read_yaml(table) if table else {}
    if root.is_file():
        layout, folder = _of_table(root, content, split), root.parent
    else:
        layout, folder = _of_folder(path, root, split, table, content)
    layout.class_names, source = (
        (names_of(table, content), table) if table else class_names(root, folder)
    )
    if not layout.images:
        raise InputError(f"{path}: no image in {folder}")
    layout.files.insert(0, str(source))
    pose = read_pose(table, content) if table else None
    if pose:
        layout.keypoints, layout.dimensions, remarks = pose
        layout.remarks += remarks
    return layout


def _of_table(table: Path, content: dict, split: str | None) -> Layout:
    known = splits_of(content)
    if split is None and len(known) != 1:
        raise InputError(f"{table}: which split? {_choice(str(table), known)}")
    layout = Layout()
    for place in split_places(table, content, split or known[0]):
        layout.add(_of_list(place) if place.is_file() else _of_images(*_pair_of(place)))
    require_unique(layout.images, lambda i: f"{table}: image {i + 1} of {split}")
    _refuse_shared(layout)
    return layout


def _of_folder(
    path: str, root: Path, split: str | None, table: Path | None, content: dict
) -> tuple[Layout, Path]:
    """Pairs, and the folder of labels."""
    splits = _splits(root, content)
    if split is None:
        if splits:  # train and val are never read together
            raise InputError(f"{root}: which split? {_choice(str(root), splits)}")
        flat = _is_flat(root) and not (root / "images").is_dir()
        pair = (root, root) if flat else (root / "images", root / LABELS)
        return _of_pair(path, *pair), pair[1]
    pairs = [
        (root / "images" / split, root / LABELS / split),
        (root / split / "images", root / split / LABELS),
    ]
    for images, labels in pairs:
        if images.is_dir() and labels.is_dir():
            return _of_pair(path, images, labels), labels
    if (root / f"{split}.txt").is_file():
        layout = _of_list(root / f"{split}.txt")
        _refuse_shared(layout)
        return layout, root / LABELS
    if table and content.get(split):
        return _of_table(table, content, split), root / LABELS
    if _is_flat(root / split):
        return _of_pair(path, root / split, root / split), root / split
    if splits and split not in splits:
        raise InputError(f"{root}: has no split {split!r}; {_choice(str(root), splits)}")
    return _of_pair(path, *pairs[0]), pairs[0][1]


def _splits(root: Path, content: dict) -> list[str]:
    """Of a folder."""
    return [
        name
        for name in SPLITS
        if (root / f"{name}.txt").is_file()
        or (root / "images" / name).is_dir()
        or (root / name / "images").is_dir()
        or (not (root / "images").is_dir() and (content.get(name) or _is_flat(root / name)))
    ]


def _choice(root: str, splits: Sequence[str]) -> str:
    if not splits:
        return "it names none; write train and val into it"
    return f"give {' or '.join(f'{root}::{split}' for split in splits)}"


def _of_pair(path: str, images: Path, labels: Path) -> Layout:
    for folder in (images, labels):
        if not folder.is_dir():
            raise InputError(
                f"{path}: there is no folder {folder}; a split is given as FOLDER::SPLIT"
            )
    layout = _of_images(images, labels)
    _refuse_shared(layout)
    return layout


def _of_images(images: Path, labels: Path) -> Layout:
    """All images below a folder, and label files in the same places below another.

    Raises:
        InputError: a label file has no image.
    """
    source = FolderSource(str(images))
    names = [source.sample_id(i) for i in range(len(source))]
    texts = dict(sorted(_text_files(labels)))
    stems = {os.path.splitext(name)[0] for name in names}
    lost = [file for stem, file in texts.items() if stem not in stems]
    if lost and labels != images:
        raise InputError(
            f"{lost[0]}: its image {Path(lost[0]).stem!r} (with any extension) is not in {images}; "
            "complete the images"
        )
    layout = Layout(
        [os.path.join(images, name) for name in names],
        [texts.get(os.path.splitext(name)[0]) for name in names],
    )
    if lost:  # beside pictures other texts lie, too
        examples = ", ".join(map(os.path.basename, lost[:3]))
        layout.remarks.append(f"txt files without a picture, left out: {len(lost)} ({examples})")
    return layout


def _text_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Path without extension and place of the label files below a folder; hidden ones are none."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        if len(Path(inside).parts) > MAX_DEPTH:
            raise InputError(
                f"{place}: is nested deeper than {MAX_DEPTH} folders: a link to itself?"
            )
        for name in files:
            stem, ending = os.path.splitext(name)
            if ending == ".txt" and not name.startswith("."):
                if inside == "." and stem in NO_LABELS:
                    continue
                yield os.path.normpath(os.path.join(inside, stem)), os.path.join(place, name)


def _pair_of(place: Path) -> tuple[Path, Path]:
    """Images and labels of a folder: those for the last `images` of its path (ultralytics'
    `img2label_paths`), or `images/` and `labels/` in it, else beside the images."""
    parts = list(place.parts)
    for i in reversed(range(len(parts))):
        if parts[i] == "images" and (moved := Path(*parts[:i], LABELS, *parts[i + 1 :])).is_dir():
            return place, moved
    inner = place / LABELS
    if (place / "images").is_dir() and inner.is_dir():
        return place / "images", inner
    return place, inner if inner.is_dir() else place


def _of_list(file: Path) -> Layout:
    """The images that a list names, a path on a line, relative to the list's folder.

    Raises:
        InputError: one of them is missing, or is named twice.
    """
    layout = Layout(files=[str(file)])
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        image = _listed(file, number, name)
        if seen.setdefault(image, number) != number:
            raise InputError(f"{file}: line {number}: {name!r} is on line {seen[image]}, too")
        layout.images.append(image)
        label = _label_of(image)
        layout.labels.append(label if os.path.isfile(label) else None)
    return layout


def _listed(file: Path, number: int, name: str) -> str:
    """The image that a line names; CVAT and darknet write `data/` before what lies here, others the
    folders of the machine on which the list was made."""
    if not writable(name):
        raise InputError(f"{file}: line {number} is {shown(name)}, which no file has")
    for place in shortened(posix(name)):
        if os.path.isfile(file.parent / place):
            return os.path.normpath(file.parent / place)
    raise InputError(
        f"{file}: line {number}: {shown(name)} is no file in {file.parent}; complete the images"
    )


def _label_of(image: str) -> str:
    stem = os.path.splitext(image)[0]
    # A relative path may begin with `images`.
    head, mark, tail = os.path.join(".", stem).rpartition(f"{os.sep}images{os.sep}")
    moved = os.path.normpath(f"{head}{os.sep}{LABELS}{os.sep}{tail}.txt")
    return moved if mark and os.path.isfile(moved) else f"{stem}.txt"


def _refuse_shared(layout: Layout) -> None:
    """Two images of one name and two endings have one label file: whose boxes are they?"""
    owner: dict[str, str] = {}
    for image, label in zip(layout.images, layout.labels, strict=True):
        if label is not None and owner.setdefault(label, image) != image:
            raise InputError(
                f"{label}: is the label file of {owner[label]} and of {image}; rename or remove one"
            )


def class_names(root: Path, labels: Path) -> tuple[list[str], Path]:
    """Names by class number, and the file that has them.

    Raises:
        InputError: there is none, or two of them differ.
    """
    places = dict.fromkeys(folder / name for folder in (root, labels) for name in LISTS)
    found = [(name_lines(file), file) for file in places if file.is_file()]
    for names, file in found[1:]:
        if names != found[0][0]:
            raise InputError(
                f"{file}: has other names than {found[0][1]}, so that nobody knows what class 0 "
                "is; keep the one by which the boxes were numbered"
            )
    if found:
        return found[0]
    raise InputError(
        f"{root / TABLE}: no such file, and no classes.txt; give the names of the classes in one "
        "of them, in the order of their numbers"
    )
