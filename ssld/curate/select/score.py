"""Stage `score`: what the teacher says about every image of the pool, one forward pass each.

The whole frame is squashed into the teacher's square: its penultimate features then find copies
that a centre crop would have cut away, and the same pass gives the score (SSLD section 3.3.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.curate import tables
from ssld.curate.context import Part, Work, batches, key
from ssld.curate.near_duplicates.shortlist import VIEWS, views
from ssld.curate.sets.images import ImageSet
from ssld.curate.sets.index import Index, TeacherScores
from ssld.data.decode import decode
from ssld.data.labels import known_index, misfit, table_of, unknown_labels
from ssld.data.loading import Batch, View, ViewBatches, eval_batches
from ssld.data.transforms import SquashView, eval_view
from ssld.data.unreadable import Unreadables
from ssld.data.workers import load
from ssld.distill.verify_teacher import VERIFY_IMAGES, judge
from ssld.health.evaluate import accuracy
from ssld.models.classifier import Classifier
from ssld.models.teacher import CURE, autocast, open_one, samples

VERSION = 1
STEP = 2.0**-20
"""Probabilities are multiples of it: what a forward pass rounds differently with another number of
threads or images must not decide between two images that are equally sure."""


class Scorer:
    """The teacher on this process's device.

    Raises:
        InputError: it cannot be loaded, or its classes are not as many as the labeled sets name.
    """

    def __init__(self, work: Work, labeled: ImageSet | None) -> None:
        config = work.config
        self.work, self.network = work, open_one(config.teacher)
        self.precision = config.teacher.dtype or config.precision
        _check_classes(self.network, labeled)
        self.num_classes = self.network.num_classes
        self.class_titles = self.network.class_titles
        self.sha256 = self.network.sha256()
        facts = (self.network.input_size, self.network.mean, self.network.std, self.precision)
        self.key = key(VERSION, self.sha256, facts)
        self.network.to(work.processes.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities float32 [b, classes] and penultimate features float16 [b, d] of uint8
        [b, size, size, 3]."""
        device = self.work.processes.device
        with autocast(device, self.precision):
            logits, embedding = self.network(images.to(device, non_blocking=True), True)
        probabilities = (logits.double().softmax(-1) / STEP).round() * STEP
        return probabilities.float().cpu().numpy(), embedding.half().cpu().numpy()

    def views(self, images: ImageSet, view: View, pieces: list[np.ndarray]) -> Iterator[Batch]:
        """Batches of `pieces`, int64 [b, 2]: row of the set and number of the view."""

        def rows() -> Iterator[np.ndarray]:
            for piece in pieces:
                places = [(*images.place(int(row)), int(number), 0) for row, number in piece]
                yield np.array(places, np.int64)  # as `ssld.data.loading` wants them, [b, 4]

        pin = self.work.processes.device.type == "cuda"
        make = ViewBatches(images.sources, view)
        return load(make, rows, workers=self.work.config.workers, pin=pin)


def _check_classes(network: Classifier, labeled: ImageSet | None) -> None:
    for source in labeled.sources if labeled else []:
        problem = misfit(table_of("the teacher", network), [source], f"labeled {source.path}")
        if problem:
            raise InputError(f"{problem}: take a teacher of these classes, or leave `labeled` out")


def score(work: Work, scorer: Scorer, index: Index) -> TeacherScores:
    """Score what is not scored yet."""
    images, scores = index.images, TeacherScores(work.out, index, scorer.key)
    view, size = SquashView(scorer.network.input_size), work.config.batch_size

    def scored(parts: list[Part[range]]) -> Iterator[pa.Table]:
        pieces = batches(parts, size)
        first_view = [np.stack([rows, [0] * len(rows)], axis=1) for rows in pieces]
        for rows, batch in zip(pieces, scorer.views(images, view, first_view), strict=True):
            yield _table(images, list(rows), batch, *scorer(batch.images))

    write = tables.writer(tables.SCORES)
    work.fill("score gallery", scores.parts(), scored, write, batch_size=size)
    if work.main:
        scores.forget_others()
    return scores


