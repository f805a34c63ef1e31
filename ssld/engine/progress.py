"""What a run says while it runs: progress bar, metrics.jsonl, trackers, and the alarm for NaN."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ssld.common.errors import InputError, RunFailed
from ssld.common.metrics import LOGGED
from ssld.common.packages import say_left_out
from ssld.common.streams import bar_output
from ssld.data.loading import AnyBatch
from ssld.data.unreadable import Unreadables
from ssld.engine.processes import failing_together, raise_on_all, trackers_of
from ssld.engine.run_folder import PICTURES, lines_of
from ssld.engine.start import Run
from ssld.engine.task import Blame
from ssld.engine.timing import StepClock
from ssld.models.teacher import samples

CLOCK_KEYS = {"seconds", "images_per_second", "images_per_second_per_device", "supervised_ratio"}

NO_CEILING = (
    "the product was slowed down by something else, or the networks take fewer operations than are "
    "counted"
)


def depends_on_the_clock(key: str) -> bool:
    """Whether a value of metrics.jsonl may differ between two runs that are otherwise the same."""
    return key in CLOCK_KEYS or key.endswith("_percent")


class Forward(NamedTuple):
    """What is kept of one forward pass until the next line; its images are let go."""

    step: int
    terms: dict[str, Tensor]
    """{term: loss, float [b]}."""
    weight: Tensor
    """[b], 0 for what could not be read."""
    ids: list[str]
    blame: Blame | None
    """Asked when a loss is not finite."""
    groups: Mapping[str, Tensor]
    """See `Task.groups`."""
    weights: Tensor
    """[b]; see `Task.weights`."""

    @property
    def loss(self) -> Tensor:
        """The sum of the terms, float64 [b]."""
        return torch.stack(list(self.terms.values())).double().sum(0)


class Progress:
    """Collects losses on the device and looks at them only when a line is due, so that the
    processor never waits for the accelerator in between."""

    def __init__(
        self, run: Run, clock: StepClock, first_step: int, unreadables: Unreadables
    ) -> None:
        self.run = run
        self.clock = clock
        self.unreadables = unreadables
        self.steps_logged = first_step
        self.kept: list[Forward] = []
        self.started = self.saved = time.monotonic()
        self.peak_refuted = False
        self.rate_name = "img_s"
        """Of `images_per_second` in the bar."""

    def __enter__(self) -> Progress:
        accelerator, asked = self.run.accelerator, self.run.config.trackers
        trackers = trackers_of(self.run.config)
        if len(trackers) < len(asked) and accelerator.is_main_process:
            say_left_out("tensorboard", "no events are written, metrics.jsonl has all of them")
        accelerator.init_trackers("tensorboard" if "tensorboard" in trackers else "ssld")
        if "tensorboard" in trackers and accelerator.is_main_process:
            # metrics.jsonl is the truth: what a killed run had not flushed, or had to repeat, is
            # neither missing nor double.
            tracker: Any = accelerator.get_tracker("tensorboard", unwrap=True)
            writer = tracker.file_writer
            for line in lines_of(self.run.folder.metrics):
                _write_again(writer, line)
            for path in sorted((self.run.folder.path / PICTURES).glob("step-*.jpg")):
                step = int(path.stem.removeprefix("step-"))
                if step <= self.steps_logged:
                    sheet = np.asarray(Image.open(path))
                    tracker.add_image(PICTURES, sheet, step, dataformats="HWC")
            writer.flush()
        self.bar = tqdm(
            total=self.run.total_steps,
            initial=self.steps_logged,
            unit="step",
            desc=self.run.name or None,
            disable=not accelerator.is_main_process,
            **bar_output(),
        )
        self.started = self.saved = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.close()
        accelerator = self.run.accelerator
        with contextlib.suppress(InputError) if kind else failing_together(accelerator):
            if accelerator.is_main_process:
                self.unreadables.write()

    def add(
        self,
        step: int,
        terms: dict[str, Tensor],
        batch: AnyBatch,
        weights: Tensor,
        blame: Blame | None,
        groups: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Keep one forward pass's losses, {term: [b]}, until the next line."""
        losses = {name: loss.detach() for name, loss in terms.items()}
        forward = Forward(step, losses, batch.weight, batch.ids, blame, groups, weights)
        self.kept.append(forward)

    def log(
        self, step: int, lr: float, stop: bool, more: Mapping[str, Tensor] = MappingProxyType({})
    ) -> tuple[bool, bool]:
        """Write the line of the steps since the last one.

        Args:
            lr: the last step's learning rate.
            stop: whether this process was asked to stop.
            more: see `Task.logged`.

        Returns:
            whether any process was asked to stop; whether `checkpoint.every_minutes` are over on
            the main process. The same on all processes.

        Raises:
            RunFailed: a loss was not finite; names the term, the step and the samples. Or the line
                cannot be written.
            InputError: a loss was not finite for want of a teacher's numbers.
        """
        run, names = self.run, list(self.kept[0].terms)
        sums = [
            sum((x.terms[name].double() * x.weights).sum() for x in self.kept) for name in names
        ]
        images = sum(x.weight.double().sum() for x in self.kept)
        kinds = self._kinds()
        overdue = time.monotonic() - self.saved > 60 * run.config.checkpoint.every_minutes
        votes = [float(stop), float(overdue and run.rank == 0), float(len(self.unreadables.new))]
        totals = torch.stack([torch.as_tensor(x) for x in [*sums, images]])
        extra = torch.tensor(votes, dtype=totals.dtype, device=totals.device)
        every = [totals, extra, *kinds.values()]
        reduced: Any = run.accelerator.reduce(torch.cat(every), "sum")
        values = reduced.tolist()
        of_kinds = values[len(totals) + len(extra) :]
        *sums, images, stops, overdue, unreadable = values[: len(totals) + len(extra)]
        if not all(map(_finite, sums)):
            self._alarm()
        if unreadable:
            new = (
                gather_object(self.unreadables.new) if run.world_size > 1 else self.unreadables.new
            )
            with failing_together(run.accelerator):
                if run.accelerator.is_main_process:  # the whole log at each line would take long
                    self.unreadables.append(new)
            self.unreadables.merge(new)
        counted = (step - self.steps_logged) * run.config.batch_size // run.world_size
        if sum(len(x.weight) for x in self.kept) > counted:  # unlabeled images, or of classes
            self.rate_name = "labeled_img_s"
        terms = {name: x / max(images, 1) for name, x in zip(names, sums, strict=True)}
        line = {
            "kind": "train",
            "step": step,
            "epoch": round(step / run.steps_per_epoch, 4),
            "loss": sum(terms.values()),
            **terms,
            **{
                f"loss_{name}": total / count
                for name, total, count in zip(kinds, of_kinds[::2], of_kinds[1::2], strict=True)
                if count
            },
            **{key: float(value) for key, value in more.items()},
            "lr": lr,
            "unreadable": self.unreadables.count,
            **self._speed(step - self.steps_logged),
        }
        with failing_together(run.accelerator):
            self._write(line)
        self.kept.clear()
        self.steps_logged = step
        self.restart_clock()
        return stops > 0, overdue > 0

    def _kinds(self) -> dict[str, Tensor]:
        """Of each group of images: the sum of their losses, and their number, float64 [2]."""
        kinds: dict[str, Tensor] = {}
        for forward in self.kept:
            for name, inside in forward.groups.items():
                weight = forward.weight.double() * inside
                both = torch.stack([(forward.loss * weight).sum(), weight.sum()])
                kinds[name] = kinds.get(name, 0) + both
        return kinds

    def _speed(self, steps: int) -> dict[str, float]:
        """Rates of the steps since the last line, and where their time went on this process."""
        run, seconds = self.run, self.clock.take()
        whole = max(time.monotonic() - self.started, 1e-9)
        rate = steps * run.config.batch_size / whole
        seconds["other"] = max(0.0, whole - sum(seconds.values()))
        speed = {
            "images_per_second": round(rate, 2),
            "images_per_second_per_device": round(rate / run.world_size, 2),
            **{f"{name}_percent": round(100 * x / whole, 2) for name, x in seconds.items()},
            "seconds": round(whole, 3),
        }
        flops, peak = run.facts["flops_per_image"] * rate / run.world_size, run.facts["peak_flops"]
        if flops <= peak:
            speed["mfu_percent"] = round(100 * flops / peak, 2)
        elif not self.peak_refuted:
            self.peak_refuted = True
            rates = f"{flops / 1e12:.3g} TFLOP/s by count, {peak / 1e12:.3g} in a large product"
            run.accelerator.print(f"no mfu_percent where it is beyond 100 ({rates}): {NO_CEILING}")
        if self.clock.frozen:
            frozen = sum(seconds[name] for name in self.clock.frozen)
            speed["supervised_ratio"] = round((whole - frozen) / whole, 4)
        return speed

    def restart_clock(self) -> None:
        """Leave what happened since the last line out of the training rate."""
        self.clock.spans.clear()
        self.started = time.monotonic()

    def saved_now(self) -> None:
        """A checkpoint was written: `checkpoint.every_minutes` count from here."""
        self.saved = time.monotonic()

    def log_evaluation(self, step: int, metrics: dict[str, float], verdict: str) -> None:
        """Write the line of an evaluation."""
        epoch = round(step / self.run.steps_per_epoch, 4)
        self._write({"kind": "eval", "step": step, "epoch": epoch, **metrics, "verdict": verdict})
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in LOGGED if name in metrics)
        if self.run.accelerator.is_main_process:
            whose = f"{self.run.name}, " if self.run.name else ""
            tqdm.write(f"{whose}step {step}: {shown}: {verdict}", file=sys.stdout)

    def _write(self, line: dict[str, Any]) -> None:
        self.run.folder.log(line)
        self.run.accelerator.log(_scalars(line), step=line["step"])
        if line["kind"] == "train":
            self.bar.set_postfix(
                {self.rate_name: f"{line['images_per_second']:.0f}"},
                loss=f"{line['loss']:.4f}",
                lr=f"{line['lr']:.3g}",
                data_wait=f"{line['data_wait_percent']:.0f}%",
                refresh=False,
            )
            self.bar.update(line["step"] - self.steps_logged)

    def _alarm(self) -> None:
        """Say on all processes what the first one knows that has such a loss."""
        guilty, problem = self._not_finite()
        raise_on_all(self.run.accelerator, guilty)
        raise_on_all(self.run.accelerator, problem, RunFailed)
        raise RunFailed(
            f"the sum of the losses since step {self.steps_logged} is not finite; lower schedule.lr"
        )

    def _not_finite(self) -> tuple[str | None, str | None]:
        """What is wrong with a teacher, and what is with the run, in a sentence."""
        fp16 = self.run.config.precision == "fp16"
        precision = "use precision bf16 or fp32, " if fp16 else ""
        for step, terms, weight, ids, blame, *_ in self.kept:
            for name, loss in terms.items():
                bad = (~torch.isfinite(loss) & (weight > 0)).nonzero().flatten().tolist()
                if not bad:
                    continue
                saved = any(self.run.folder.path.glob("checkpoints/step-*"))
                end = "or look at these images; " + (
                    "the last checkpoint is intact" if saved else "no checkpoint was due before it"
                )
                guilty = blame(weight, ids) if blame else None
                if guilty:
                    return f"{guilty[0]}, at step {step}; {guilty[1]}, {end}", None
                return None, (
                    f"the loss term {name!r} is not finite at step {step} for the samples "
                    f"{samples([ids[i] for i in bad])}; lower schedule.lr, {precision}{end}"
                )
        return None, None


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    return {
        f"{line['kind']}/{key}": value
        for key, value in line.items()
        if key not in ("kind", "step") and isinstance(value, int | float)
    }


def _write_again(writer: Any, line: dict[str, Any]) -> None:
    """All scalars of a line as one event, a fifth of the time that single ones take."""
    # Only where the tracker is asked for, and it takes long to import.
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

    values = _scalars(line).items()
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in values])
    writer.add_summary(summary, global_step=line["step"])


def _finite(value: float) -> bool:
    return abs(value) != float("inf") and value == value
