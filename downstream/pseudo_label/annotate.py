"""Stage `predictions`: what the network finds in each image, before any threshold.

On CPUs each image has one thread, and as many images are under way as there are threads: sums that
several threads share come out otherwise in their last bits, so that one process with two threads
would find other scores than two with one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from downstream.detection.inference import scaled_size
from downstream.pseudo_label.images import Chosen, Index, Reader, decoded
from downstream.pseudo_label.manifest import Made
from downstream.pseudo_label.shards import Shards, Work
from downstream.pseudo_label.teacher import Detector, Found, Segmenter, Teacher
from ssld.common.errors import InputError
from ssld.curate.context import key
from ssld.data.storage import Address

VERSION = 1
"""Of what a prediction says."""
MOST_AT_ONCE = 8
"""Images that are under way on CPUs: each has activations of its own."""


def annotate(
    work: Work, made: Made, teacher: Teacher, images: Index, chosen: Chosen, reader: Reader
) -> Shards:
    """The predictions for all chosen images, those that are not there yet made.

    Raises:
        InputError: an image cannot be read any more; a prediction is not finite.
    """
    _check_sizes(teacher, images, chosen)
    wanted = set(chosen.rows)
    pieces = [[row for row in shard.rows if row in wanted] for shard in images.images.shards]
    least = teacher.least if isinstance(teacher, Segmenter) else None
    base = key(VERSION, made.description.sha256, made.views, str(teacher.schema), least)
    keys = [key(base, *((row, images.file_sum(row)) for row in rows)) for rows in pieces]
    shards = Shards(work.out / "predictions", made.description.task, keys)

    def make(number: int, bar: tqdm) -> pa.Table:
        rows = pieces[number]
        table: dict[str, list[Any]] = {name: [] for name in teacher.schema.names}
        places = [(images.images.address(row), images.file_sum(row)) for row in rows]
        for row, found in zip(rows, _found(teacher, reader, places), strict=True):
            if isinstance(found, InputError):
                raise InputError(f"{images.images.location(row)}: {found}") from found
            if isinstance(found, Exception):
                raise InputError(
                    f"{images.images.location(row)} could be read before, and now cannot "
                    f"({found}): put it back and give the same command, or go on without it by "
                    "--overwrite"
                ) from found
            for entry in found:
                for name, column in table.items():
                    column.append(row if name == "row" else entry[name])
            bar.update()
        return pa.table(table, teacher.schema)

    with _one_thread_an_image(teacher.device) as at_once:
        if at_once:
            reader = Reader(at_once)
        work.fill("annotate", shards, [len(rows) for rows in pieces], make)
    return shards


def _check_sizes(teacher: Teacher, images: Index, chosen: Chosen) -> None:
    """
    Raises:
        InputError: a view of an image would be too large; before any work is done.
    """
    if not isinstance(teacher, Detector):
        return
    for row in chosen.rows:
        try:
            scaled_size(images.size[row], teacher.augment, max(teacher.test.scales))
        except InputError as error:
            raise InputError(f"{images.images.location(row)}: {error}") from error


@contextlib.contextmanager
def _one_thread_an_image(device: torch.device) -> Iterator[int]:
    """How many images there are to be at once in threads of their own; 0 on a GPU, which has one
    after the other."""
    if device.type != "cpu":
        yield 0
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield min(threads, MOST_AT_ONCE)
    finally:
        torch.set_num_threads(threads)


def _found(
    teacher: Teacher, reader: Reader, places: list[tuple[Address, bytes | None]]
) -> Iterator[list[Found] | Exception]:
    """In order: what is found in each image, or why it cannot be read or seen."""

    def find(pixels: Any) -> list[Found] | Exception:
        try:
            return pixels if isinstance(pixels, Exception) else list(teacher.find(pixels))
        except InputError as error:
            return error

    if teacher.device.type == "cpu":
        for _, found in reader.map(lambda x: find(decoded(*x)), places):
            yield found
    else:
        for _, pixels in reader.map(lambda x: decoded(*x), places):
            yield find(pixels)
