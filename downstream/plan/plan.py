"""`ssld plan detection | segmentation | transfer`: what fits into memory, and how long a run takes.

Measured with the run's own loader, step and evaluation; nothing is written into `out`. On a CPU,
where a step too large would take the machine down, memory is derived from steps on a few images,
which a forward pass of one image has shown to fit.
"""

from __future__ import annotations

import contextlib
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
from downstream.detection.batches import BoxBatches
from downstream.detection.data.transforms import TrainBoxView
from downstream.detection.task import DetectionTask
from downstream.plan.config import PlanDetectionConfig, PlanSegmentationConfig, PlanTransferConfig
from downstream.plan.text import describe
from downstream.segmentation import command as segmentation
from downstream.transfer import transfer
from downstream.transfer.config import TransferConfig
from ssld.common.errors import InputError
from ssld.common.memory import free_bytes
from ssld.common.metrics import wilson
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
OVER_FORWARD = 2.0
"""A step needs no more than so many times what a forward pass keeps for it: gradients, targets,
losses and the largest layer's workspace come on top (1.1 to 1.7 times were measured)."""
USUALLY_OVER_FORWARD = 1.3
"""What is taken for it where no step can be tried."""


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
        self.sure = 0
        """Images of a forward pass that fit on a CPU, whatever the step needs besides."""
        self.image_seconds = 0.0
        self.looked_at: set[str] = set()
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
        return self._noted(self.task.train_batches(self.sized(count), 0, 10**9))

    def _noted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.looked_at.update(batch.ids)
            self.trainer.unreadables.add(batch.unreadable)
            yield batch

    def step(self, batches: Iterator[Any]) -> None:
        self.trainer.step = 0  # a short run may be measured for longer than its rates are defined
        self.trainer.train_step(batches, self.progress)
        self.progress.kept.clear()

    def try_step(self, count: int) -> None:
        """Twice, as the optimizer takes its memory at the end of the first one, on the largest of
        the training views."""
        with self._largest_views():
            batches = self.batches(count)
        self.step(batches)
        start = time.perf_counter()
        self.step(batches)
        self.image_seconds = (time.perf_counter() - start) / count

    def measure(self, seconds: float) -> dict[str, Any]:
        """
        Returns:
            schedule; memory; rates in images per second over all processes: `loader`, `together`
            and `evaluation`, none where no step fits; hours.
        """
        run = self.run
        result: dict[str, Any] = {"schedule": self._schedule(), "rates": {}}
        memory = result["memory"] = self._memory()
        count = self._measured_images(memory, seconds)
        if count:
            sized, batches = self.sized(count), self.batches(count)
            rates = result["rates"]
            rates["loader"] = rate(sized, lambda: next(batches), seconds)
            rates["together"] = rate(sized, lambda: self.step(batches), seconds, warm_up=0)
            rates["evaluation"] = self._evaluation(seconds)
            most = count if memory["projected"] else max(count, 2 * SMALL)
            more = (memory["image_mib"] or 0) * (self.each - most)
            memory["peak_mib"] = peak_mib(run.accelerator.device) + more
            memory["measured_batch"] = most * run.config.accumulate * run.world_size
            result["hours"] = _hours(result["schedule"], rates)
        result["unreadable"] = self._unreadable()
        return result

    def _measured_images(self, memory: dict[str, Any], seconds: float) -> int:
        """Images of the forward passes that are measured: on a GPU the run's own, on a CPU no more
        than fit, nor than take about `seconds`; 0 where none can be measured."""
        run = self.run
        if run.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.accelerator.device)  # of tries beyond the run's
            return self.each
        fits = memory["largest_batch"]
        most = self.sure if fits is None else fits // (run.config.accumulate * run.world_size)
        if memory["projected"]:
            count = min(self.each, most, SMALL)
        else:
            in_time = round(seconds / self.image_seconds)
            count = min(self.each, most, max(2 * SMALL, in_time))
        count = int(_least(run, count))
        return 0 if count < min(self.each, SMALL) else count

    def _unreadable(self) -> dict[str, Any]:
        seen = self.trainer.unreadables
        return {
            "count": seen.count,
            "looked_at": max(len(self.looked_at), seen.count),
            "examples": [f"{where} ({why})" for _, _, where, why in seen.entries.values()][:3],
        }

    def _schedule(self) -> dict[str, Any]:
        run, config = self.run, self.run.config
        return {
            "images": sum(map(len, run.sources)),
            "held_out_images": sum(map(len, run.val)),
            "steps": run.total_steps,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "epochs": run.total_steps / run.steps_per_epoch,
            "evaluations": _evaluations(run),
            "probed_images": _probed_images(run),
            "parameters": sum(x.numel() for x in self.network.parameters()),
            "size": list(_size(run)),
            "processes": run.world_size,
            "device": run.accelerator.device.type,
            "workers": config.data.workers,
            "cores": len(os.sched_getaffinity(0)),
        }

    def _memory(self) -> dict[str, Any]:
        """See `largest_batch`; on a CPU nothing is tried that a forward pass forbids.

        Returns:
            besides: projected, whether no step was tried.
        """
        run = self.run
        if run.accelerator.device.type == "cuda":
            require_memory(self)
            return {**largest_batch(self), "projected": False}
        free = _least(run, SPARE * free_bytes() / run.world_size)
        self.sure = int(free / (OVER_FORWARD * self.held))
        if self.sure >= 2 * SMALL:
            return {**largest_batch(self, derive_from=SMALL), "projected": False}
        each = USUALLY_OVER_FORWARD * self.held
        return {
            "largest_batch": int(free / each) * run.config.accumulate * run.world_size,
            "how": f"projected from the {self.held / 2**20:,.0f} MiB that a forward pass keeps of "
            "an image",
            "image_mib": each / 2**20,
            "projected": True,
        }

    @contextlib.contextmanager
    def _largest_views(self) -> Iterator[None]:
        """Batches begun inside have the largest of `augment.sizes`: a run is killed by those, and
        steps on views of several sizes cannot be compared."""
        task = self.task
        usual = task.make_train if isinstance(task, DetectionTask) else None
        if isinstance(task, DetectionTask) and isinstance(usual, BoxBatches):
            augment = replace(task.augment, sizes=[max(task.augment.sizes)])
            view = TrainBoxView(augment, self.run.config.seed)
            task.make_train = BoxBatches(usual.sources, view, usual.human)
        try:
            yield
        finally:
            if isinstance(task, DetectionTask) and usual is not None:
                task.make_train = usual

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


