"""The settings of the stages that go on from a finished run: second stage and resolution fix.

Whatever is not given is as in that run (`ssld/distill/parent_run.py`), except what is said here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssld.common.settings import PositiveInt, require
from ssld.data.config import AugmentConfig
from ssld.distill.config import DistillConfig


@dataclass(frozen=True)
class FinetuneConfig(DistillConfig):
    """`python -m ssld.finetune`: the second stage, on the labeled set only (SSLD section 4.2).

    Every setting that is not given is as in `run`, but for a hundredth of its learning rate, 30
    epochs, its student as the start, and its labeled sources only.
    """

    run: str = ""
    """Finished run folder to go on from."""
    targets: Literal["teacher", "human"] = "teacher"
    """teacher: its predictions, as the reference implementation; human: the labels, as the paper
    words it. By default as in `run`: the teacher after a distillation."""

    def __post_init__(self) -> None:
        require(bool(self.run), "run is missing: name the run folder to go on from")
        require(
            bool(self.data.labeled),
            "data.labeled is empty: this stage trains on the labeled set only; name its sources",
        )
        super().__post_init__()
        require(
            not (self.data.unlabeled and (self.data.val or not self.data.holdout)),
            "data.unlabeled is given but this stage trains on data.labeled only: leave it out",
        )

    def _check_teacher(self) -> None:
        if self.targets == "teacher":
            super()._check_teacher()


@dataclass(frozen=True)
class FixConfig(FinetuneConfig):
    """`python -m ssld.fix`: the resolution fix (Touvron et al. 2019, "Fixing the train-test
    resolution discrepancy"): train the classifier at a larger size, on images as they are tested.

    Every setting that is not given is as in `run`, but for 11 epochs at a learning rate of 0.0005
    per 256 (the authors' FixResNet-50 CutMix: 0.001 at batch 512), its student as the start, its
    labeled sources only, and views of 10/7 of its size (224 to 320 px) made as for an evaluation.
    """

    train: Literal["classifier", "classifier_and_norm"] = "classifier"
    """What is trained; the norm is the last one before the classifier, its statistics included."""
    resolutions: list[PositiveInt] = field(default_factory=list)
    """Sides in px at which the student is evaluated before and after, besides those that it was
    trained and is fixed at. One half of the held-out images chooses which is exported, the other
    half reports. By default seven from a bit below the size that it was trained at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.augment == AugmentConfig(size=self.augment.size),
            "augment: this stage makes its views as an evaluation does; give augment.size only",
        )
        require(self.teacher_view == "same", "teacher_view: this stage has one view of an image")
