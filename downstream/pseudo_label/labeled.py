"""The labeled set, which says how many instances an image has, and the held-out one: those of the
run, or others that are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from downstream.dense.sources import HELD_OUT, LABELED
from downstream.detection.data.boxes import BoxSource, open_boxes
from downstream.detection.data.keypoints import Keypoints
from downstream.pseudo_label.config import PseudoLabelConfig
from downstream.pseudo_label.teacher import Description
from downstream.segmentation.data.masks import MaskSource, open_masks
from downstream.segmentation.data.preflight import inspect
from ssld.common.errors import InputError
from ssld.common.files import read_object

Opened = TypeVar("Opened", BoxSource, MaskSource)


@dataclass(frozen=True)
class Category:
    """A class as the labeled set's files have it."""

    id: int
    name: str


@dataclass(frozen=True)
class Labeled:
    """What is known of the labeled set."""

    paths: list[str]
    images: int
    counts: list[int]
    """By class: instances that are no crowd, or pixels of a segmenter."""
    keypoints: int = 0
    """Labeled ones of these instances."""
    sources: Sequence[BoxSource | MaskSource] = field(default_factory=list)

    @property
    def facts(self) -> list[Any]:
        """All that a set of pseudo-labels takes from it."""
        ids = [getattr(source, "category_ids", None) for source in self.sources]
        return [self.images, self.counts, self.keypoints, ids]

    @property
    def instances(self) -> int:
        return sum(self.counts)


def paths_of(
    config: PseudoLabelConfig, description: Description
) -> tuple[list[str], list[str], Path | None, Path | None]:
    """Labeled and held-out sets, and for each the file that lists the images of it that count,
    where not all do.

    Raises:
        InputError: the settings of the run are damaged.
    """
    data: dict[str, Any] = {}
    folder = description.run_folder
    if folder is not None and not (config.labeled and config.val):
        found = read_object(folder / "config.yaml", "give --labeled and --val").get("data")
        data = found if isinstance(found, dict) else {}
    labeled, val = (_listed(given or data.get(name)) for given, name in (
        (config.labeled, "train"), (config.val, "val")))  # fmt: skip
    part = _file(folder, LABELED) if not config.labeled else None
    held_out = None
    if not val:  # the run held images out of its training sets
        held_out = _file(folder, HELD_OUT)
        val = _listed(data.get("train")) if held_out else []
    return labeled, val, part, held_out


def _file(folder: Path | None, name: str) -> Path | None:
    return folder / name if folder is not None and (folder / name).is_file() else None