def _least(run: Run, number: float) -> float:
    """Of what all processes know: they take the same steps."""
    own = torch.tensor([number], dtype=torch.float64, device=run.accelerator.device)
    known: Any = run.accelerator.gather(own)
    return known.min().item()


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


def _evaluations(run: Run) -> int:
    """How many the loop makes: only where a line of metrics.jsonl is due, and one at the end."""
    if not run.val:
        return 0
    return len(_due(run, run.config.evaluate_every_epochs))


def _due(run: Run, every_epochs: float) -> list[int]:
    every, steps = every_epochs * run.steps_per_epoch, range(1, run.total_steps + 1)
    return [step for step in steps if run.should_log(step) and run.due(step, every)]


def _probed_images(run: Run) -> int:
    """Images of which the probes of a transfer take features, one probe before the first step."""
    config = run.config
    if not isinstance(config, TransferConfig) or not config.probe.every_epochs:
        return 0
    evaluated = set(_due(run, config.evaluate_every_epochs))
    probes = 1 + len(evaluated.intersection(_due(run, config.probe.every_epochs)))
    most = config.probe.images
    return probes * sum(min(most, sum(map(len, part))) for part in (run.sources, run.val))


def _hours(schedule: dict[str, Any], rates: dict[str, float]) -> dict[str, float]:
    """Of the whole schedule."""
    training = schedule["steps"] * schedule["batch_size"] / rates["together"] / 3600
    judged = schedule["evaluations"] * schedule["held_out_images"] + schedule["probed_images"]
    evaluations = judged / rates["evaluation"] / 3600 if rates["evaluation"] else 0.0
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
    bad, of = result["unreadable"]["count"], result["unreadable"]["looked_at"]
    if bad and wilson(bad, of)[0] > config.data.max_unreadable:  # not of one in a few by chance
        yield (
            f"{bad} of {of} images looked at cannot be read, more than data.max_unreadable allows; "
            f"{result['unreadable']['examples'][0]}"
        )
