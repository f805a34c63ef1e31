"""What all stages share: the folder, the processes, the log, and what is done already."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from ssld.common.files import cannot_write
from ssld.common.streams import bar_output
from ssld.curate import workers
from ssld.curate.config import CurateConfig

Rows = TypeVar("Rows", range, list, np.ndarray)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Processes:
    """The processes that a launcher started; each does every `world_size`-th piece of work, and
    none sends anything to another but word that it is done."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))

    def wait(self) -> None:
        """Until all are here."""
        if self.world_size > 1:
            self._state().wait_for_everyone()

    @property
    def device(self) -> Any:
        """torch.device of this process."""
        return self._state().device

    def _state(self) -> Any:
        # Workers import this module, and torch would take 200 MB of each and most of their start.
        from ssld.engine.processes import open_processes

        return open_processes()


@dataclass
class Part(Generic[Rows]):
    """A piece of work whose result is one file; done when the file is there."""

    path: Path
    rows: Rows
    """What it is about: rows of a set, or pairs of them."""
    per_image: int = 1
    """Rows for each image."""

    @property
    def images(self) -> int:
        return len(self.rows) // self.per_image


class Call:
    """One call of a command that does its work in pieces, on one of its processes.

    Args:
        out: its folder, where log.jsonl is.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.processes = Processes()

    @property
    def main(self) -> bool:
        return self.processes.rank == 0

    def say(self, line: str) -> None:
        if self.main:
            tqdm.write(line)

    def log(self, **facts: Any) -> None:
        """One line of log.jsonl; lines of several processes do not mix."""
        line = json.dumps({**facts, "process": self.processes.rank, "time": round(time.time(), 3)})
        path = self.out / "log.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error


class Work(Call):
    """One call of `ssld curate`."""

    def __init__(self, config: CurateConfig) -> None:
        super().__init__(Path(config.out))
        self.config = config

    def ordered(self, job: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`job` of each item, in order, by the workers that the settings ask for."""
        config = self.config
        return workers.ordered(job, items, workers=config.workers, engine=config.engine)

    def fill(
        self,
        stage: str,
        parts: Sequence[Part[Rows]],
        make: Callable[[list[Part[Rows]]], Iterator[Result]],
        write: Callable[[Path, list[Result]], None],
        *,
        batch_size: int = workers.BATCH,
    ) -> None:
        """Do this process's share of the parts that are not done, and wait for the other processes.

        Args:
            stage: for the log and the progress bar.
            make: parts to do -> a result for each of their batches, in order. It is asked for them
                one by one, so that a kill costs no more than a part.
            write: writes the results of one part to its file.
            batch_size: rows of a batch; none has rows of two parts.
        """
        share = parts[self.processes.rank :: self.processes.world_size]
        todo = [part for part in share if not part.path.is_file()]
        results = make(todo)
        with self.bar(stage, sum(part.images for part in todo)) as bar:
            for part in todo:
                begun, made = time.monotonic(), []
                for batch in batched(part.rows, batch_size):
                    made.append(next(results))
                    bar.update(len(batch) / part.per_image)
                part.path.parent.mkdir(parents=True, exist_ok=True)
                write(part.path, made)
                self.log(
                    stage=stage,
                    part=str(part.path.relative_to(self.out)),
                    images=part.images,
                    seconds=round(time.monotonic() - begun, 3),
                )
        self.processes.wait()

    def bar(self, stage: str, images: int) -> tqdm:
        output = bar_output(quiet=not self.main, lines=False)
        return tqdm(total=images, desc=stage, unit="img", leave=False, **output)


def key(*things: object) -> str:
    """Short digest of what a piece of work depends on; another one means other work."""
    return hashlib.sha256(repr(things).encode()).hexdigest()[:16]


def batches(parts: Sequence[Part[Rows]], size: int = workers.BATCH) -> list[Rows]:
    """Rows of all parts in pieces of at most `size`, none of two parts."""
    return [rows for part in parts for rows in batched(part.rows, size)]


def batched(rows: Rows, size: int = workers.BATCH) -> list[Rows]:
    """Pieces of at most `size`."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