def _listed(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else [str(path) for path in paths or ()]


def open_labeled(
    paths: Sequence[str], part: Path | None, description: Description
) -> Labeled | None:
    """
    Args:
        part: of `paths_of`.

    Returns:
        None where there is no path.

    Raises:
        InputError: a set cannot be opened, or has other classes or keypoints than the network.
    """
    if not paths:
        return None
    if description.task == "segmentation":
        sources = _opened("labeled", paths, part, description.class_names, open_masks)
        reports = [inspect(source) for source in sources]
        for report in reports:
            report.check(reports)
        counts = [sum(x.classes[k].pixels for x in reports)
                  for k in range(len(description.class_names))]  # fmt: skip
        return Labeled(list(paths), sum(map(len, sources)), counts, 0, sources)
    sources = _opened("labeled", paths, part, description.class_names, open_boxes)
    _check_classes(sources, description)
    _check_keypoints(sources, description)
    counts = [sum(x.report.classes[k].boxes for x in sources)
              for k in range(len(description.class_names))]  # fmt: skip
    points = sum(map(_labeled_keypoints, sources))
    return Labeled(list(paths), sum(map(len, sources)), counts, points, sources)


def open_val(
    paths: Sequence[str], part: Path | None, task: str, class_names: list[str] | None
) -> list[BoxSource] | list[MaskSource]:
    """
    Args:
        part: of `paths_of`.
        class_names: the network's, if they are known.

    Raises:
        InputError: a set cannot be opened.
    """
    if task == "segmentation":
        return _opened("val", paths, part, class_names, open_masks)
    return _opened("val", paths, part, class_names, open_boxes)


def _opened(
    setting: str,
    paths: Sequence[str],
    part: Path | None,
    class_names: list[str] | None,
    open_source: Callable[[str, list[str] | None], Opened],
) -> list[Opened]:
    sources = []
    for path in paths:
        try:
            source = open_source(path, class_names)
        except InputError as error:
            raise InputError(
                f"{setting}: {error} (--{setting} names another set than the run's)"
            ) from error
        if part is not None:
            source = _part(setting, source, part, len(paths) > 1)
        sources += [source] if source is not None else []
    return sources


def _part(setting: str, source: Opened, file: Path, several: bool) -> Opened | None:
    """The images of a set that a file lists: an id a line, of several sets `PATH<tab>ID`; None
    where no image of it is held out.

    Raises:
        InputError: it lists none of them, or others.
    """
    lines = file.read_text(encoding="utf-8").split("\n")  # a name may have other line ends
    prefix = f"{source.path}\t" if several else ""
    listed = {line.removeprefix(prefix) for line in lines if line and line.startswith(prefix)}
    if several and not listed and setting == "val":
        return None
    chosen = [i for i in range(len(source)) if source.sample_id(i) in listed]
    if not chosen or len(chosen) != len(listed):
        raise InputError(
            f"{setting}: {file} lists {len(listed)} images of {source.path}, of which that has "
            f"{len(chosen)}; give the set as --{setting}"
        )
    return source.subset(np.array(chosen))


def _check_classes(sources: Sequence[BoxSource], description: Description) -> None:
    """
    Raises:
        InputError: the network has a class that no labeled set has. (A set's class that the network
            has not is refused where the set is opened.)
    """
    known = {x.name for source in sources for x in source.report.classes if x.category_id >= 0}
    missing = [name for name in description.class_names if name not in known]
    if missing:
        others = f" and {len(missing) - 1} more classes" if len(missing) > 1 else ""
        raise InputError(
            f"labeled: {', '.join(source.path for source in sources)} has no class {missing[0]!r}"
            f"{others}, which {description.run} finds: its class table is another one; give the "
            "set that the network was trained on"
        )


def _check_keypoints(sources: Sequence[BoxSource], description: Description) -> None:
    """
    Raises:
        InputError: a set has other keypoints than the network.
    """
    theirs = description.content.get("keypoints")
    if not theirs:
        return
    names = list(theirs["names"])
    for source in sources:
        own = keypoints_of(source)
        if own is None or list(own.names) != names:
            has = ", ".join(own.names) if own else "none"
            raise InputError(
                f"labeled: {source.path} has the keypoints {has}, but {description.run} finds "
                f"{', '.join(names)}; give the set that the network was trained on"
            )


def keypoints_of(source: BoxSource) -> Keypoints | None:
    """What a set's keypoints are."""
    return source.keypoints


def _labeled_keypoints(source: BoxSource) -> int:
    """Of instances that are no crowd."""
    total = 0
    for i in range(len(source)):
        boxes = source.boxes(i)
        if boxes.keypoints is not None:
            total += int((boxes.keypoints[~boxes.crowd, :, 2] > 0).sum())
    return total


def categories(labeled: Labeled | None, names: Sequence[str]) -> list[Category]:
    """Each class with the id that the labeled sets' files give it, the first of them that has the
    class; a free one where none has, or where ids of several sets collide."""
    ids: dict[str, int] = {}
    for source in labeled.sources if labeled else ():
        for name, number in zip(names, getattr(source, "category_ids", ()), strict=False):
            if number >= 0 and name not in ids and number not in ids.values():
                ids[name] = number
    free = 1 + max(ids.values(), default=0)
    for name in names:
        if name not in ids:
            ids[name], free = free, free + 1
    return [Category(ids[name], name) for name in names]
