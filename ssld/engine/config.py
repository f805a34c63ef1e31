"""What every run on the one loop shares: optimizer, schedule, checkpoints and topology, as frozen
dataclasses. What a command trains, and on what, is in its own: `ssld/distill/config.py` for
distillation, `downstream/detection/config.py` for detectors, and so on. Imports neither
torch nor timm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssld.common.settings import (
    IN_SHORT_HELP,
    NonNegativeFloat,
    OneOrSeveral,
    PositiveFloat,
    PositiveInt,
    Precision,
    Settings,
    ShareBelowOne,
    require,
    require_effect,
)
from ssld.data.config import LoaderConfig


@dataclass(frozen=True)
class OptimizerConfig(Settings, section="optimizer"):
    """SSLD section 4.2: SGD, momentum 0.9."""

    name: str = "momentum"
    """Any timm optimizer; `momentum` is SGD without, `sgd` with Nesterov's momentum."""
    momentum: float = 0.9
    """Momentum, where the optimizer has one."""
    weight_decay: NonNegativeFloat = 4e-5
    """L2 factor (SSLD section 4.2: 4e-5 for large, 1e-5 for small students)."""
    no_decay: Literal["none", "norm", "bias", "norm_and_bias"] = "none"
    """What is exempt from decay: nothing, norm scales and shifts, every bias, or all of these."""
    bias_lr: PositiveFloat = 1.0
    """Factor on the learning rate of every bias (2 in Caffe's and TTFNet's recipes)."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient; larger ones are scaled down to it."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer."""


