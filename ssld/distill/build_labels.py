"""`ssld labels build --config F.yaml --views R --out DIR`: see `ssld/labels/build.py`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from ssld.common.errors import InputError
from ssld.common.files import locked, write_atomically
from ssld.common.packages import versions
from ssld.common.published import without_secrets
from ssld.common.settings import flat
from ssld.data.transforms import TrainView, eval_view
from ssld.distill.config import BuildLabelsConfig
from ssld.distill.distill import open_networks
from ssld.distill.setup import Data, open_data
from ssld.distill.verify_teacher import verify_teacher
from ssld.engine.loop import lost_processes
from ssld.engine.processes import on_main
from ssld.labels.build import Builder, Kind
from ssld.labels.format import (
    FORMAT,
    INDEX,
    MANIFEST,
    VERSION,
    Shard,
    done,
    read_manifest,
    write_index,
)
from ssld.labels.label_set import DECIDING, LabelSet, as_plain
from ssld.labels.samples import digest, write_samples
from ssld.labels.stats import describe, summary
from ssld.models.classifier import Classifier
from ssld.models.teacher import Teacher
from zoo.licences import weights

SEEN = ("crop_pct", "crop_mode", "interpolation", "mean", "input_size")
"""What decides an evaluation view, of a network."""
TEACHER = ("arch", "args", "checkpoint", "input_size", "mean", "std", "dtype", "batch_norm")
"""Settings of a teacher that a manifest has, besides name and licence of its weights."""

WHOLE = {
    "views": "; a shard has all views of its images, so that none are added to it, but a run of "
    "more epochs sees those that there are again"
}
"""Why a set is not gone on with that only lacks something."""


@lost_processes("build")
def build_labels(config: BuildLabelsConfig) -> None:
    """Ask the teacher about every view, and store what it says.

    Raises:
        InputError: bad settings, sources or weights, or labels of others in `out`.
        Interrupted: a signal, or another process is gone; the same command goes on.
    """
    data = open_data(config)
    student, teacher, facts = open_networks(data, config)
    facts |= verify_teacher(data, teacher)
    kinds = [
        Kind(
            "train",
            data.trained,
            TrainView(config.augment, student.input_size, config.seed),
            config.views,
            config.teacher_view,
        ),
        Kind("val", data.val, eval_view(student), 1),
    ]
    folder, accelerator = Path(config.out), data.accelerator
    with contextlib.ExitStack() as held:

        def begin() -> None:
            held.enter_context(locked(folder))
            _begin(folder, kinds, manifest_of(data, config, student, teacher, facts))

        on_main(accelerator, begin)
        if (folder / INDEX).is_file():
            LabelSet(str(folder)).require_files(accelerator)
        else:
            _fill(data, config, teacher, kinds)
        if accelerator.is_main_process:
            print(describe(summary(folder)))


def _fill(data: Data, config: BuildLabelsConfig, teacher: Teacher, kinds: list[Kind]) -> None:
    folder, accelerator = Path(config.out), data.accelerator
    if config.channels_last:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        for network in teacher.networks:
            network.compile()
    builder = Builder(
        folder,
        accelerator,
        teacher,
        top_k=config.top_k,
        temperature=config.loss.temperature,
        workers=config.data.workers,
        limit=config.data.max_unreadable,
    )
    for kind in kinds:
        builder.fill(kind)
    on_main(accelerator, _finish, folder, kinds)


def _finish(folder: Path, kinds: list[Kind]) -> None:
    shards: dict[str, list[Shard]] = {}
    for kind in kinds:
        known = [done(folder, kind.name, i, x) for i, x in enumerate(kind.shards())]
        shards[kind.name] = [shard for shard in known if shard]
        if None in known:
            raise InputError(
                f"out {folder}: not all shards are there that the processes wrote; it must be "
                "one folder that all nodes see: put it on shared storage"
            )
    write_index(folder, shards)


def manifest_of(
    data: Data,
    config: BuildLabelsConfig,
    student: Classifier,
    teacher: Teacher,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """All that decides the labels, and what a run from them says of the teacher.

    Args:
        facts: of `open_networks` and `verify_teacher`.
    """
    resolved = config.resolved_teachers(teacher.networks)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "views": config.views,
        "top_k": min(config.top_k, teacher.num_classes),
        "classes": teacher.num_classes,
        "label_names": teacher.label_names,
        "temperature": config.loss.temperature,
        "seed": config.seed,
        "size": student.input_size,
        "augment": as_plain(config.augment),
        "teacher_view": config.teacher_view,
        "eval_view": {key: getattr(student, key) for key in SEEN},
        "teacher_sha256": facts["teacher_sha256"],
        "teachers": [
            without_secrets(
                {
                    **{key: getattr(one, key) for key in TEACHER},
                    "weights": weights(one.arch, one.checkpoint, facts[name]["architecture"]),
                }
            )
            for name, one in zip(teacher.names, resolved, strict=True)
        ],
        "described": {
            key: x for key, x in facts.items() if key in ("teacher_top1", *teacher.names)
        },
        "samples": {"train": digest(data.trained), "val": digest(data.val)},
        "versions": versions(),
    }
    return json.loads(json.dumps(content))


def _begin(folder: Path, kinds: list[Kind], manifest: dict[str, Any]) -> None:
    """The first thing that is written, the manifest last; or go on where one is.

    Raises:
        InputError: the folder has labels of something else.
    """
    if (folder / MANIFEST).exists():
        before, now = _deciding(read_manifest(folder)), _deciding(manifest)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"out {folder} has labels with {key} {before.get(key)!r}, not "
                    f"{now.get(key)!r}: give another folder, or remove it{WHOLE.get(key, '')}"
                )
        return
    for kind in kinds:
        write_samples(folder, kind.name, kind.sources)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _deciding(manifest: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ where a build goes on."""
    kept = {key: x for key, x in manifest.items() if key != "described"}
    kept["versions"] = {name: manifest["versions"].get(name) for name in DECIDING}
    places = ("arch", "checkpoint", "weights")  # their sha256 decides
    kept["teachers"] = [
        {key: x for key, x in one.items() if key not in places} for one in manifest["teachers"]
    ]
    return flat(kept)
