"""Every setting of a distillation or supervised run, as frozen dataclasses: the only truth about
settings. What all runs share is in `ssld/loop_config.py`, the settings of the commands that look at
runs and models are in `ssld/command_config.py`.

Recipes (`configs/*.yaml`) and `--a.b value` overrides fill them (`ssld/cli.py`); the resolved
values are written into each run folder as `config.yaml`. This file imports neither torch nor timm,
so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssld.loop_config import (
    CheckpointConfig,
    LoaderConfig,
    LoopConfig,
    Precision,
    require,
    require_path,
)

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Triple = tuple[float, float, float]


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

    def __post_init__(self) -> None:
        require_path(self.checkpoint, "student.checkpoint", "student.arch, with student.pretrained")


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
        require_path(self.checkpoint, "teacher.checkpoint", "teacher.arch")
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
class DataConfig(LoaderConfig):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("labeled", "unlabeled", "val"):
            value = getattr(self, name)
            object.__setattr__(self, name, [value] if isinstance(value, str) else list(value))
        require(self.holdout >= 0, f"data.holdout is {self.holdout}: give 0 or more")
        require(
            0 < self.unlabeled_share <= 1,
            f"data.unlabeled_share is {self.unlabeled_share}: give a share above 0, at most 1",
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
    """The reference's AutoAugment (ImageNet policy, `ssld/data/autoaugment.py`) or torchvision's
    RandAugment, after crop and flip."""
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
class ClassifierCheckpointConfig(CheckpointConfig):
    """When training state is saved, and which is the best.

    It is with the first line of metrics.jsonl (`log_every_steps`) at which one of these is due, at
    the end, and on SIGTERM or SIGINT.
    """

    best: Literal["agreement1", "agreement5", "divergence", "top1", "last"] = "agreement1"
    """The metric on held-out images by which the checkpoint is chosen that `student/` holds, of
    those without symptoms (collapsed, at chance) while there is one. agreement1 counts beyond
    chance (Cohen's kappa); supervised training takes top1 for it. last: whatever came last."""


@dataclass(frozen=True)
class RunConfig(LoopConfig):
    """What the training commands of classifiers share."""

    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    checkpoint: ClassifierCheckpointConfig = field(default_factory=ClassifierCheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
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
