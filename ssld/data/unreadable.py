"""Batches on the device, and the account of what could not be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.files import cannot_write, write_atomically
from ssld.common.streams import is_terminal
from ssld.data import loading
from ssld.data.labels import LabelIndex
from ssld.data.loading import Batch
from ssld.data.source import Images, Source
from ssld.data.transforms import EvalView

Entry = tuple[int, str, str, str]
"""Source number, sample id, location and reason of an unreadable image."""
Moved = TypeVar("Moved", bound="AnyBatch")


class AnyBatch(Protocol):
    """What a run must know of a batch; see `ssld.data.loading.Batch`."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def ids(self) -> list[str]: ...

    @property
    def unreadable(self) -> list[Entry]: ...

    def map(self: Moved, function: Callable[[Tensor], Tensor]) -> Moved:
        """The same batch with each of its tensors replaced."""
        ...


class Unreadables:
    """Reports each unreadable image once, and stops the run when a source has too many.

    Args:
        limit: largest share of a source's images that may be unreadable (`data.max_unreadable`).
        log: JSON-lines file that names each one, or None.
    """

    def __init__(self, sources: Sequence[Images], limit: float, log: Path | None = None) -> None:
        self.sources = sources
        self.limit = limit
        self.log = log
        self.entries: dict[tuple[int, str], Entry] = {}
        self.new: list[Entry] = []
        """Found by this process since the last `merge`."""
        self.counts = [0 for _ in sources]
        self._sorted = False

    @property
    def count(self) -> int:
        """How many different images could not be read so far, on all processes."""
        return len(self.entries)

    def add(self, batch: AnyBatch) -> None:
        """Note a batch's unreadable images.

        Raises:
            InputError: a source exceeds the limit.
        """
        for entry in batch.unreadable:
            if self._note(entry):
                _, _, location, reason = entry
                tqdm.write(f"unreadable, left out: {location} ({reason})", file=sys.stderr)
                self._check(entry)

    def _note(self, entry: Entry) -> bool:
        fresh = entry[:2] not in self.entries
        if fresh:
            self.entries[entry[:2]] = entry
            self.counts[entry[0]] += 1
            self.new.append(entry)
        return fresh

    def merge(self, found: Sequence[Entry]) -> None:
        """Take in what all processes found since the last time."""
        for entry in sorted(found):
            self._note(tuple(entry))  # type: ignore[arg-type]
        self.new.clear()

    def restore(self, known: Sequence[Entry]) -> None:
        """Take over what was known when a checkpoint was written."""
        for entry in known:
            self._note(tuple(entry))  # type: ignore[arg-type]
        self.new.clear()

    def append(self, found: Sequence[Entry]) -> None:
        """Add to the log what all processes found since the last time.

        Raises:
            InputError: it cannot be written.
        """
        if self.log is None:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(_lines({entry[:2]: entry for entry in found}.values()))
        except OSError as error:
            raise cannot_write(self.log, error) from error
        self._sorted = False

    def write(self) -> None:
        """Write the log anew, sorted, where it is not; deletes it where there is nothing to say.

        Raises:
            InputError: it cannot be written.
        """
        if self.log is None or self._sorted:
            return
        if self.entries:
            write_atomically(self.log, _lines(self.entries.values()))
        else:
            self.log.unlink(missing_ok=True)
        self._sorted = True

    def _check(self, entry: Entry) -> None:
        number, _, location, reason = entry
        source, bad = self.sources[number], self.counts[number]
        if bad > self.limit * len(source):
            self._sorted = False
            self.write()
            raise InputError(
                f"{source.path}: {bad} of {len(source)} images cannot be read, more than "
                f"data.max_unreadable allows ({self.limit:.1%}), the last one {location} "
                f"({reason}); mend the source or raise the limit"
            )


def _lines(entries: Iterable[Entry]) -> str:
    names = ("sample_id", "location", "reason")
    found = (dict(zip(names, entry[1:], strict=True)) for entry in sorted(entries))
    return "".join(json.dumps(x) + "\n" for x in found)


def to_device(batch: Moved, device: torch.device) -> Moved:
    """Copy what the networks need; overlaps with compute when memory is pinned."""
    return batch.map(lambda tensor: tensor.to(device, non_blocking=True))


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
    mixed: bool = False,
    description: str | None = None,
) -> Iterator[Batch]:
    """Every image once over all processes, with a progress bar on the first; see
    `ssld.data.loading.eval_batches`."""
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
        mixed=mixed,
    )
    with tqdm(
        total=images,
        desc=description,
        unit="img",
        disable=rank > 0 or not description or not is_terminal(sys.stderr),
        leave=False,
    ) as bar:
        for batch in batches:
            unreadables.add(batch)
            yield to_device(batch, device)
            bar.update(min(len(batch.ids) * world, images - bar.n))
