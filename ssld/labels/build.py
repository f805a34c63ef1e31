"""The teacher runs once over views 0..R-1 of every sample, and what it says is stored.

A shard is a run of samples with all of their views, and its forward passes have images of no other
shard: so its content does not depend on how many processes there are, and one that is written stays
whatever happens later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.files import cannot_write
from ssld.common.streams import bar_output
from ssld.data.loading import Batch, View, ViewBatches
from ssld.data.source import Source
from ssld.data.unreadable import Unreadables
from ssld.data.workers import Rows, load
from ssld.labels.format import (
    UNREADABLE,
    digest_of,
    done,
    in_shards,
    number_type,
    samples_per_shard,
    write_shard,
)
from ssld.labels.label_set import as_seen
from ssld.models.teacher import CURE, Teacher, describe_faults

FINGERPRINTS = 4
"""Views of a shard whose pixels are noted."""
FORWARD_IMAGES = 256
"""Images of a forward pass; `teacher.micro_batch` makes them fewer."""


@dataclass(frozen=True)
class Kind:
    """One kind of samples, and how the teacher sees them."""

    name: str
    sources: Sequence[Source]
    view: View
    views: int
    teacher_view: str = "same"

    def shards(self) -> Sequence[range]:
        """The samples of each shard."""
        return in_shards(sum(map(len, self.sources)), samples_per_shard(self.views))


def top_and_tail(log_probs: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is stored of predictions, before it is rounded.

    Args:
        log_probs: float32 [b, classes].

    Returns:
        classes int64 [b, k], their log-probabilities float32 [b, k], likeliest first, and the log
        of what all others have together, float32 [b]: -inf where there are none.
    """
    values, classes = log_probs.topk(min(top_k, log_probs.shape[-1]))
    tail = log_probs.scatter(-1, classes, -torch.inf).logsumexp(-1)
    return classes, values, tail


