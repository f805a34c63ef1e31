"""From checked settings, sources and a network to a run: the step at which something is written."""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.streams import bar_output
from ssld.data.folder import FolderSource
from ssld.data.loading import Made, Maker, eval_batches, train_batches
from ssld.data.sampling import Order
from ssld.data.source import Images, Subset
from ssld.data.unreadable import Unreadables
from ssld.engine import checkpoint
from ssld.engine.config import LoopConfig
from ssld.engine.processes import on_main
from ssld.engine.run_folder import RunFolder
from ssld.engine.timing import peak_flops

FINGERPRINT_ROWS = 65_536
"""Images whose names and sizes are hashed at once."""


@dataclass(frozen=True)
class Run:
    """What the loop needs: resolved settings, process topology, data and the run folder."""

    name: str
    """Of one of several runs that a command has at once, for what it prints; else empty."""
    config: LoopConfig
    accelerator: Accelerator
    folder: RunFolder
    sources: Sequence[Images]
    val: Sequence[Images]
    sampler: Order
    total_steps: int
    facts: dict[str, Any]
    previous: Path | None
    """The checkpoint to go on from."""

    @property
    def steps_per_epoch(self) -> float:
        return self.sampler.samples_per_epoch / self.config.batch_size

    def should_log(self, step: int) -> bool:
        """Everything beyond the step itself happens where a line of metrics.jsonl is due."""
        return step % self.config.log_every_steps == 0 or step == self.total_steps

    def due(self, step: int, every_steps: float) -> bool:
        """Whether this line is the first since a multiple of `every_steps`, or the run's last."""
        line = (step - 1) // self.config.log_every_steps * self.config.log_every_steps
        return step == self.total_steps or int(step / every_steps) > int(line / every_steps)

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    def train_batches(
        self,
        make: Maker[Made],
        first_step: int,
        last_step: int,
        *,
        order: Order | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Made]:
        """This process's batches of steps [first_step, last_step), as `make` makes them.

        Args:
            order, batch_size: where a step has other images besides the run's.
        """
        config = self.config
        return train_batches(
            make,
            order or self.sampler,
            batch_size=batch_size or config.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            first_step=first_step,
            last_step=last_step,
            accumulate=config.accumulate,
            workers=config.data.workers,
            pin=self.accelerator.device.type == "cuda",
        )

    def eval_batches(
        self,
        make: Maker[Made],
        description: str,
        *,
        batch_size: int | None = None,
        max_unreadable: float | None = None,
        limit: int | None = None,
        mixed: bool = False,
    ) -> Iterator[Made]:
        """Each image of `make.sources` once over all processes; see `ssld.data.loading`.

        Args:
            batch_size: of this process; by default its share of the run's.
            max_unreadable: share that may be unreadable, by default `data.max_unreadable`.
        """
        config = self.config
        share = config.data.max_unreadable if max_unreadable is None else max_unreadable
        return eval_batches(
            make,
            batch_size=batch_size or max(1, config.batch_size // self.world_size),
            workers=config.data.workers,
            device=self.accelerator.device,
            unreadables=Unreadables(make.sources, share),
            rank=self.rank,
            world_size=self.world_size,
            limit=limit,
            mixed=mixed,
            description=description,
        )


def start(
    config: LoopConfig,
    accelerator: Accelerator,
    sources: Sequence[Images],
    val: Sequence[Images],
    sampler: Order,
    facts: dict[str, Any],
    *,
    precisions: Sequence[str] = (),
    name: str = "",
) -> Run:
    """Create the run folder, or go on in it.

    Args:
        facts: what run.json is to say of networks and data; what all runs say is added, where it is
            not known yet of another run on the same images.
        precisions: number formats in which networks compute, besides the run's own.
        name: see `Run.name`.

    Raises:
        InputError: the folder was made with other settings, images or networks.
    """
    if config.patience is not None and not val:
        raise InputError(
            f"patience is {config.patience}, but nothing is held out, so that there are no "
            "evaluations: name images in data.val, or leave patience out"
        )
    world = accelerator.num_processes
    steps_per_epoch = sampler.samples_per_epoch / config.batch_size
    total = config.steps or max(1, math.ceil((config.epochs or 0) * steps_per_epoch))
    if "data_sha256" not in facts:
        facts = {
            **facts,
            **_fingerprints(accelerator, sources, val),
            "peak_flops": peak_flops(accelerator.device, {config.precision, *precisions}),
        }
    facts = {
        **facts,
        "images": {s.path: len(s) for s in sources},
        "processes": world,
        "device": str(accelerator.device),
        "steps": total,
        "peak_lr": config.schedule.lr * config.batch_size / 256,
    }
    folder = RunFolder(Path(config.out), main=accelerator.is_main_process)
    previous = _previous_checkpoint(config, accelerator, facts, folder)
    folder.open(config, facts)
    accelerator.wait_for_everyone()
    whose = f"{name}: " if name else ""
    accelerator.print(
        f"{whose}{sum(map(len, sources)):,} images in {len(sources)} source(s), {total:,} "
        f"steps of {config.batch_size} ({total / steps_per_epoch:.2f} epochs), peak learning "
        f"rate {facts['peak_lr']:.4g} ({config.schedule.lr:g} per 256), {world} "
        f"process(es) on {accelerator.device.type}"
    )
    return Run(name, config, accelerator, folder, sources, val, sampler, total, facts, previous)


def require_divisible(config: LoopConfig, accelerator: Accelerator) -> None:
    """
    Raises:
        InputError: the batch cannot be shared equally by processes and accumulation.
    """
    world = accelerator.num_processes
    if config.batch_size % (world * config.accumulate):
        raise InputError(
            f"batch_size is {config.batch_size}: give a multiple of the {world} processes "
            f"times accumulate ({config.accumulate})"
        )


def fingerprint(sources: Sequence[Images]) -> str:
    """sha256 of all names and, where they are known, sizes: `NAME\\0SIZE\\0` of each image, SIZE
    None where it is not."""
    digest = hashlib.sha256()
    bar = tqdm(
        total=sum(map(len, sources)),
        desc="fingerprint",
        unit="img",
        delay=5.0,
        **bar_output(),
        leave=False,
    )
    with bar:
        for source in sources:
            for first in range(0, len(source), FINGERPRINT_ROWS):
                rows = np.arange(first, min(first + FINGERPRINT_ROWS, len(source)))
                digest.update(_words(source, rows))
                bar.update(len(rows))
    return digest.hexdigest()


def _words(source: Images, rows: np.ndarray) -> bytes:
    """What the fingerprint is made of, for some rows."""
    listed = getattr(source, "listed", None)
    if listed is None:  # of annotated images, which are fewer
        pairs = ((source.sample_id(i), source.size(i)) for i in rows.tolist())
    else:
        pairs = zip(*listed(rows), strict=True)
    return "".join([f"{name}\0{size}\0" for name, size in pairs]).encode()


def _fingerprints(
    accelerator: Accelerator, sources: Sequence[Images], val: Sequence[Images]
) -> dict[str, str]:
    """The fingerprints of both sets, by the main process: that one alone asks for sizes of files.

    The others get them, so that a file that changes is noticed wherever it is read.
    """
    folders = _folders([*sources, *val])

    def look() -> tuple[dict[str, str], list[Any]]:
        digests = {"data_sha256": fingerprint(sources), "val_sha256": fingerprint(val)}
        return digests, [folder.sizes() for folder in folders]

    digests, every = on_main(accelerator, look)
    if accelerator.num_processes > 1:
        for folder, sizes in zip(folders, every, strict=True):
            folder.take_sizes(sizes)
    return digests


def _folders(sources: Sequence[Images]) -> list[FolderSource]:
    """The different folders that sources, or what they are parts of, are."""
    folders = {}
    for source in sources:
        while isinstance(source, Subset):
            source = source.source
        if isinstance(source, FolderSource):
            folders[id(source)] = source
    return list(folders.values())


def _previous_checkpoint(
    config: LoopConfig, accelerator: Accelerator, facts: dict[str, Any], folder: RunFolder
) -> Path | None:
    """The newest sound one where --resume is given, the same on all processes.

    Raises:
        InputError: it was made with another teacher or other images; not all processes see it.
    """
    if not config.resume:
        return None

    def newest() -> Path | None:
        folder.recover()
        return checkpoint.latest(Path(config.out) / "checkpoints")

    previous = on_main(accelerator, newest)
    _require_seen(previous, Path(config.out), accelerator)
    if previous is None:
        accelerator.print(f"no checkpoint in {config.out} yet: from the start")
        return None
    state = checkpoint.read_state(previous)
    start_of = ("run", "student in `run` to start from")
    if hasattr(config, "init"):
        start_of = ("init", "network in `init` to start from")
    for key, group, what in (
        ("teacher_sha256", "teacher", "teacher"),
        ("labels_sha256", "labels", "set of stored labels"),
        ("start_sha256", *start_of),
        ("data_sha256", "data", "set of images"),
        ("val_sha256", "data", "set of held-out images"),
        ("annotations_sha256", "data", "set of annotations"),
    ):
        was, now = state.get(key), facts.get(key)
        if was != now and group not in config.allow_changes:
            raise InputError(
                f"--resume in {config.out} with another {what} (sha256 was {str(was)[:12]}, is "
                f"{str(now)[:12]}); give the same one, use another `out`, or allow it with "
                f"--allow_changes '[\"{group}\"]'"
            )
    return previous


def _require_seen(previous: Path | None, out: Path, accelerator: Accelerator) -> None:
    """
    Raises:
        InputError: on all processes, where one of them sees another `out` than the main process.
    """
    if accelerator.num_processes == 1:
        return
    seen = bool(checkpoint.all_in(out / "checkpoints")) if previous is None else previous.is_dir()
    views: list[Any] = gather_object([(seen, accelerator.process_index, socket.gethostname())])
    others = [f"{rank} on {host}" for x, rank, host in views if x == (previous is None)]
    if others:
        whole = "a checkpoint" if previous is None else f"no {previous}"
        raise InputError(
            f"--resume in {out}: process {others[0]} sees {whole} there, unlike process 0 on "
            f"{views[0][2]}; `out` must be one folder that all nodes see: put it on shared storage "
            "and give its absolute path"
        )
