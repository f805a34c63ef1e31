"""What every run on the one loop shares: optimizer, schedule, checkpoints and topology, as frozen
dataclasses. What a command trains, and on what, is in its own: `ssld/distill/config.py` for distillation,
`downstream/detection/config.py` for detectors, and so on. Imports neither torch nor timm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssld.common.settings import Precision, require
from ssld.data.config import LoaderConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """SSLD section 4.2: SGD, momentum 0.9."""

    name: str = "momentum"
    """Any timm optimizer; `momentum` is SGD without, `sgd` with Nesterov's momentum."""
    momentum: float = 0.9
    """Momentum, where the optimizer has one."""
    weight_decay: float = 4e-5
    """L2 factor (SSLD section 4.2: 4e-5 for large, 1e-5 for small students)."""
    no_decay: Literal["none", "norm", "bias", "norm_and_bias"] = "none"
    """What is exempt from decay: nothing, norm scales and shifts, every bias, or all of these."""
    bias_lr: float = 1.0
    """Factor on the learning rate of every bias (2 in Caffe's and TTFNet's recipes)."""
    clip_norm: float | None = None
    """Largest norm of the gradient; larger ones are scaled down to it."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer."""

    def __post_init__(self) -> None:
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}: give >= 0")
        require(self.bias_lr > 0, f"optimizer.bias_lr is {self.bias_lr}: give a factor above 0")
        require(
            self.clip_norm is None or self.clip_norm > 0,
            f"optimizer.clip_norm is {self.clip_norm}: give a norm above 0, or null",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate: linear warm-up from 0, then down as `decay` says, set anew at every step."""

    lr: float = 0.1
    """Peak learning rate per 256 samples; scaled by `batch_size` / 256."""
    warmup_epochs: float = 5.0
    """Length of the warm-up, at most a tenth of the run."""
    decay: Literal["cosine", "step", "poly"] = "cosine"
    """cosine: half of one, to 0. step: a tenth from each milestone on. poly: (1 - share done) ** .9
    (DeepLab, Chen et al. 2017, section 4.1)."""
    milestones: list[float] = field(default_factory=list)
    """Epochs after which `decay: step` drops the rate."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"schedule.lr is {self.lr}: give a number above 0")
        require(
            (self.decay == "step") == bool(self.milestones),
            f"schedule.decay is {self.decay} and schedule.milestones is {self.milestones}: give "
            "milestones with `decay: step`, and with it only",
        )
        require(self.warmup_epochs >= 0, "schedule.warmup_epochs must be 0 or more")


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average of the student's weights; when on, it is what is exported."""

    decay: float = 0.0
    """Share of the old average kept at each step, 0.9999 say; 0 keeps no average. Early on it is
    1 - (1 + step) ** (-2/3) (timm's ModelEmaV3), or the average would remember the first weights.
    """

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"ema.decay is {self.decay}: give 0 <= decay < 1")


@dataclass(frozen=True)
class CheckpointConfig:
    """When training state is saved.

    It is with the first line of metrics.jsonl (`log_every_steps`) at which one of these is due, at
    the end, and on SIGTERM or SIGINT.
    """

    every_steps: int = 1000
    """Steps between checkpoints."""
    every_minutes: float = 30.0
    """Minutes between checkpoints."""
    keep: int = 2
    """How many of the latest are kept; the best is kept besides."""

    def __post_init__(self) -> None:
        require(
            self.every_steps > 0 and self.every_minutes > 0 and self.keep > 0,
            "checkpoint.every_steps, every_minutes and keep must be above 0",
        )


@dataclass(frozen=True)
class LoopConfig:
    """What every training command shares."""

    out: str
    """Run folder; must be new or empty unless --resume or --overwrite is given."""
    seed: int = 0
    """Decides initial weights, order and views."""
    epochs: float | None = None
    """Length of the run in passes over the data; give this or `steps`."""
    steps: int | None = None
    """Length of the run in optimizer steps; give this or `epochs`."""
    batch_size: int = 256
    """Images per optimizer step over all processes."""
    accumulate: int = 1
    """Forward and backward passes per optimizer step."""
    precision: Precision = "fp32"
    """Number format of the student's forward pass."""
    compile: bool = False
    """torch.compile for the networks."""
    channels_last: bool = False
    """Store images and weights channels last (faster on GPUs with tensor cores)."""
    sync_batch_norm: bool = True
    """Batch-norm statistics over all processes, so that their number does not matter."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl; a signal is obeyed at the next one."""
    evaluate_every_epochs: float = 1.0
    """Epochs between evaluations on held-out images."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """accelerate trackers that also receive the metrics."""
    resume: bool = False
    """Go on from the last checkpoint in `out`."""
    overwrite: bool = False
    """Delete what is in `out` first."""
    allow_changes: str | list[str] = field(default_factory=list)
    """Settings (`schedule.lr`), groups of them (`data`) or `teacher` that may differ on resume."""
    data: LoaderConfig = field(default_factory=LoaderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        allowed = self.allow_changes
        object.__setattr__(
            self, "allow_changes", [allowed] if isinstance(allowed, str) else allowed
        )
        require(
            (self.epochs is None) != (self.steps is None),
            f"epochs is {self.epochs} and steps is {self.steps}: give exactly one of them"
            if self.epochs or self.steps
            else "epochs and steps are missing: give one of them, the length of the run",
        )
        require(
            (self.epochs is None or self.epochs > 0) and (self.steps is None or self.steps > 0),
            "epochs and steps must be above 0",
        )
        require(self.batch_size > 0, f"batch_size is {self.batch_size}: give a number above 0")
        require(
            self.accumulate > 0 and self.batch_size % self.accumulate == 0,
            f"accumulate is {self.accumulate}: give a number that divides batch_size "
            f"({self.batch_size})",
        )
        require(self.log_every_steps > 0, "log_every_steps must be above 0")
        require(
            self.checkpoint.every_steps >= self.log_every_steps,
            f"checkpoint.every_steps is {self.checkpoint.every_steps}: give at least "
            f"log_every_steps ({self.log_every_steps}), checkpoints are written with log lines",
        )
        require(self.evaluate_every_epochs > 0, "evaluate_every_epochs must be above 0")
        require(not (self.resume and self.overwrite), "give --resume or --overwrite, not both")
