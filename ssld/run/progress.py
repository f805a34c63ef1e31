"""What a run says while it runs: progress bar, metrics.jsonl, trackers, and the alarm for NaN."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ssld.data.loading import Batch
from ssld.errors import InputError

if TYPE_CHECKING:
    from ssld.run.setup import Run


class Progress:
    """Collects losses on the device and looks at them only when a line is due, so that the
    processor never waits for the accelerator in between."""

    def __init__(self, run: Run, first_step: int) -> None:
        self.run = run
        self.steps_logged = first_step
        self.kept: list[tuple[int, dict[str, Tensor], Batch]] = []
        self.waited_seconds = 0.0
        self.started = time.monotonic()
        self.bar = tqdm(
            total=run.total_steps,
            initial=first_step,
            unit="step",
            disable=not run.accelerator.is_main_process,
            mininterval=0.5,
        )

    def __enter__(self) -> Progress:
        trackers = self.run.accelerator
        trackers.init_trackers(
            "tensorboard" if "tensorboard" in self.run.config.trackers else "ssld"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time it took counts as waiting for data."""
        before = time.monotonic()
        batch = next(batches)
        self.waited_seconds += time.monotonic() - before
        return batch

    def add(self, step: int, terms: dict[str, Tensor], batch: Batch) -> None:
        """Keep one forward pass's losses, {term: [b]}, until the next line."""
        self.kept.append((step, {name: loss.detach() for name, loss in terms.items()}, batch))

    def log(self, step: int, optimizer: Any, unreadable: int) -> None:
        """Write the line of the steps since the last one.

        Raises:
            InputError: a loss was not finite; names the term, the step and the samples.
        """
        if not self.kept:
            return
        run, names = self.run, list(self.kept[0][1])
        sums = [sum((t[name].double() * b.weight).sum() for _, t, b in self.kept) for name in names]
        images = sum(b.weight.double().sum() for _, _, b in self.kept)
        totals = torch.stack([torch.as_tensor(x) for x in [*sums, images]])
        extra = torch.tensor([float(unreadable)], dtype=totals.dtype, device=totals.device)
        reduced: Any = run.accelerator.reduce(torch.cat([totals, extra]), "sum")
        *sums, images, unreadable = reduced.tolist()
        if not all(map(_finite, sums)):
            self._alarm()
        now = time.monotonic()
        seconds = max(now - self.started, 1e-9)
        samples = (step - self.steps_logged) * run.config.batch_size
        terms = {name: x / max(images, 1) for name, x in zip(names, sums, strict=True)}
        line = {
            "kind": "train",
            "step": step,
            "epoch": round(step / run.steps_per_epoch, 4),
            "loss": sum(terms.values()),
            **terms,
            "lr": optimizer.param_groups[0]["lr"],
            "images_per_second": round(samples / seconds, 2),
            "data_wait_percent": round(100 * self.waited_seconds / seconds, 2),
            "unreadable": int(unreadable),
            "seconds": round(seconds, 3),
        }
        self._write(line)
        self.bar.set_postfix(
            loss=f"{line['loss']:.4f}",
            lr=f"{line['lr']:.3g}",
            img_s=f"{line['images_per_second']:.0f}",
            data_wait=f"{line['data_wait_percent']:.0f}%",
            refresh=False,
        )
        self.bar.update(step - self.steps_logged)
        self.kept.clear()
        self.waited_seconds, self.started, self.steps_logged = 0.0, now, step

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the line of an evaluation; its time does not count into the training rate."""
        if metrics:
            epoch = round(step / self.run.steps_per_epoch, 4)
            self._write({"kind": "eval", "step": step, "epoch": epoch, **metrics})
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            if self.run.accelerator.is_main_process:
                tqdm.write(f"step {step}: {shown}")
        self.started = time.monotonic()
        self.waited_seconds = 0.0

    def _write(self, line: dict[str, Any]) -> None:
        self.run.folder.log(line)
        values = {f"{line['kind']}/{k}": v for k, v in line.items() if k not in ("kind", "step")}
        self.run.accelerator.log(values, step=line["step"])

    def _alarm(self) -> None:
        for step, terms, batch in self.kept:
            for name, loss in terms.items():
                bad = (~torch.isfinite(loss) & (batch.weight > 0)).nonzero().flatten().tolist()
                if bad:
                    ids = ", ".join(batch.ids[i] for i in bad[:8])
                    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
                    raise InputError(
                        f"the loss term {name!r} is not finite at step {step} for the samples "
                        f"{ids}{more}; lower schedule.lr, use precision bf16 or fp32, or look at "
                        "these images; the last checkpoint is intact"
                    )
        raise InputError("the loss is not finite on another process, which names the samples")


def _finite(value: float) -> bool:
    return abs(value) != float("inf") and value == value
