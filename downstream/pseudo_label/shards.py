"""Pieces of work, each of which is a file that is right or is made again.

A file is an Arrow stream behind the sha256 of it: what a disk or an editor changed, or a file
system lost in a power cut, is noticed however little it is. Its name has a digest of all that it
depends on. The processes take pieces in turn; no piece depends on another, or on who made it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from ssld.common.files import write_atomically
from ssld.common.streams import bar_output, is_terminal
from ssld.curate.context import Call

DIGEST = 32
"""Bytes of a sha256."""


class Shards:
    """The pieces of one stage.

    Args:
        folder: where their files are.
        name: with which those begin.
        keys: of each, a digest of all that it depends on.
    """

    def __init__(self, folder: Path, name: str, keys: Sequence[str]) -> None:
        self.folder, self.name, self.keys = folder, name, keys

    def path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:06d}-{self.keys[number]}.arrow"

    def find(self, number: int) -> pa.Table | None:
        """A piece; None where it is still to be made, or damaged."""
        try:
            data = self.path(number).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(memoryview(data)[DIGEST:]).digest() != data[:DIGEST]:
            return None
        return pa.ipc.open_stream(pa.BufferReader(data[DIGEST:])).read_all()

    def table(self, number: int) -> pa.Table:
        """A piece that is made."""
        table = self.find(number)
        assert table is not None, self.path(number)
        return table

    def tables(self) -> Iterator[pa.Table]:
        """All of them."""
        return map(self.table, range(len(self.keys)))

    def write(self, number: int, table: pa.Table) -> None:
        """
        Raises:
            InputError: it cannot be written.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(number), hashlib.sha256(data).digest() + data)

    def forget_others(self) -> None:
        """Delete what is left of other pieces, and of files that were being written."""
        wanted = {self.path(number).name for number in range(len(self.keys))}
        for path in self.folder.glob(f"*{self.name}-*.arrow*"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)


class Work(Call):
    """One call of the command, on one of its processes."""

    def fill(
        self,
        stage: str,
        shards: Shards,
        sizes: Sequence[int],
        make: Callable[[int, tqdm], pa.Table],
    ) -> None:
        """Do this process's share of the pieces that are not there, and wait for the others.

        Args:
            stage: for the log and the progress bar.
            sizes: images of each piece.
            make: (piece, bar that it moves on by its images) -> its rows.
        """
        todo = [number for number in range(len(sizes)) if shards.find(number) is None]
        self.processes.wait()  # until all have seen the same
        share = todo[self.processes.rank :: self.processes.world_size]
        total, done, begun = sum(sizes[number] for number in share), 0, time.monotonic()
        # A bar of a moment would flicker on a terminal; a log has the first line and the last.
        passing = {"leave": False, "delay": 2} if is_terminal(sys.stderr) else {}
        with tqdm(
            total=total, desc=stage, unit="img", disable=not self.main or not total,
            **bar_output(), **passing,
        ) as bar:  # fmt: skip
            for number in share:
                started = time.monotonic()
                shards.write(number, make(number, bar))
                done, now = done + sizes[number], time.monotonic()
                rate = done / max(now - begun, 1e-9)
                self.log(
                    stage=stage,
                    piece=os.path.relpath(shards.path(number), self.out),
                    images=sizes[number],
                    seconds=round(now - started, 3),
                    images_per_second=round(rate, 2),
                    left=total - done,
                    left_seconds=round((total - done) / rate, 1) if rate else None,
                )
        self.processes.wait()
        if self.main:
            shards.forget_others()