@dataclass(frozen=True)
class ScheduleConfig(Settings, section="schedule"):
    """Learning rate: linear warm-up from 0, then down as `decay` says, set anew at every step."""

    lr: PositiveFloat = field(default=0.1, metadata=IN_SHORT_HELP)
    """Peak learning rate per 256 samples; scaled by `batch_size` / 256."""
    warmup_epochs: NonNegativeFloat = 5.0
    """Length of the warm-up, at most a tenth of the run."""
    decay: Literal["cosine", "step", "poly"] = "cosine"
    """cosine: half of one, to 0. step: a tenth from each milestone on. poly: (1 - share done) ** .9
    (DeepLab, Chen et al. 2017, section 4.1)."""
    milestones: list[float] = field(default_factory=list)
    """Epochs after which `decay: step` drops the rate."""
    milestone_shares: list[ShareBelowOne] = field(default_factory=list)
    """The same as shares of the run, in place of `milestones`: [.7, .9]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            (self.decay == "step") == bool(self.milestones or self.milestone_shares),
            f"schedule.decay is {self.decay} and schedule.milestones is "
            f"{self.milestones or self.milestone_shares}: give milestones with `decay: step`, and "
            "with it only",
        )
        require(
            not (self.milestones and self.milestone_shares),
            f"schedule.milestones is {self.milestones} and schedule.milestone_shares is "
            f"{self.milestone_shares}: give epochs or shares, not both",
        )


@dataclass(frozen=True)
class EmaConfig(Settings, section="ema"):
    """Exponential moving average of the student's weights; when on, it is what is exported."""

    decay: ShareBelowOne = 0.0
    """Share of the old average kept at each step, 0.9999 say; 0 keeps no average. Early on it is
    1 - (1 + step) ** (-2/3) (timm's ModelEmaV3), or the average would remember the first weights.
    """
    schedule: Literal["constant", "step", "cosine", "auto"] = "constant"
    """How `decay` becomes `end_decay` (Guo et al. 2022, table 9). step: at the first milestone of
    the learning rate. cosine: along half of one, over the run. auto: step where the rate has
    milestones, else cosine."""
    end_decay: ShareBelowOne = 0.9
    """What it becomes; with `schedule: constant` it stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_effect(
            self,
            ["end_decay"],
            self.schedule != "constant",
            "ema.schedule is constant, so that ema.decay stays: give step, cosine or auto, or "
            "leave this out",
        )


@dataclass(frozen=True)
class CheckpointConfig(Settings, section="checkpoint"):
    """When training state is saved.

    It is with the first line of metrics.jsonl (`log_every_steps`) at which one of these is due, at
    the end, and on SIGTERM or SIGINT.
    """

    every_steps: PositiveInt = 1000
    """Steps between checkpoints."""
    every_minutes: PositiveFloat = 30.0
    """Minutes between checkpoints."""
    keep: PositiveInt = 2
    """How many of the latest are kept; the best is kept besides."""


@dataclass(frozen=True)
class LoopConfig(Settings):
    """What every training command shares."""

    out: str
    """Run folder; must be new or empty unless --resume or --overwrite is given."""
    seed: int = 0
    """Decides initial weights, order and views."""
    epochs: PositiveFloat | None = field(default=None, metadata=IN_SHORT_HELP)
    """Length of the run in passes over the data; give this or `steps`."""
    steps: PositiveInt | None = None
    """Length of the run in optimizer steps; give this or `epochs`."""
    batch_size: PositiveInt = field(default=256, metadata=IN_SHORT_HELP)
    """Images per optimizer step over all processes."""
    accumulate: PositiveInt = 1
    """Forward and backward passes per optimizer step."""
    precision: Precision = field(default="fp32", metadata=IN_SHORT_HELP)
    """Number format of the student's forward pass."""
    compile: bool = False
    """torch.compile for the networks."""
    channels_last: bool = False
    """Store images and weights channels last (faster on GPUs with tensor cores)."""
    sync_batch_norm: bool = True
    """Batch-norm statistics over all processes, so that their number does not matter."""
    log_every_steps: PositiveInt = 10
    """Steps between lines of metrics.jsonl; a signal is obeyed at the next one."""
    evaluate_every_epochs: PositiveFloat = 1.0
    """Epochs between evaluations on held-out images."""
    patience: PositiveInt | None = None
    """Evaluations in a row without a better one after which the run ends; null: it has its whole
    length. The learning rate goes down over the whole length all the same."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """accelerate trackers that also receive the metrics."""
    resume: bool = field(default=False, metadata=IN_SHORT_HELP)
    """Go on from the last checkpoint in `out`."""
    overwrite: bool = False
    """Delete what is in `out` first."""
    allow_changes: OneOrSeveral = field(default_factory=list)
    """Settings (`schedule.lr`), groups of them (`data`) or `teacher` that may differ on resume."""
    data: LoaderConfig = field(default_factory=LoaderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            (self.epochs is None) != (self.steps is None),
            f"epochs is {self.epochs} and steps is {self.steps}: give exactly one of them"
            if self.epochs or self.steps
            else "epochs and steps are missing: give one of them, the length of the run",
        )
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate is {self.accumulate}: give a number that divides batch_size "
            f"({self.batch_size})",
        )
        require(
            self.patience is None or getattr(self.checkpoint, "best", None) != "last",
            f"patience is {self.patience}, but checkpoint.best is last, so that no evaluation is "
            "better than another: give a metric there, or leave patience out",
        )
        require(
            self.checkpoint.every_steps >= self.log_every_steps,
            f"checkpoint.every_steps is {self.checkpoint.every_steps}: give at least "
            f"log_every_steps ({self.log_every_steps}), checkpoints are written with log lines",
        )
        require(
            self.ema.schedule != "step" or self.schedule.decay == "step",
            f"ema.schedule is step, but schedule.decay is {self.schedule.decay}, which has no "
            "milestone: give `schedule.decay: step` with one, or ema.schedule cosine or constant",
        )
        require(
            self.ema.decay > 0 or self.ema.schedule in ("constant", "auto"),
            f"ema.schedule is {self.ema.schedule}, but ema.decay is 0, which keeps no average: "
            "give ema.decay, 0.99 say, or leave ema.schedule out",
        )
        require(not (self.resume and self.overwrite), "give --resume or --overwrite, not both")
