"""Batches on the device, and the account of what could not be read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ssld.data import loading
from ssld.data.loading import Batch, LabelIndex
from ssld.data.sources import Source
from ssld.data.views import EvalView
from ssld.errors import InputError


class Unreadables:
    """Reports each unreadable image once, and stops the run when a source has too many.

    Args:
        limit: largest share of a source's images that may be unreadable (`data.max_unreadable`).
        log: JSON-lines file that names each one, or None.
    """

    def __init__(self, sources: Sequence[Source], limit: float, log: Path | None) -> None:
        self.sources = sources
        self.limit = limit
        self.log = log
        self.seen: list[set[str]] = [set() for _ in sources]

    @property
    def count(self) -> int:
        """How many different images could not be read so far, on this process."""
        return sum(map(len, self.seen))

    def add(self, batch: Batch) -> None:
        """Note a batch's unreadable images.

        Raises:
            InputError: a source exceeds the limit.
        """
        for source, sample_id, location, reason in batch.unreadable:
            if sample_id in self.seen[source]:
                continue
            self.seen[source].add(sample_id)
            tqdm.write(f"unreadable, left out: {location} ({reason})", file=sys.stderr)
            if self.log is not None:
                entry = {"sample_id": sample_id, "location": location, "reason": reason}
                with self.log.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            self._check(source, location, reason)

    def _check(self, number: int, location: str, reason: str) -> None:
        source, bad = self.sources[number], len(self.seen[number])
        if bad > self.limit * len(source):
            raise InputError(
                f"{source.path}: {bad} of {len(source)} images cannot be read, more than "
                f"data.max_unreadable allows ({self.limit:.1%}), the last one {location} "
                f"({reason}); mend the source or raise the limit"
            )


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy what the networks need to `device`; overlaps with compute when memory is pinned."""
    for batch in batches:
        yield dataclasses.replace(
            batch,
            images=batch.images.to(device, non_blocking=True),
            weight=batch.weight.to(device, non_blocking=True),
            labels=batch.labels.to(device, non_blocking=True),
        )


def eval_batches(
    sources: Sequence[Source],
    view: EvalView,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    unreadables: Unreadables,
    label_index: LabelIndex | None,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    description: str | None = None,
) -> Iterator[Batch]:
    """Every image once over all processes, with a progress bar on the first."""
    images = min(sum(map(len, sources)), limit or sys.maxsize)
    batches = loading.eval_batches(
        list(sources),
        view,
        batch_size=batch_size,
        rank=rank,
        world=world,
        workers=workers,
        pin=device.type == "cuda",
        label_index=label_index,
        limit=limit,
    )
    with tqdm(
        total=images, desc=description, unit="img", disable=rank > 0 or not description, leave=False
    ) as bar:
        for batch in on_device(batches, device):
            unreadables.add(batch)
            yield batch
            bar.update(min(len(batch.ids) * world, images - bar.n))


def class_names(sources: Sequence[Source]) -> list[str] | None:
    """All class names of the sources, sorted, or None where classes are numbers or absent."""
    names = {name for source in sources for name in source.class_names or ()}
    return sorted(names) or None


def label_index(
    sources: Sequence[Source], label_names: list[str] | None, num_classes: int, role: str
) -> LabelIndex:
    """How labels become class numbers: by the network's own class names where it has them.

    Raises:
        InputError: the sources' class folders do not match the network's classes.
    """
    names = class_names(sources)
    if names is None:
        return LabelIndex(None, num_classes)
    where = ", ".join(source.path for source in sources)
    if label_names is None and len(names) != num_classes:
        raise InputError(
            f"{where}: {len(names)} classes are named ({', '.join(names[:3])}, ...) but the {role} "
            f"has {num_classes} and does not say their names; give labels as numbers in a manifest"
        )
    unknown = sorted(set(names) - set(label_names or names))
    if unknown:
        raise InputError(
            f"{where}: class {unknown[0]!r} is not among the {role}'s {num_classes} classes "
            f"({', '.join((label_names or [])[:3])}, ...); rename the folder or take another {role}"
        )
    return LabelIndex(label_names or names, num_classes)
