"""From checked settings, sources and a network to a run: the step at which something is written."""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.streams import bar_seconds
from ssld.data.folder import FolderSource
from ssld.data.sampling import Sampler
from ssld.data.source import Images
from ssld.data.subset import Part
from ssld.engine import checkpoint
from ssld.engine.config import LoopConfig
from ssld.engine.run_folder import RunFolder
from ssld.engine.timing import peak_flops

if TYPE_CHECKING:
    from ssld.models.teacher import Teacher

FINGERPRINT_ROWS = 65_536
"""Images whose names and sizes are hashed at once."""


@dataclass
class Run:
    """What the loop needs: resolved settings, process topology, data and the run folder."""

    config: LoopConfig
    accelerator: Accelerator
    folder: RunFolder
    sources: Sequence[Images]
    val: Sequence[Images]
    order: Sampler
    total_steps: int
    facts: dict[str, Any]
    teacher: Teacher | None
    previous: Path | None
    """The checkpoint to go on from."""

    @property
    def steps_per_epoch(self) -> float:
        return self.order.samples_per_epoch / self.config.batch_size

    def line_due(self, step: int) -> bool:
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
    def world(self) -> int:
        return self.accelerator.num_processes


def start(
    config: LoopConfig,
    accelerator: Accelerator,
    sources: Sequence[Images],
    val: Sequence[Images],
    order: Sampler,
    facts: dict[str, Any],
    *,
    teacher: Teacher | None = None,
) -> Run:
    """Create the run folder, or go on in it.

    Args:
        facts: what run.json is to say of networks and data; what all runs say is added.

    Raises:
        InputError: the folder was made with other settings, images or networks.
    """
    world = accelerator.num_processes
    steps_per_epoch = order.samples_per_epoch / config.batch_size
    total = config.steps or max(1, math.ceil((config.epochs or 0) * steps_per_epoch))
    facts |= {
        **_fingerprints(accelerator, sources, val),
        "images": {s.path: len(s) for s in sources},
        "processes": world,
        "device": str(accelerator.device),
        "steps": total,
        "peak_lr": config.schedule.lr * config.batch_size / 256,
        "peak_flops": peak_flops(accelerator.device, _precisions(config, teacher)),
    }
    folder = RunFolder(Path(config.out), main=accelerator.is_main_process)
    previous = _previous_checkpoint(config, accelerator, facts, folder)
    folder.open(config, facts)
    accelerator.wait_for_everyone()
    accelerator.print(
        f"{sum(map(len, sources)):,} images in {len(sources)} source(s), {total:,} "
        f"steps of {config.batch_size} ({total / steps_per_epoch:.2f} epochs), peak learning "
        f"rate {facts['peak_lr']:.4g} ({config.schedule.lr:g} per 256), {world} "
        f"process(es) on {accelerator.device.type}"
    )
    return Run(
        config, accelerator, folder, sources, val, order, total, facts, teacher, previous
    )  # fmt: skip


def _precisions(config: LoopConfig, teacher: Teacher | None) -> set[str]:
    """Number formats in which this run's networks compute."""
    own = [teacher_config.dtype for teacher_config in teacher.configs] if teacher else []
    return {config.precision, *filter(None, own)}


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
        mininterval=bar_seconds(),
        leave=False,
    )
    with bar:
        for source in sources:
            for first in range(0, len(source), FINGERPRINT_ROWS):
                rows = np.arange(first, min(first + FINGERPRINT_ROWS, len(source)))
                digest.update(_words(source, rows))
                bar.update(len(rows))
    return digest.hexdigest()


def _words(source: Images, rows: np.ndarray) -> bytes | memoryview:
    """What the fingerprint is made of, for some rows."""
    listed = getattr(source, "listed", None)
    if listed is None:  # of annotated images, which are fewer
        words = (f"{source.sample_id(i)}\0{source.size(i)}\0" for i in rows.tolist())
        return "".join(words).encode()
    ids, sizes = listed(rows)
    said = pc.fill_null(sizes.cast(pa.large_string()), "None")
    # Each element ends in \0, so that their common buffer is the text itself.
    nothing, between = (pa.scalar(text, pa.large_string()) for text in ("", "\0"))
    words = pc.binary_join_element_wise(ids.cast(pa.large_string()), said, nothing, between)  # type: ignore[attr-defined]
    offsets = np.frombuffer(words.buffers()[1], np.int64)[words.offset :][: len(words) + 1]
    return memoryview(words.buffers()[2])[offsets[0] : offsets[-1]]


def _fingerprints(
    accelerator: Accelerator, sources: Sequence[Images], val: Sequence[Images]
) -> dict[str, str]:
    """The fingerprints of both sets, by the main process: that one alone asks for sizes of files.

    The others get them, so that a file that changes is noticed wherever it is read.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        digests = {"data_sha256": fingerprint(sources), "val_sha256": fingerprint(val)}
        found = [digests, [folder.sizes() for folder in _folders([*sources, *val])]]
    if accelerator.num_processes > 1:
        found = broadcast_object_list(found)
        for folder, sizes in zip(_folders([*sources, *val]), found[1], strict=True):
            folder.take_sizes(sizes)
    return found[0]


def _folders(sources: Sequence[Images]) -> list[FolderSource]:
    """The different folders that sources, or what they are parts of, are."""
    found = {}
    for source in sources:
        while isinstance(source, Part):
            source = source.source
        if isinstance(source, FolderSource):
            found[id(source)] = source
    return list(found.values())


def _previous_checkpoint(
    config: LoopConfig, accelerator: Accelerator, facts: dict[str, Any], folder: RunFolder
) -> Path | None:
    """The newest sound one where --resume is given, the same on all processes.

    Raises:
        InputError: it was made with another teacher or other images; not all processes see it.
    """
    if not config.resume:
        return None
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            folder.recover()
            found[0] = checkpoint.latest(Path(config.out) / "checkpoints")
        except InputError as error:
            found[1] = str(error)
    previous, problem = broadcast_object_list(found)
    if problem:
        raise InputError(problem)
    _require_seen(previous, Path(config.out), accelerator)
    if previous is None:
        accelerator.print(f"no checkpoint in {config.out} yet: from the start")
        return None
    state = checkpoint.read_state(previous)
    for key, group, what in (
        ("teacher_sha256", "teacher", "teacher"),
        ("start_sha256", "run", "student in `run` to start from"),
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
    seen = checkpoint.any_in(out / "checkpoints") if previous is None else previous.is_dir()
    views: list[Any] = gather_object([(seen, accelerator.process_index, socket.gethostname())])
    others = [f"{rank} on {host}" for x, rank, host in views if x == (previous is None)]
    if others:
        whole = "a checkpoint" if previous is None else f"no {previous}"
        raise InputError(
            f"--resume in {out}: process {others[0]} sees {whole} there, unlike process 0 on "
            f"{views[0][2]}; `out` must be one folder that all nodes see: put it on shared storage "
            "and give its absolute path"
        )
