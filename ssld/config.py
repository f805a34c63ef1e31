"""Every setting of a training run, as frozen dataclasses: the only truth about settings. Those of
the commands that look at runs and models are in `ssld/command_config.py`.

Recipes (`configs/*.yaml`) and `--a.b value` overrides fill them (`ssld/cli.py`); the resolved
values are written into each run folder as `config.yaml`. This file imports neither torch nor timm,
so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Precision = Literal["fp32", "bf16", "fp16"]
Triple = tuple[float, float, float]


def require(holds: bool, message: str) -> None:
    """Raise ValueError with `message` unless something holds."""
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True)
class StudentConfig:
    """The network that is trained."""

    arch: str | None = None
    """timm name, `hf-hub:org/name[@rev]` or `local-dir:folder`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    pretrained: bool = False
    """Start from the weights that timm or the hub publishes for `arch`."""
    checkpoint: str | None = None
    """Start from these weights: a safetensors file, an exported model folder or a run folder."""
    num_classes: int | None = None
    """Number of classes; by default the teacher's, or the labeled set's in supervised training."""


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen network whose predictions are the targets."""

    arch: str | None = None
    """timm name, `hf-hub:` or `local-dir:` id; a run folder as `checkpoint` knows its own."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    checkpoint: str | None = None
    """A safetensors file, an exported model folder or a run folder; by default timm's weights."""
    input_size: int | None = None
    """Side in px that the teacher sees; by default what its weights' metadata says."""
    mean: Triple | None = None
    """Mean of its normalisation in [0, 1]; by default what its weights' metadata says."""
    std: Triple | None = None
    """Deviation of its normalisation in [0, 1]; by default what its weights' metadata says."""
    dtype: Precision | None = None
    """Number format of its forward pass; by default the run's `precision`."""
    batch_norm: Literal["eval", "batch"] = "eval"
    """eval: running statistics. batch: each batch's own, as the reference implementation does."""
    micro_batch: int | None = None
    """Images per forward pass, to save memory; by default the whole batch."""
    verify: bool = True
    """Refuse to start when its top-1 on labeled images is near chance."""

    def __post_init__(self) -> None:
        require(
            self.micro_batch is None or self.micro_batch > 0,
            f"teacher.micro_batch is {self.micro_batch}: give a number above 0, or null",
        )
        require(
            self.micro_batch is None or self.batch_norm == "eval",
            "teacher.micro_batch changes the statistics of `teacher.batch_norm: batch`: "
            "set one of them only",
        )


@dataclass(frozen=True)
class DataConfig:
    """Where images come from. A source is a folder of images, a Parquet manifest or tar shards."""

    labeled: str | list[str] = field(default_factory=list)
    """Labeled sources (T). Distillation never reads their labels for training."""
    unlabeled: str | list[str] = field(default_factory=list)
    """Unlabeled sources (U)."""
    unlabeled_share: float = 1.0
    """Share of each unlabeled source to train on; a smaller share is part of a larger one."""
    val: str | list[str] = field(default_factory=list)
    """Held-out sources for evaluation, never trained on."""
    holdout: int = 1000
    """Training images set aside for evaluation where `val` is empty, unlabeled ones if there are
    any; at most a twentieth of them. 0 trains on all and goes without a verdict."""
    fractions: list[float] | None = None
    """Share of the samples drawn from each source, labeled first; by default by size."""
    workers: int = 4
    """Loader processes per training process; 0 loads in the training process itself."""
    max_unreadable: float = 0.1
    """Stop when more than this share of a source's files cannot be read."""

    def __post_init__(self) -> None:
        for name in ("labeled", "unlabeled", "val"):
            value = getattr(self, name)
            object.__setattr__(self, name, [value] if isinstance(value, str) else list(value))
        require(self.workers >= 0, f"data.workers is {self.workers}: give 0 or more")
        require(self.holdout >= 0, f"data.holdout is {self.holdout}: give 0 or more")
        require(
            0 < self.unlabeled_share <= 1,
            f"data.unlabeled_share is {self.unlabeled_share}: give a share above 0, at most 1",
        )
        require(
            0 <= self.max_unreadable <= 1,
            f"data.max_unreadable is {self.max_unreadable}: give a share between 0 and 1",
        )
        if self.fractions is not None:
            sources = len(self.labeled) + len(self.unlabeled)
            require(
                len(self.fractions) == sources
                and min(self.fractions) >= 0
                and sum(self.fractions) > 0,
                f"data.fractions is {self.fractions}: give one share >= 0 for each of the "
                f"{sources} sources in data.labeled and data.unlabeled, not all 0",
            )


