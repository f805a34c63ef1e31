"""The settings of `ssld sed`, as frozen dataclasses; neither torch nor timm is imported.

The paper is Guo et al. 2022, Scale-Equivalent Distillation for Semi-Supervised Object Detection.
What it leaves open is said where it is decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from downstream.detection.config import BoxDataConfig, DetectionConfig
from ssld.common.settings import (
    IN_SHORT_HELP,
    Limits,
    NonNegativeFloat,
    OneOrSeveral,
    PositiveInt,
    Probability,
    Settings,
    ShareBelowOne,
    require,
    require_effect,
)
from ssld.engine.config import EmaConfig

DETECTORS = ("faster_rcnn", "retinanet", "retinanet_bn", "detr")
"""Those that the paper has the method for (sections 3.1 and 4.3), and RetinaNet with batch norm in
its heads."""


@dataclass(frozen=True)
class ConsistencyConfig(Settings, section="consistency"):
    """The losses on unlabeled images (section 3, equations 1 to 5). With both weights 0 these are
    not looked at: the baseline of an ablation."""

    scale_weight: NonNegativeFloat = 0.1
    """lambda_s of scale consistency; 0 is without it. The paper does not say it; with 1 short runs
    of ours lost by it, with .1 they gained (docs/self-training.md)."""
    distill_weight: NonNegativeFloat = 1.0
    """lambda_d of self-distillation; 0 is without it. The paper does not say it."""
    scales: Annotated[int, Limits(lambda x: 1 <= x <= 4, "1 to 4")] = 1
    """S: an image is compared with itself at 1 / 2^s of its size, s drawn from 1 to S at each step
    (table 8: 1)."""
    reweight: bool = False
    """Divide the classification losses by how many samples have a like gradient (equation 5);
    false: their mean. The paper gains 1.6 to 3.3 AP by it in long runs (table 4), short ones of
    ours lost 4 to 5 (docs/self-training.md)."""
    bins: PositiveInt = 30
    """M: bins of that histogram. The paper does not say it; 30 in what it is taken from (Gradient
    Harmonized Detector, arXiv:1811.05181, section 4.2)."""
    box_distance: Literal["squared", "norm"] = "squared"
    """Of boxes in equations 2 and 3, which print an L2 norm. squared: the mean of four squares.
    norm: as printed; its gradient has length 1 for each anchor however little is amiss, background
    included, and with it runs of ours lost much more (docs/self-training.md)."""
    soft: bool = True
    """Distill the teacher's probabilities; false: its hard labels, where it is sure (table 4)."""
    hard_threshold: Probability = 0.7
    """With `soft: false` the least score of an object (figure 1)."""
    proposals: PositiveInt = 1000
    """Of a network of two stages: the most boxes of each view that the second stage looks at
    (section 3.1: 1000, which is also the most that the first stage gives); less for runs on a CPU.
    """
    match_iou: NonNegativeFloat = 1.0
    """Of DETR: weight of the GIoU loss beside the Jensen-Shannon divergence where the predictions
    of two views are matched (section 4.3). The paper does not say it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_effect(
            self,
            ["bins"],
            self.reweight,
            "consistency.reweight is false, so that there is no histogram: set it to true, or "
            "leave this out",
        )
        require_effect(
            self,
            ["hard_threshold"],
            not self.soft,
            "consistency.soft is true, so that no label is hard: set it to false, or leave this "
            "out",
        )

    @property
    def work(self) -> float:
        """Of an unlabeled image over a forward and a backward pass: that of the strong view, that
        of the small one, and the teacher's forward pass, which is a third."""
        small = sum(4.0**-s for s in range(1, self.scales + 1)) / self.scales
        scale, distill = self.scale_weight > 0, self.distill_weight > 0
        return (scale or distill) + scale * small + distill / 3


@dataclass(frozen=True)
class StrongConfig(Settings, section="strong"):
    """Colour and erasing on top of the weak view, for the student (section 4, "Implementation
    Details"). The paper names them without numbers: these are Unbiased Teacher's, which it follows
    (arXiv:2102.09480, `ubteacher/data/detection_utils.py`)."""

    jitter: Probability = 0.8
    """Probability of a colour jitter: brightness, contrast and saturation by factors of .6 to 1.4
    and hue by -.1 to .1 of a turn, in a drawn order."""
    grey: Probability = 0.2
    """Probability of grey alone."""
    blur: Probability = 0.5
    """Probability of a Gaussian blur with a deviation of .1 to 2 px."""
    erasings: Annotated[int, Limits(lambda x: 0 <= x <= 3, "0 to 3")] = 3
    """Rectangles of noise (Cutout), the first so many of: with probability .7 on 5 to 20 % of the
    image, height to width .3 to 3.3; .5, 2 to 20 %, .1 to 6; .3, 2 to 20 %, .05 to 8."""


@dataclass(frozen=True)
class TeacherConfig(EmaConfig):
    """The teacher: an exponential moving average of the student, updated at each step, statistics
    of batch norm included (equation 4). It is what is evaluated and exported; the paper does not
    say whether it does that, too."""

    decay: ShareBelowOne = 0.99
    """Share of the old average kept at each step (table 9: .99; with `cosine` .996). Early on it is
    1 - (1 + step) ** (-2/3), which forgets the random head faster."""
    schedule: Literal["constant", "step", "cosine", "auto"] = "auto"
    """How `decay` becomes `end_decay` (table 9). step: at the first milestone of the learning rate.
    cosine: along half of one, over the run. auto: step where the rate has milestones, else cosine.
    """


@dataclass(frozen=True)
class SedDataConfig(BoxDataConfig):
    """Images with boxes, `FILE.json` (COCO), `FILE.json::IMAGES`, or a folder in VOC's or YOLO's
    layout, `DIR` or `DIR::SPLIT`; and images without."""

    unlabeled: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Sources of images without annotations: a folder, a Parquet manifest or tar shards, local or
    remote. Labeled images among them are left out, held-out ones refused."""
    unlabeled_per_labeled: PositiveInt = 4
    """n_u / n_s: unlabeled images for each labeled one of a step. The paper does not say it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.generated,
            f"data.generated is {self.generated}, but the teacher of `ssld sed` learns on line: "
            "give these images as data.unlabeled, or use `ssld detection`",
        )


@dataclass(frozen=True)
class SedConfig(DetectionConfig):
    """`ssld sed --config F.yaml --backbone NAME --data.unlabeled SOURCES`: train a detector on
    labeled and unlabeled images at once, by Scale-Equivalent Distillation (Guo et al. 2022)."""

    batch_size: PositiveInt = field(default=4, metadata=IN_SHORT_HELP)
    """Labeled images per optimizer step over all processes; each brings
    `data.unlabeled_per_labeled` unlabeled ones besides. An epoch is a pass over the labeled ones.
    """
    data: SedDataConfig = field(default_factory=SedDataConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    strong: StrongConfig = field(default_factory=StrongConfig)
    ema: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.data.unlabeled),
            "data.unlabeled is empty: name at least one source of images without annotations",
        )
        require(
            not self.classification.train,
            f"classification.train is {self.classification.train}, but `ssld sed` has no joint "
            "training with classes: leave it out, or use `ssld detection`",
        )
        require(
            self.detector.name in DETECTORS,
            f"detector.name is {self.detector.name}, for which there is no Scale-Equivalent "
            f"Distillation: give {', '.join(DETECTORS)}",
        )
        require(
            self.ema.decay > 0,
            "ema.decay is 0, so that there would be no teacher: give a share such as 0.99",
        )
