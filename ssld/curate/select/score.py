"""Stage `score`: what the teacher says about every gallery image, one forward pass each.

The whole frame is squashed into the teacher's square: its penultimate features then find copies
that a centre crop would have cut away, and the same pass gives the score (SSLD section 3.3.4).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ssld.common.errors import InputError
from ssld.curate import tables
from ssld.curate.context import Part, Work
from ssld.curate.near_duplicates.shortlist import VIEWS, views
from ssld.curate.select.scores import Scores
from ssld.curate.sets.images import ImageSet, Shard, batched, key
from ssld.curate.sets.index import Index
from ssld.data.decode import decode
from ssld.data.eval_view import eval_view
from ssld.data.labels import known_index, misfit, table_of, unknown_labels
from ssld.data.loading import Batch, View, batches_of
from ssld.data.transforms import SquashView
from ssld.data.unreadable import Unreadables, eval_batches
from ssld.distill.verify_teacher import VERIFY_IMAGES, judge
from ssld.health.evaluate import accuracy
from ssld.models.classifier import Classifier
from ssld.models.teacher import autocast, open_one
from ssld.models.teacher_faults import CURE, samples

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
        self.label_names = self.network.label_names
        self.sha256 = self.network.sha256()
        facts = (self.network.input_size, self.network.mean, self.network.std, self.precision)
        self.key = key(VERSION, self.sha256, facts)
        self.network.to(work.processes.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities float32 [b, classes] and penultimate features float16 [b, d] of uint8
        [b, size, size, 3]."""
        model, device = self.network.model, self.work.processes.device
        with autocast(device, self.precision):
            x = self.network.preprocess(images.to(device, non_blocking=True))
            x = model.forward_features(x)  # type: ignore[operator]
            embedding = model.forward_head(x, pre_logits=True)  # type: ignore[operator]
            logits = model.forward_head(x)  # type: ignore[operator]
        probabilities = (logits.double().softmax(-1) / STEP).round() * STEP
        return probabilities.float().cpu().numpy(), embedding.half().cpu().numpy()

    def batches(self, images: ImageSet, view: View, pieces: list[np.ndarray]) -> Iterator[Batch]:
        """Views of `pieces`, int64 [b, 2]: row of the set and number of the view."""

        def rows() -> Iterator[np.ndarray]:
            for piece in pieces:
                places = [(*images.place(int(row)), int(number)) for row, number in piece]
                yield np.array(places, np.int64)

        pin = self.work.processes.device.type == "cuda"
        return batches_of(images.sources, view, rows, workers=self.work.config.workers, pin=pin)


def _check_classes(network: Classifier, labeled: ImageSet | None) -> None:
    for source in labeled.sources if labeled else []:
        problem = misfit(table_of("the teacher", network), [source], f"labeled {source.path}")
        if problem:
            raise InputError(f"{problem}: take a teacher of these classes, or leave `labeled` out")


def score(work: Work, scorer: Scorer, index: Index) -> Scores:
    """Score what is not scored yet."""
    images, scores = index.images, Scores(work.out, index, scorer.key)
    missing = [s for s in work.mine(images.shards) if not scores.path(s).is_file()]
    parts = [Part(scores.path(shard), len(shard.rows)) for shard in missing]
    pieces = [rows for shard in missing for rows in batched(shard.rows, work.config.batch_size)]
    first_view = [np.stack([list(rows), [0] * len(rows)], axis=1) for rows in pieces]
    batches = scorer.batches(images, SquashView(scorer.network.input_size), first_view)
    found = (
        (len(rows), _table(images, list(rows), batch, *scorer(batch.images)))
        for rows, batch in zip(pieces, batches, strict=True)
    )
    work.write("score gallery", parts, tables.SCORES, found)
    work.processes.wait()
    if work.main:
        for path in set(scores.folder.glob("*.parquet")) - set(map(scores.path, images.shards)):
            path.unlink()
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
        sources,
        eval_view(network),
        batch_size=work.config.batch_size,
        workers=work.config.workers,
        device=work.processes.device,
        unreadables=Unreadables(sources, 1.0),
        label_index=known_index(sources, network),
        limit=VERIFY_IMAGES,
        description="verify teacher",
    )
    hits, count = accuracy(network, batches, scorer.precision).counted("top1")
    said = judge(hits, count, scorer.num_classes, work.config.teacher.verify)
    work.say(f"teacher: {said}")


class ProtectedView:
    """View number `view` of an image, of those that `shortlist.views` makes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._last: tuple[str, np.ndarray] | None = None

    def __call__(self, data: bytes, sample_id: str, view: int) -> Tensor:
        if self._last is None or self._last[0] != sample_id:  # one image's views come in a row
            self._last = sample_id, views(decode(data), self.size)
        return torch.from_numpy(self._last[1][view])


def embed_protected(work: Work, scorer: Scorer, index: Index) -> list[Path]:
    """Penultimate features of the views of every protected image, one file a shard.

    Returns:
        .npy files in the order of the shards, float16 [images, views, d].
    """
    images, size = index.images, scorer.network.input_size
    folder = work.out / "work" / "views"
    paths = [
        folder / f"{shard.number:06d}-{key(scorer.key, index.keys[shard.number], VIEWS)}.npy"
        for shard in images.shards
    ]
    todo = work.mine(list(zip(images.shards, paths, strict=True)))
    todo = [(shard, path) for shard, path in todo if not path.is_file()]
    with work.bar("embed protected", sum(len(shard.rows) for shard, _ in todo)) as bar:
        for shard, path in todo:
            begun = time.monotonic()
            _embed_shard(scorer, images, shard, path, ProtectedView(size))
            bar.update(len(shard.rows))
            work.log(
                stage="score protected",
                part=str(path.relative_to(work.out)),
                images=len(shard.rows),
                seconds=round(time.monotonic() - begun, 3),
            )
    work.processes.wait()
    return paths


def _embed_shard(
    scorer: Scorer, images: ImageSet, shard: Shard, path: Path, view: ProtectedView
) -> None:
    pairs = np.array([(row, number) for row in shard.rows for number in range(VIEWS)])
    size = scorer.work.config.batch_size
    pieces = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    found = [scorer(batch.images)[1] for batch in scorer.batches(images, view, pieces)]
    embeddings = np.concatenate(found).reshape(len(shard.rows), VIEWS, -1)
    tables.write_whole(path, lambda file: np.save(file, embeddings))