@dataclass(frozen=True)
class AugmentConfig:
    """How a training view is made from an image (SSLD section 4.2; ppcls RandCropImage)."""

    size: int | None = None
    """Side of a view in px; by default the student's input size."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width to height."""
    interpolation: Interpolation = "bilinear"
    """How the crop is resized to `size`."""
    antialias: bool = False
    """Low-pass filter before downscaling; the reference does not."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    """AutoAugment (ImageNet policy) or RandAugment of torchvision v2, after crop and flip."""
    randaugment_ops: int = 2
    """Operations per image of RandAugment."""
    randaugment_magnitude: int = 9
    """Strength of RandAugment, 0 to 30."""

    def __post_init__(self) -> None:
        require(self.size is None or self.size > 0, f"augment.size is {self.size}: give px above 0")
        low, high = self.scale
        require(
            0 < low <= high <= 1, f"augment.scale is {self.scale}: give 0 < lowest <= highest <= 1"
        )
        low, high = self.ratio
        require(0 < low <= high, f"augment.ratio is {self.ratio}: give 0 < lowest <= highest")
        require(0 <= self.flip <= 1, f"augment.flip is {self.flip}: give a probability")
        require(
            self.randaugment_ops > 0 and 0 <= self.randaugment_magnitude <= 30,
            "augment.randaugment_ops must be above 0 and randaugment_magnitude from 0 to 30",
        )


@dataclass(frozen=True)
class LossConfig:
    """The divergence between the teacher's and the student's prediction (`ssld/divergence.py`)."""

    name: Literal["js", "symmetric_kl", "kl", "soft_ce"] = "kl"
    """js is the true Jensen-Shannon divergence; the reference's "JS" is symmetric_kl."""
    temperature: float = 1.0
    """Divides both networks' logits; SSLD section 3.3.2 uses none, that is 1."""
    weight: float = 1.0
    """Factor on the loss."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"loss.temperature is {self.temperature}: give one above 0")
        require(self.weight > 0, f"loss.weight is {self.weight}: give one above 0")


@dataclass(frozen=True)
class OptimizerConfig:
    """SSLD section 4.2: SGD, momentum 0.9."""

    name: str = "momentum"
    """Any timm optimizer; `momentum` is SGD without, `sgd` with Nesterov's momentum."""
    momentum: float = 0.9
    """Momentum, where the optimizer has one."""
    weight_decay: float = 4e-5
    """L2 factor (SSLD section 4.2: 4e-5 for large, 1e-5 for small students)."""
    no_decay: Literal["none", "norm", "norm_and_bias"] = "none"
    """What is exempt from decay: nothing, norm scales and shifts, or these and every bias."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer."""

    def __post_init__(self) -> None:
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}: give >= 0")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate: linear warm-up from 0, then a cosine to 0, set anew at every step."""

    lr: float = 0.1
    """Peak learning rate per 256 samples; scaled by `batch_size` / 256."""
    warmup_epochs: float = 5.0
    """Length of the warm-up, at most a tenth of the run."""

    def __post_init__(self) -> None:
        require(self.lr > 0, f"schedule.lr is {self.lr}: give a number above 0")
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
    best: Literal["agreement1", "agreement5", "divergence", "top1", "last"] = "agreement1"
    """The metric on held-out images by which the checkpoint is chosen that `student/` holds;
    supervised training takes top1 for agreement1. last: whatever came last."""

    def __post_init__(self) -> None:
        require(
            self.every_steps > 0 and self.every_minutes > 0 and self.keep > 0,
            "checkpoint.every_steps, every_minutes and keep must be above 0",
        )


@dataclass(frozen=True)
class ProbeConfig:
    """What the student's frozen features are worth, where labels exist.

    k nearest neighbours and a linear classifier on labeled training images, tested on labeled
    held-out ones.
    """

    every_epochs: float = 10.0
    """Epochs between probes, from the first evaluation on that is due; 0 makes none."""
    images: int = 5000
    """Labeled images to learn from, and as many at most to test on."""
    neighbours: int = 20
    """k (DINO, Caron et al. 2021, appendix E)."""

    def __post_init__(self) -> None:
        require(
            self.every_epochs >= 0 and self.images > 0 and self.neighbours > 0,
            "probe.every_epochs must be 0 or more, probe.images and probe.neighbours above 0",
        )


@dataclass(frozen=True)
class RunConfig:
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
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        allowed = self.allow_changes
        object.__setattr__(
            self, "allow_changes", [allowed] if isinstance(allowed, str) else allowed
        )
        require(
            (self.epochs is None) != (self.steps is None),
            f"epochs is {self.epochs} and steps is {self.steps}: give exactly one of them",
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
        require(
            bool(self.student.arch or self.student.checkpoint),
            "student.arch is missing: name a timm architecture, for example resnet50d",
        )
        require(
            bool(self.data.labeled or self.data.unlabeled),
            "data.labeled and data.unlabeled are both empty: name at least one source of images",
        )


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """`python -m ssld.distill`: train a student to predict what a frozen teacher predicts."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teachers: list[TeacherConfig] = field(default_factory=list)
    """Several teachers, averaged in probability space, instead of `teacher`."""
    teacher_view: Literal["same", "other"] = "same"
    """same: the teacher sees the student's very view. other: another one of the same image."""
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_teacher()

    def _check_teacher(self) -> None:
        single = bool(self.teacher.arch or self.teacher.checkpoint)
        require(
            single != bool(self.teachers),
            "give teacher.arch or teacher.checkpoint for one teacher, or `teachers` for several, "
            "and not both",
        )


@dataclass(frozen=True)
class SupervisedConfig(RunConfig):
    """`python -m ssld.supervised`: train with human labels, for teachers and honest baselines."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes."""
    mixup: float = 0.0
    """alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    """alpha of cutmix; 0 is off. With mixup also on, each batch draws one of the two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing is {self.label_smoothing}: give 0 <= share < 1",
        )
        require(self.mixup >= 0 and self.cutmix >= 0, "mixup and cutmix must be 0 or more")
        require(
            bool(self.data.labeled) and not self.data.unlabeled,
            "supervised training reads data.labeled only: give it, and leave data.unlabeled empty",
        )
