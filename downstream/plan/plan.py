"""`ssld plan detection | segmentation | transfer`: what fits into memory, and how long a run takes.

Measured with the run's own loader, step and evaluation; nothing is written into `out`. On a CPU,
where a step too large would take the machine down, memory is derived from steps on a few images,
which a forward pass of one image has shown to fit.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from downstream.dense.memory import held_bytes
from downstream.dense.model import DenseModel
from downstream.detection import command as detection
from downstream.plan.config import PlanDetectionConfig, PlanSegmentationConfig, PlanTransferConfig
from downstream.plan.text import describe
from downstream.segmentation import command as segmentation
from downstream.transfer import transfer
from ssld.common.errors import InputError
from ssld.common.memory import free_bytes
from ssld.engine.progress import Progress
from ssld.engine.run_folder import check_out
from ssld.engine.start import Run
from ssld.engine.task import Task
from ssld.engine.trainer import Trainer
from ssld.models.teacher import autocast
from ssld.plan.batch_size import SPARE, largest_batch, require_memory
from ssld.plan.bench import write_json
from ssld.plan.measure import peak_mib, quietly, rate
from ssld.plan.plan import disk

PlanConfig = PlanDetectionConfig | PlanSegmentationConfig | PlanTransferConfig
SMALL = 2
"""Images of the smaller of two steps from which memory is derived: batch norm wants two."""
OVER_FORWARD = 1.5
"""A step needs no more than so many times what a forward pass keeps for it: gradients, targets and
the largest layer's workspace come on top (10 to 30 % were measured)."""


def plan_detection(config: PlanDetectionConfig) -> int:
    """See `plan`."""
    return plan(config, detection.opened)


def plan_segmentation(config: PlanSegmentationConfig) -> int:
    """See `plan`."""
    return plan(config, segmentation.opened)


def plan_transfer(config: PlanTransferConfig) -> int:
    """See `plan`."""
    return plan(config, transfer.opened)


def plan(config: PlanConfig, opened: Callable[[Any], tuple[Run, Any, Any]]) -> int:
    """Print the plan, and write it to `config.json`; returns 1 when something is wrong, else 0.

    Args:
        opened: settings -> run, task and network, as the command itself opens them.

    Raises:
        InputError: what keeps it from measuring at all: a missing source, a bad backbone.
    """
    problems = list(_of_out(config))
    everything = replace(config.data, max_unreadable=1.0)  # counted, not refused
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(quietly(config, folder), data=everything)
        run, task, network = opened(settings)
        run.accelerator.print("measuring ...")
        steps = Steps(run, task, network)
        result = steps.measure(config.seconds)
        result["disk"] = disk(steps, Path(config.out))
    problems += _of_measurements(result, config)
    result["problems"] = problems
    if run.accelerator.is_main_process:
        print(describe(result))
    write_json(config.json, result, run.accelerator)
    return 1 if problems else 0


