"""What all stages share: the folder, the processes, the log, and what is done already."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from ssld.common.files import cannot_write
from ssld.common.streams import is_terminal
from ssld.curate import workers as engine
from ssld.curate.config import CurateConfig
from ssld.curate.tables import write_table


class Processes:
    """The processes that a launcher started; each does every `world`-th piece of work, and none
    sends anything to another but word that it is done."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            self._state().wait_for_everyone()

    @property
    def device(self) -> Any:
        """torch.device of this process."""
        return self._state().device

    def _state(self) -> Any:
        # Not before it is needed: importing torch takes longer than curating a thousand images.
        from ssld.engine.processes import open_processes

        return open_processes()


@dataclass
class Part:
    """A piece of work whose result is one Parquet file; done when the file is there."""

    path: Path
    images: int

    @property
    def done(self) -> bool:
        return self.path.is_file()


class Work:
    """One call of `ssld curate`."""

    def __init__(self, config: CurateConfig) -> None:
        self.config = config
        self.out = Path(config.out)
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

    def mine(self, parts: Sequence[Any]) -> list[Any]:
        """This process's share."""
        return list(parts[self.processes.rank :: self.processes.world])

    def ordered(self, job: Any, items: Iterable[Any]) -> Iterator[Any]:
        config = self.config
        return engine.ordered(job, items, workers=config.workers, engine=config.engine)

    def write(
        self,
        stage: str,
        parts: Sequence[Part],
        schema: pa.Schema,
        tables: Iterator[tuple[int, pa.Table]],
    ) -> None:
        """Fill `parts` in order.

        Args:
            tables: how many images each is about, and their rows; together those of all parts, and
                none is about images of two.
        """
        total = sum(part.images for part in parts)
        with self.bar(stage, total) as bar:
            for part in parts:
                begun, found, left = time.monotonic(), [], part.images
                while left:
                    images, table = next(tables)
                    found.append(table)
                    left -= images
                    bar.update(images)
                write_table(part.path, found, schema)
                seconds = time.monotonic() - begun
                self.log(
                    stage=stage,
                    part=str(part.path.relative_to(self.out)),
                    images=part.images,
                    seconds=round(seconds, 3),
                )

    def bar(self, stage: str, images: int) -> tqdm:
        quiet = not self.main or not is_terminal(sys.stderr)
        return tqdm(total=images, desc=stage, unit="img", disable=quiet, leave=False)