def _table(
    images: ImageSet,
    rows: list[int],
    batch: Batch,
    probabilities: np.ndarray,
    embeddings: np.ndarray,
) -> pa.Table:
    readable = batch.weight.numpy() > 0
    wrong = np.flatnonzero(np.isnan(probabilities).any(1) & readable)
    if len(wrong):
        named = samples([images.sample_id(rows[i]) for i in wrong])
        raise InputError(
            f"the teacher's predictions are not finite (NaN or infinite) for {named}; {CURE}"
        )
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : tables.TOP]
    top = np.take_along_axis(probabilities, order, axis=1)
    lacking = ((0, 0), (0, tables.TOP - order.shape[1]))  # a teacher of fewer classes
    order, top = np.pad(order, lacking, constant_values=-1), np.pad(top, lacking)
    columns = {
        "row": rows,
        "sample_id": [images.sample_id(row) for row in rows],
        "classes": _or_null(order.astype(np.int32), readable),
        "probabilities": _or_null(top.astype(np.float32), readable),
        "embedding": _or_null(embeddings, readable),
    }
    return pa.table(columns, tables.SCORES)


def _or_null(values: np.ndarray, readable: np.ndarray) -> list[np.ndarray | None]:
    return [value if ok else None for value, ok in zip(values, readable, strict=True)]


def verify(work: Work, scorer: Scorer, labeled: ImageSet | None) -> None:
    """Say the teacher's top-1 on labeled images, where there are any it can know: one with the
    wrong normalisation would choose the wrong images without a word.

    Raises:
        InputError: it is near chance and `teacher.verify` is on.
    """
    network, sources = scorer.network, list(labeled.sources) if labeled else []
    problem = unknown_labels(sources, network, VERIFY_IMAGES)
    if problem:
        return work.say(f"teacher: not verified, {problem}")
    batches = eval_batches(
        ViewBatches(sources, eval_view(network), known_index(sources, network)),
        batch_size=work.config.batch_size,
        workers=work.config.workers,
        device=work.processes.device,
        unreadables=Unreadables(sources, 1.0),
        limit=VERIFY_IMAGES,
        description="verify teacher",
    )
    hits, count = accuracy(network, batches, scorer.precision).counted("top1")
    verdict = judge(hits, count, scorer.num_classes, work.config.teacher.verify)
    work.say(f"teacher: {verdict}")


class ReferenceView:
    """View number `view` of an image, of those that `shortlist.views` makes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._last: tuple[str, np.ndarray] | None = None

    def __call__(self, data: bytes, sample_id: str, view: int) -> Tensor:
        if self._last is None or self._last[0] != sample_id:  # one image's views come in a row
            self._last = sample_id, views(decode(data), self.size)
        return torch.from_numpy(self._last[1][view])


def embed_reference_set(work: Work, scorer: Scorer, index: Index) -> list[Path]:
    """Penultimate features of the views of every image of the reference set, one file a shard.

    Returns:
        .npy files in the order of the shards, float16 [images, views, d].
    """
    images, size = index.images, work.config.batch_size
    view, folder = ReferenceView(scorer.network.input_size), work.out / "work" / "views"
    parts = []
    for shard in images.shards:
        name = f"{shard.number:06d}-{key(scorer.key, index.keys[shard.number], VIEWS)}.npy"
        rows = np.array([(row, number) for row in shard.rows for number in range(VIEWS)])
        parts.append(Part(folder / name, rows, per_image=VIEWS))

    def embedded(parts: list[Part[np.ndarray]]) -> Iterator[np.ndarray]:
        for batch in scorer.views(images, view, batches(parts, size)):
            yield scorer(batch.images)[1]  # [b, d]

    def write(path: Path, pieces: list[np.ndarray]) -> None:
        rows = np.concatenate(pieces)
        embeddings = rows.reshape(len(rows) // VIEWS, VIEWS, -1)
        write_atomically(path, lambda file: np.save(file, embeddings))

    work.fill("score protected", parts, embedded, write, batch_size=size)
    return [part.path for part in parts]