class Steps:
    """A run's steps, to be measured instead of trained; see `ssld.plan.batch_size.Steps`.

    Args:
        run, task, network: opened.
    """

    teacher = None

    def __init__(self, run: Run, task: Task[Any, Any, Any, Any], network: Any) -> None:
        self.run, self.task, self.network = run, task, network
        self.held = _held_bytes(run, network)
        # One forward pass after the other is measured, of however many a step has.
        config = replace(run.config, accumulate=1)
        self.trainer: Trainer = Trainer(replace(run, config=config), task, network)
        self.progress = Progress(run, self.trainer.clock, 0, self.trainer.unreadables)

    @property
    def each(self) -> int:
        """Images of a forward pass of one process."""
        config = self.run.config
        return config.batch_size // (config.accumulate * self.run.world_size)

    @property
    def least_bytes(self) -> int:
        height, width = _size(self.run)
        return 3 * height * width

    def sized(self, count: int) -> Run:
        """The run with steps of one forward pass on so many images of each process."""
        config = replace(self.run.config, batch_size=count * self.run.world_size, accumulate=1)
        return replace(self.run, config=config)

    def batches(self, count: int) -> Iterator[Any]:
        """So many images of each process a batch, without end."""
        return self.task.train_batches(self.sized(count), 0, 10**9)

    def step(self, batches: Iterator[Any]) -> None:
        self.trainer.train_step(batches, self.progress)
        self.progress.kept.clear()

    def try_step(self, count: int) -> None:
        """Twice, as the optimizer takes its memory at the end of the first one."""
        batches = self.batches(count)
        self.step(batches)
        self.step(batches)

    def measure(self, seconds: float) -> dict[str, Any]:
        """
        Returns:
            schedule; memory; rates in images per second over all processes: `loader`, `together`
            and `evaluation`, without `together` where no step fits; hours.
        """
        run = self.run
        result: dict[str, Any] = {"schedule": self._schedule()}
        memory = result["memory"] = self._memory()
        passes, rates = run.config.accumulate * run.world_size, {}
        # On a CPU an image takes the same time in a small batch, and no step is worth the risk.
        gpu = run.accelerator.device.type == "cuda"
        count = self.each if gpu else min(self.each, 2 * SMALL)
        if memory["largest_batch"] != 0:
            sized, batches = self.sized(count), self.batches(count)
            rates["loader"] = rate(sized, lambda: next(batches), seconds)
            rates["together"] = rate(sized, lambda: self.step(batches), seconds, warm_up=1)
            rates["evaluation"] = self._evaluation(seconds)
            more = (memory["image_mib"] or 0) * (self.each - count)
            memory["peak_mib"] = peak_mib(run.accelerator.device) + more
            memory["measured_batch"] = count * passes
            result["hours"] = _hours(result["schedule"], rates)
        result["rates"] = rates
        seen = self.trainer.unreadables
        result["unreadable"] = {
            "count": seen.count,
            "examples": [f"{where} ({why})" for _, _, where, why in seen.entries.values()][:3],
        }
        return result

    def _schedule(self) -> dict[str, Any]:
        run, config = self.run, self.run.config
        each = max(1.0, config.evaluate_every_epochs * run.steps_per_epoch)
        return {
            "images": sum(map(len, run.sources)),
            "held_out_images": sum(map(len, run.val)),
            "steps": run.total_steps,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "epochs": run.total_steps / run.steps_per_epoch,
            "evaluations": max(1, round(run.total_steps / each)),
            "processes": run.world_size,
            "device": run.accelerator.device.type,
            "workers": config.data.workers,
            "cores": len(os.sched_getaffinity(0)),
        }

    def _memory(self) -> dict[str, Any]:
        """See `largest_batch`; on a CPU nothing is tried that a forward pass forbids."""
        if self.run.accelerator.device.type == "cuda":
            require_memory(self)
            return largest_batch(self)
        free = SPARE * free_bytes() / self.run.world_size
        if OVER_FORWARD * self.held * 2 * SMALL <= free:
            return largest_batch(self, derive_from=SMALL)
        each = f"{self.held / 2**20:,.0f} MiB of each"
        how = f"not even {2 * SMALL} images for each process, a forward pass keeps {each}"
        return {"largest_batch": 0, "how": how, "image_mib": None}

    def _evaluation(self, seconds: float) -> float:
        """Images per second of looking at held-out ones, over all processes."""
        network, seen = self.trainer.result, [0]

        def some(batches: Iterable[Any]) -> Iterator[Any]:
            start = time.perf_counter()
            for batch in batches:
                seen[0] += len(batch.ids)
                yield batch
                if time.perf_counter() - start > seconds:
                    return

        network.eval()
        start = time.perf_counter()
        with torch.inference_mode(), self.run.accelerator.autocast():
            self.task.evaluate(network, some(self.task.held_out(self.run)))
        return self.run.world_size * seen[0] / (time.perf_counter() - start)


def _size(run: Run) -> tuple[int, int]:
    """Height and width in px of a usual training image."""
    if "network" in run.facts:
        return tuple(run.facts["network"]["input_size"])
    side = run.config.augment.size or run.view.size  # type: ignore[attr-defined]
    return side, side


def _held_bytes(run: Run, network: Any) -> int:
    """That a forward pass keeps of one image of the usual size; see `held_bytes`."""
    height, width = _size(run)
    images = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    sizes = [torch.tensor([(height, width)])] if isinstance(network, DenseModel) else []
    with autocast(images.device, run.config.precision):
        return held_bytes(network, lambda: network(images, *sizes))


def _of_out(config: PlanConfig) -> Iterator[str]:
    """What the run would refuse of `out`."""
    try:
        check_out(replace(config, resume=False))
    except InputError as error:
        yield str(error)


def _hours(schedule: dict[str, Any], rates: dict[str, float]) -> dict[str, float]:
    """Of the whole schedule."""
    training = schedule["steps"] * schedule["batch_size"] / rates["together"] / 3600
    judged = schedule["evaluations"] * schedule["held_out_images"]
    evaluations = judged / rates["evaluation"] / 3600
    return {"all": training + evaluations, "evaluations": evaluations}


def _of_measurements(result: dict[str, Any], config: PlanConfig) -> Iterator[str]:
    most, disk_ = result["memory"]["largest_batch"], result["disk"]
    if most is not None and most < config.batch_size:
        found = f"about {most} is the most that fits" if most else "a step on a few does not fit"
        yield (
            f"batch_size is {config.batch_size} but {found} into memory: lower it or augment's "
            "sizes, or raise accumulate, which takes the images of a step one part after the other"
        )
    if disk_["needed_mib"] > disk_["free_mib"]:
        yield (
            f"{disk_['needed_mib']:,.0f} MiB are needed for checkpoints but "
            f"{disk_['free_mib']:,.0f} are free where `out` is: give another folder or lower "
            "checkpoint.keep"
        )
    share = result["unreadable"]["count"] / max(1, result["schedule"]["images"])
    if share > config.data.max_unreadable:
        yield (
            f"{result['unreadable']['count']} images cannot be read, more than data.max_unreadable "
            f"allows; {result['unreadable']['examples'][0]}"
        )
