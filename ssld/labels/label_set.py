"""A finished label set, and whether it is of this run: the same views of the same images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from ssld.common.errors import InputError
from ssld.common.packages import versions
from ssld.common.settings import flat
from ssld.data.config import AugmentConfig
from ssld.data.decode import Unreadable
from ssld.data.labels import ClassTable
from ssld.data.loading import View
from ssld.data.source import Source
from ssld.data.transforms import EvalView, TrainView, eval_view
from ssld.engine.processes import on_main, raise_on_all
from ssld.labels.batches import Labels
from ssld.labels.format import (
    INDEX,
    KINDS,
    MANIFEST,
    UNREADABLE,
    digest_of,
    problems,
    read_index,
    read_manifest,
)
from ssld.labels.samples import changes, digest, listed, read_samples

CHECKED_VIEWS = 512
"""Views that are made again before the first step, of each kind; all that the index knows where a
library that makes views has another version."""
DECIDING = ("torch", "torchvision", "numpy", "simplejpeg", "pillow")
"""Libraries that make views."""


@dataclasses.dataclass
class Seen:
    """What a network says of its preprocessing; see `ssld.data.transforms.Seen`."""

    input_size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]


class LabelSet:
    """What `ssld labels build` left in a folder.

    Raises:
        InputError: it is no label set, damaged, or not finished.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.index = read_index(self.folder)

    @functools.cached_property
    def sha256(self) -> str:
        """Of manifest and index, which name every shard by its own."""
        files = [self.folder / name for name in (MANIFEST, INDEX)]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    @property
    def table(self) -> ClassTable:
        """The teacher's classes."""
        return ClassTable("the teacher", self.manifest["classes"], self.manifest["label_names"])

    def labels(self, kind: str) -> Labels:
        """Those of `train` or `val`."""
        return Labels(self.folder, self.index[kind], self.manifest["classes"])

    def view(self, augment: AugmentConfig) -> TrainView:
        """Makes the student's views by their stored numbers.

        Args:
            augment: the run's, for which `require_settings` holds.
        """
        return TrainView(augment, self.manifest["size"], self.manifest["seed"])

    @property
    def eval_view(self) -> EvalView:
        """Makes the held-out images as the teacher saw them."""
        return eval_view(Seen(**self.manifest["eval_view"]))

    def require_settings(self, augment: AugmentConfig, **given: Any) -> None:
        """
        Args:
            augment: the run's, resolved.
            given: what else of the manifest the run says.

        Raises:
            InputError: they make other views or other labels.
        """
        wanted = {"augment": as_plain(augment), **given}
        made = {key: self.manifest[key] for key in wanted}
        made["augment"] = as_plain(AugmentConfig()) | made["augment"]  # of newer settings none
        now, before = flat(wanted), flat(made)
        for key in sorted(now.keys() | before.keys()):
            if now.get(key) != before.get(key):
                raise InputError(
                    f"labels {self.folder}: they were made with {key} {before.get(key)!r}, and "
                    f"this run has {now.get(key)!r}: set it back, or build labels of these settings"
                )

    def require_one_set(self) -> None:
        """
        Raises:
            InputError: on all processes, machines have different sets in this folder.
        """
        found = sorted(set(gather_object([self.sha256])))
        if found[1:]:
            raise InputError(
                f"labels {self.folder}: the machines of this run have different label sets there "
                f"(sha256 {', '.join(x[:12] for x in found)}): give all of them the same one"
            )

    def require_files(self, accelerator: Accelerator) -> None:
        """Compare every shard with its sha256 on each machine, which may have a copy of its own;
        its processes share the work.

        Raises:
            InputError: on all processes, one of them is missing or damaged.
        """
        count = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # where nobody says, each takes all
        shards = [shard for kind in KINDS for shard in self.index[kind]]
        share = shards[accelerator.local_process_index % count :: count]
        raise_on_all(accelerator, next(problems(self.folder, share), None))

    def require_samples(
        self, accelerator: Accelerator, sources: Mapping[str, Sequence[Source]]
    ) -> None:
        """
        Args:
            sources: of `train` and of `val`.

        Raises:
            InputError: on all processes, the images are not those that were labeled.
        """
        for kind, group in sources.items():
            on_main(accelerator, self._compare, kind, group)  # it alone asks for sizes of files

    def _compare(self, kind: str, sources: Sequence[Source]) -> None:
        known = self.manifest["samples"][kind]
        if digest(sources) == known:
            return
        stored = read_samples(self.folder, kind, known["sha256"])
        change = changes(stored, list(listed(sources)))
        what = {"train": "images", "val": "held-out images"}[kind]
        if change:
            raise InputError(
                f"labels {self.folder}: the {what} are not those that were labeled, {change}; "
                "give those, or build labels of these"
            )

    def require_views(
        self,
        accelerator: Accelerator,
        sources: Mapping[str, Sequence[Source]],
        augment: AugmentConfig,
    ) -> None:
        """Make a few views of each shard again, and compare their digests; each process takes its
        share.

        Raises:
            InputError: on all processes, one of them differs.
        """
        problem = None
        for kind, view in (("train", self.view(augment)), ("val", self.eval_view)):
            marks = self._marks(kind)[accelerator.process_index :: accelerator.num_processes]
            problem = problem or self._differing(sources[kind], view, marks)
        raise_on_all(accelerator, problem)

    def _marks(self, kind: str) -> list[list[Any]]:
        """Fingerprints of a kind, at most `CHECKED_VIEWS` of them, evenly over the shards."""
        marks = [mark for shard in self.index[kind] for mark in shard.fingerprints]
        if self._other_versions() or len(marks) <= CHECKED_VIEWS:
            return marks
        return [marks[i * len(marks) // CHECKED_VIEWS] for i in range(CHECKED_VIEWS)]

    def _differing(
        self, sources: Sequence[Source], view: View, marks: Sequence[Sequence[Any]]
    ) -> str | None:
        wrong = []
        for sample, number, expected in marks:
            source, row = place_of(sources, sample)
            if self._digest(source, row, view, number) != expected:
                wrong.append(source.location(row))
        if not wrong:
            return None
        others = self._other_versions()
        why = f"{others}: install those versions" if others else "these images have changed: give"
        why += ", or build the labels anew" if others else " those, or build the labels anew"
        return (
            f"labels {self.folder}: {len(wrong)} of {len(marks)} views that were made again are "
            f"not those that were labeled ({', '.join(wrong[:3])}); {why}"
        )

    def _digest(self, source: Source, row: int, view: View, number: int) -> str:
        number = as_seen(number, self.manifest["teacher_view"])
        try:
            return digest_of(view(source.read(row), source.sample_id(row), number).numpy())
        except (OSError, Unreadable):
            return UNREADABLE

    def _other_versions(self) -> str:
        """Libraries that make views and are others than then, as words."""
        before, now = self.manifest["versions"], versions()
        changed = [name for name in DECIDING if before.get(name) != now.get(name)]
        return ", ".join(f"{x} was {before.get(x)} and is {now.get(x)}" for x in changed)

    def noted_versions(self) -> str:
        """What is to be said of libraries, where the views that were made again are the same."""
        others = self._other_versions()
        return f"labels: {others}; the views that were made again are the same" if others else ""


def as_seen(view: int, teacher_view: str) -> int:
    """The number of the view that the teacher sees where the student sees `view`."""
    return -1 - view if teacher_view == "other" else view


def as_plain(augment: AugmentConfig) -> dict[str, Any]:
    """As JSON has it, without what the student's size decides."""
    settings = dataclasses.asdict(augment)
    settings.pop("size")
    return {key: list(x) if isinstance(x, tuple) else x for key, x in settings.items()}


def place_of(sources: Sequence[Source], sample: int) -> tuple[Source, int]:
    """The source of a sample, and its number there."""
    ends = np.cumsum([len(source) for source in sources])
    number = int(np.searchsorted(ends, sample, side="right"))
    return sources[number], int(sample - (ends[number] - len(sources[number])))
