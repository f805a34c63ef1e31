"""Which label file belongs to which image in YOLO's layouts: folders of images and of labels,
lists of images (`train.txt`), and a `data.yaml` that names either. And what the classes are called:
`data.yaml` as ultralytics has it, `classes.txt`, `obj.names` as darknet and CVAT have it.

All scalars of the YAML are text: `names: [yes, no, 1.0, null]` are four names, not True, False, a
number and nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from downstream.dense.texts import (
    name_lines,
    read_text,
    require_name,
    require_unique,
    short_line,
    shown,
    writable,
)
from downstream.detection.data.keypoints import Keypoints, find_pairs
from ssld.common.errors import InputError
from ssld.data.folder import FolderSource

YAML = (".yaml", ".yml")
MAX_DEPTH = 30
"""Folders in folders that nobody has but who links one to itself."""
TABLE = "data.yaml"
LISTS = ("classes.txt", "obj.names")
SPLITS = ("train", "val", "valid", "test")


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
    """What the report should say of the keypoints."""

    def add(self, other: Layout) -> None:
        """Images, labels and files of another one."""
        self.images += other.images
        self.labels += other.labels
        self.files += other.files


def is_yolo(root: Path, split: str | None) -> bool:
    """Whether a folder or a file is of this layout."""
    if root.is_file():
        return root.suffix.lower() in YAML
    named = ["labels", TABLE, f"{split}.txt", f"{split or '.'}/labels"]
    named += [f"{name}.txt" for name in SPLITS] if split is None else []
    return any((root / name).exists() for name in named)


def find_layout(path: str, root: Path, split: str | None) -> Layout:
    """
    Args:
        path: what the user gave, for messages.

    Raises:
        InputError: there is no such split, or several and none was asked for; an image or a label
            is missing, or two images have one label file.
    """
    table = root if root.is_file() else root / TABLE
    content = read_yaml(table) if table.is_file() else {}
    if root.is_file():
        layout, folder = _of_table(table, content, split), root.parent
        layout.class_names, source = names_of(table, content), table
    else:
        layout, folder = _of_folder(path, root, split, table, content)
        layout.class_names, source = class_names(root, folder)
    if not layout.images:
        raise InputError(f"{path}: no image in {folder}")
    layout.files.insert(0, str(source))
    _read_pose(layout, table, content)
    return layout


def _read_pose(layout: Layout, table: Path, content: dict) -> None:
    """`kpt_shape: [17, 3]`, `flip_idx` and `kpt_names` of ultralytics' pose sets; without names
    keypoints are called 1, 2, 3, ..."""
    shape = content.get("kpt_shape")
    if shape is None:
        return
    known = isinstance(shape, list) and len(shape) == 2 and shape[1] in ("2", "3")
    if not known or not isinstance(shape[0], str) or not re.fullmatch("[1-9][0-9]{0,3}", shape[0]):
        raise InputError(f"{table}: kpt_shape is {shown(shape)}; give [keypoints, 2 or 3]")
    count = int(shape[0])
    names = content.get("kpt_names")
    if isinstance(names, dict):  # by class
        names = next(iter(names.values()), None)
    if names is None:
        names = [str(i + 1) for i in range(count)]
    if not isinstance(names, list) or len(names) != count:
        raise InputError(f"{table}: kpt_names is {shown(names)}; give {count} names")
    names = [require_name(name, f"{table}: kpt_names[{i}]") for i, name in enumerate(names)]
    require_unique(names, lambda i: f"{table}: kpt_names[{i}]")
    partners = content.get("flip_idx")
    if isinstance(partners, list):
        partners = [int(x) if isinstance(x, str) and x.isdecimal() else x for x in partners]
    pairs, layout.remarks = find_pairs(names, [(f"{table}", {"flip_idx": partners})])
    layout.keypoints, layout.dimensions = Keypoints(tuple(names), pairs), int(shape[1])


def _of_table(table: Path, content: dict, split: str | None) -> Layout:
    known = [name for name in SPLITS if content.get(name)]
    if split is None and len(known) != 1:
        raise InputError(f"{table}: which split? {_choice(str(table), known)}")
    layout = Layout()
    for place in split_places(table, content, split or known[0]):
        layout.add(_of_list(place) if place.is_file() else _of_images(place, _labels_of(place)))
    require_unique(layout.images, lambda i: f"{table}: image {i + 1} of {split}")
    _refuse_shared(layout)
    return layout


def _of_folder(
    path: str, root: Path, split: str | None, table: Path, content: dict
) -> tuple[Layout, Path]:
    """Pairs, and the folder of labels."""
    if split is None:
        _require_one_split(root, content)
        return _of_pair(path, root / "images", root / "labels"), root / "labels"
    pairs = [
        (root / "images" / split, root / "labels" / split),
        (root / split / "images", root / split / "labels"),
    ]
    for images, labels in pairs:
        if images.is_dir() and labels.is_dir():
            return _of_pair(path, images, labels), labels
    if (root / f"{split}.txt").is_file():
        layout = _of_list(root / f"{split}.txt")
        _refuse_shared(layout)
        return layout, root / "labels"
    if content.get(split):
        return _of_table(table, content, split), root / "labels"
    return _of_pair(path, *pairs[0]), pairs[0][1]


def _require_one_split(root: Path, content: dict) -> None:
    """Refuse to read train and val together."""
    splits = [
        name
        for name in SPLITS
        if (root / f"{name}.txt").is_file()
        or (root / "images" / name).is_dir()
        or (root / name / "images").is_dir()
        or (not (root / "images").is_dir() and content.get(name))
    ]
    if splits:
        raise InputError(f"{root}: which split? {_choice(str(root), splits)}")


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
    texts = _texts(labels)
    stems = {os.path.splitext(name)[0] for name in names}
    for stem, file in texts.items():
        if stem not in stems and labels != images:
            raise InputError(
                f"{file}: its image {stem!r} (with any extension) is not in {images}; "
                "complete the images"
            )
    return Layout(
        [os.path.join(images, name) for name in names],
        [texts.get(os.path.splitext(name)[0]) for name in names],
    )


def _texts(folder: Path) -> dict[str, str]:
    """Label files below a folder by path without extension, sorted; hidden ones are none."""
    texts = {}
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
                if inside == "." and stem in ("classes", "train", "val", "test"):
                    continue
                texts[os.path.normpath(os.path.join(inside, stem))] = os.path.join(place, name)
    return dict(sorted(texts.items()))


def _labels_of(images: Path) -> Path:
    """The folder beside the last `images` of a path that is called `labels`; else the same one
    (ultralytics' `img2label_paths`)."""
    parts = list(images.parts)
    for i in reversed(range(len(parts))):
        if parts[i] == "images":
            parts[i] = "labels"
            return Path(*parts)
    inner = images / "labels"
    return inner if inner.is_dir() else images


def _of_list(file: Path) -> Layout:
    """The images that a list names, a path on a line, relative to the list's folder.

    Raises:
        InputError: one of them is missing, or is named twice.
    """
    layout = Layout(files=[str(file)])
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        name = line.strip().replace("\\", "/")
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
    """The image that a line names; CVAT and darknet write `data/` before what lies here."""
    if not writable(name):
        raise InputError(f"{file}: line {number} is {shown(name)}, which no file has")
    here = file.parent
    places = [here / name, here / name.removeprefix("data/"), here / name.partition("/")[2]]
    for place in places:
        if os.path.isfile(place):
            return os.path.normpath(place)
    raise InputError(
        f"{file}: line {number}: {shown(name)} is no file in {here}; complete the images"
    )


def _label_of(image: str) -> str:
    stem = os.path.splitext(image)[0]
    head, mark, tail = stem.rpartition(f"{os.sep}images{os.sep}")
    moved = f"{head}{os.sep}labels{os.sep}{tail}.txt"
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
    """Names by class number, and the file that has them."""
    table = root / TABLE
    if table.is_file():
        return names_of(table, read_yaml(table)), table
    for file in (*(root / name for name in LISTS), labels / LISTS[0]):
        if file.is_file():
            return name_lines(file), file
    raise InputError(
        f"{table}: no such file, and no classes.txt; give the names of the classes in one of "
        "them, in the order of their numbers"
    )


def read_yaml(file: Path) -> dict[str, Any]:
    """A mapping whose scalars are text.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        content = yaml.load(read_text(file), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = short_line(str(error))
        raise InputError(f"{file}: cannot be read as YAML ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: is no mapping; give names, and train and val")
    return content


def names_of(file: Path, content: dict[str, Any]) -> list[str]:
    """The names by class number, distinct.

    Raises:
        InputError: there are none, or not one for each number.
    """
    names = content.get("names")
    if isinstance(names, dict):
        names = _in_order(file, names)
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: has no 'names'; give the classes in the order of their numbers")
    names = [require_name(name, f"{file}: names[{i}]").strip() for i, name in enumerate(names)]
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        shown_count = count[:40] if isinstance(count, str) else shown(count)
        raise InputError(f"{file}: nc is {shown_count}, but names has {len(names)}; mend one")
    require_unique(names, lambda i: f"{file}: names[{i}]")
    return names


def _in_order(file: Path, names: dict[Any, Any]) -> list[Any]:
    numbers = {key: int(key) for key in names if isinstance(key, str) and key.isdecimal()}
    if len(numbers) < len(names) or sorted(numbers.values()) != list(range(len(names))):
        keys = sorted(numbers.values()) if len(numbers) == len(names) else list(names)
        raise InputError(f"{file}: names has the keys {shown(keys)}; number them from 0 on")
    return [names[key] for key in sorted(names, key=numbers.__getitem__)]


def split_places(file: Path, content: dict[str, Any], split: str) -> list[Path]:
    """Folders and lists that a split of a `data.yaml` names.

    `path` is the folder to which they are relative, itself relative to the file's; where it is not
    there (it often is a folder on the author's disk), they are relative to the file's own folder.

    Raises:
        InputError: no such split, or nothing is where it says.
    """
    value = content.get(split)
    if not value:
        known = [name for name in content if name in SPLITS and content[name]]
        choice = " or ".join(f"{file}::{name}" for name in known) or "a file that has train and val"
        raise InputError(f"{file}: has no split {split!r}; give {choice}")
    values = value if isinstance(value, list) else [value]
    base = content.get("path") or "."
    for i, text in enumerate([base, *values]):
        if not isinstance(text, str) or "\0" in text:
            where = "path" if i == 0 else f"{split}[{i - 1}]"
            raise InputError(f"{file}: {where} is {shown(text)}; give a folder or a list of images")
    return [_place(file, base, text, split) for text in values]


def _place(file: Path, base: str, text: str, split: str) -> Path:
    root = file.parent
    places = [root / base / text, root / text]
    if text.startswith("../"):  # as Roboflow writes it, which is meant from a folder further down
        places.append(root / text[3:])
    for place in places:
        if os.path.exists(place):
            return Path(os.path.normpath(place))
    raise InputError(
        f"{file}: {split} is {shown(text)}, and there is no such folder or list in "
        f"{short_line(str(root / base))} or {root}; mend path or {split}"
    )