class Builder:
    """One process's part of a build.

    Args:
        folder: of the label set.
        limit: largest share of a source's images that may be unreadable.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        teacher: Teacher,
        *,
        top_k: int,
        temperature: float,
        workers: int,
        limit: float,
    ) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.teacher = teacher.to(accelerator.device)
        self.top_k, self.temperature = top_k, temperature
        self.workers, self.limit = workers, limit

    def fill(self, kind: Kind) -> None:
        """Write this process's shards that are not written yet, and wait for the others.

        Raises:
            InputError: too many unreadable images, predictions that are no numbers, a full disk.
        """
        shards = list(enumerate(kind.shards()))
        todo = [x for x in shards if not done(self.folder, kind.name, *x)]
        self.accelerator.wait_for_everyone()  # all have the same list before anything is written
        todo = todo[self.accelerator.process_index :: self.accelerator.num_processes]
        unreadables = Unreadables(kind.sources, self.limit)
        make = _OncePerImage(kind.sources, kind.view)
        passes = [rows_of(kind, samples) for _, samples in todo]

        def rows() -> Iterator[Rows]:
            for of_shard in passes:
                yield from of_shard

        batches = load(make, rows, workers=self.workers, pin=self._on_gpu)
        with _Progress(self, kind, sum(len(x) for _, x in todo) * kind.views) as progress:
            for (number, samples), of_shard in zip(todo, passes, strict=True):
                marks = _marks(len(samples) * kind.views)
                parts = []
                for first in range(0, len(of_shard) * FORWARD_IMAGES, FORWARD_IMAGES):
                    parts.append(self._answered(next(batches), marks - first, unreadables))
                    progress.bar.update(len(parts[-1].ids))
                digests = [digest for part in parts for digest in part.digests]
                write_shard(
                    self.folder,
                    kind.name,
                    number,
                    samples.start,
                    self._tensors(kind, parts),
                    [
                        [samples.start + place // kind.views, place % kind.views, digest]
                        for place, digest in zip(marks.tolist(), digests, strict=True)
                    ],
                )
                progress.wrote(number, len(samples) * kind.views)
        self.accelerator.wait_for_everyone()

    @property
    def _on_gpu(self) -> bool:
        return self.accelerator.device.type == "cuda"

    @torch.inference_mode()
    def _answered(self, batch: Batch, marks: np.ndarray, unreadables: Unreadables) -> _Answers:
        """Of a forward pass, for which nothing here waits on a GPU.

        Args:
            marks: rows whose pixels are noted; those of other passes are outside.
        """
        unreadables.add(batch.unreadable)
        images = batch.images.to(self.accelerator.device, non_blocking=True)
        classes, *numbers = top_and_tail(self.teacher(images, self.temperature), self.top_k)
        stored = classes.int(), *(x.half() for x in numbers)
        rows = [row for row in marks.tolist() if 0 <= row < len(batch.ids)]
        digests = [
            digest_of(batch.images[row].numpy()) if batch.weight[row] > 0 else UNREADABLE
            for row in rows
        ]
        return _Answers(batch.ids, batch.weight, digests, self.teacher.faulty, stored)

    def _tensors(self, kind: Kind, parts: Sequence[_Answers]) -> dict[str, np.ndarray]:
        """Of a shard, as `ssld/labels/format.py` says.

        Raises:
            InputError: some predictions are no numbers.
        """
        for part in parts:
            names, faulty = self.teacher.names, part.faulty.cpu()
            problem = describe_faults(names, faulty, part.weight, part.ids)
            if problem:
                raise InputError(f"{problem}; {CURE}, or look at these images")
        whole = [torch.cat(x).cpu().numpy() for x in zip(*(p.stored for p in parts), strict=True)]
        classes, log_probs, tail = (x.reshape(-1, kind.views, *x.shape[1:]) for x in whole)
        readable = torch.cat([part.weight for part in parts]).numpy() > 0
        readable = readable.reshape(-1, kind.views)
        nothing = np.float16(np.nan)
        return {
            "classes": classes.astype(number_type(self.teacher.num_classes)),
            "log_probs": np.where(readable[..., None], log_probs, nothing),
            "tail": np.where(readable, tail, nothing),
        }


@dataclass(frozen=True)
class _Answers:
    ids: list[str]
    weight: Tensor
    """float32 [b], 0 for an unreadable image; on the CPU."""
    digests: list[str]
    """Of the views whose pixels are noted."""
    faulty: Tensor
    """See `Teacher.faulty`."""
    stored: tuple[Tensor, ...]
    """Of `top_and_tail`, rounded: int32 and float16."""


class _OncePerImage(ViewBatches):
    """Reads the bytes of an image once for all its views, which stand in a row."""

    _last: tuple[tuple[int, int], bytes] | None = None

    def _views(self, number: int, index: int, view: int, *_: int) -> list[Tensor]:
        source = self.sources[number]
        if self._last is None or self._last[0] != (number, index):
            self._last = (number, index), source.read(index)
        return [self.view(self._last[1], source.sample_id(index), view)]


def rows_of(kind: Kind, samples: range) -> list[Rows]:
    """The forward passes of a shard, int64 [b, 4] each: source, index, view, and a 0."""
    sizes = [len(source) for source in kind.sources]
    ends = np.cumsum(sizes)
    chosen = np.repeat(np.arange(samples.start, samples.stop), kind.views)
    source = np.searchsorted(ends, chosen, side="right")
    views = np.tile([as_seen(x, kind.teacher_view) for x in range(kind.views)], len(samples))
    index = chosen - (ends - sizes)[source]
    rows = np.stack([source, index, views, np.zeros_like(views)], axis=1)
    return [rows[i : i + FORWARD_IMAGES] for i in range(0, len(rows), FORWARD_IMAGES)]


def _marks(views: int) -> np.ndarray:
    """Places in a shard of so many views whose pixels are noted, evenly, int64 [n]."""
    count = min(FINGERPRINTS, views)
    return (2 * np.arange(count) + 1) * views // (2 * count)


class _Progress:
    """A bar with rate and time left on a terminal, else a line now and then; log.jsonl always."""

    def __init__(self, builder: Builder, kind: Kind, total: int) -> None:
        self.accelerator, self.kind, self.total = builder.accelerator, kind, total
        self.file = builder.folder / "log.jsonl"
        self.begun, self.views = time.monotonic(), 0
        self.last = self.begun
        output = bar_output(quiet=not self.accelerator.is_main_process, lines=False)
        self.bar = tqdm(total=total, desc=f"labels {kind.name}", unit="view", **output)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def wrote(self, number: int, views: int) -> None:
        """A shard, of so many views."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.views += views
        line = {
            "kind": self.kind.name,
            "shard": number,
            "views": views,
            "seconds": round(seconds, 3),
            "views_per_second": round(views / max(1e-9, seconds), 1),
            "process": self.accelerator.process_index,
            "time": round(time.time(), 3),
        }
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self.file, error) from error
        if self.bar.disable:
            rate = self.views / max(1e-9, now - self.begun)
            left = tqdm.format_interval((self.total - self.views) / rate)
            self.accelerator.print(
                f"labels {self.kind.name}: {self.views:,} of {self.total:,} views, {rate:,.0f} a "
                f"second, {left} left"
            )
