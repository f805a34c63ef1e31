"""What detection and segmentation have in common, as frozen dataclasses; neither torch nor timm is
imported, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from downstream.backbone.config import BackboneConfig
from ssld.common.errors import InputError
from ssld.common.settings import (
    IN_SHORT_HELP,
    Limits,
    NonNegativeInt,
    OneOrSeveral,
    PositiveFloat,
    PositiveInt,
    Settings,
    Share,
    ShareBelowOne,
    require,
    require_effect,
)
from ssld.data.config import LoaderConfig
from ssld.engine.config import LoopConfig

T = TypeVar("T", bound=Any)
MAX_SIDE_PX = 8192
"""Of what a network sees of an image; a view of so many squared takes 800 MB."""
MAX_SCALES, MAX_SCALE = 32, 16
"""Most factors at which a test sees an image, and the largest; a stranger's file cannot ask for any
memory."""


def require_scales(scales: Sequence[float]) -> None:
    """Of `test.scales`.

    Raises:
        ValueError: there is none, there are too many, or one is too large or counts twice.
    """
    require(
        0 < len(scales) <= MAX_SCALES and max(scales) <= MAX_SCALE,
        f"test.scales is {scales}: give 1 to {MAX_SCALES} factors up to {MAX_SCALE}",
    )
    require(
        len(set(scales)) == len(scales),
        f"test.scales is {scales}: give each factor once, or it counts twice",
    )


@dataclass(frozen=True)
class PolicyConfig(Settings, section="augment"):
    """Operations that change the geometry and the colours of a training image
    (`downstream/dense/policies.py`)."""

    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    """autoaugment: with boxes the policy that was learned for them, with masks the classifiers'.
    randaugment: operations drawn for each image. Boxes, keypoints and masks move with the image."""
    randaugment_ops: PositiveInt = 2
    """Operations per image of RandAugment (tensorflow/models, official/vision/ops/augment.py; Zoph
    et al. 2020 do not say it)."""
    randaugment_magnitude: Annotated[int, Limits(lambda x: 0 <= x <= 30, "0 to 30")] = 10
    """Strength of RandAugment, 10 of 10 (Zoph et al. 2020, section 3.1; 15 in their table 12)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.randaugment_ops, self.randaugment_magnitude)
        require(
            self.policy == "randaugment"
            or given == (PolicyConfig.randaugment_ops, PolicyConfig.randaugment_magnitude),
            "augment.randaugment_ops or augment.randaugment_magnitude is given, but augment.policy "
            f"is {self.policy}: set it to randaugment, or leave them out",
        )


@dataclass(frozen=True)
class AnnotatedConfig(LoaderConfig):
    """Annotated images."""

    train: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Sources to train on."""
    labeled_share: Annotated[float, Limits(lambda x: 0 < x <= 1, "a share above 0, at most 1")] = (
        1.0
    )
    """Share of each training source to train on, drawn by `seed`; `labeled.txt` in the run folder
    lists it."""
    generated: OneOrSeveral = field(default_factory=list)
    """Sets with generated annotations, as `ssld pseudo-label` writes them, to train on besides."""
    generated_share: ShareBelowOne = 0.4
    """Share of a minibatch's images that are of `generated`, in expectation (Data Distillation,
    arXiv:1712.04440, section 4: 6:4). An epoch has as many samples as there are images of both."""
    minibatch: Literal["mixed", "apart"] = "mixed"
    """mixed: human and generated annotations in one minibatch. apart: each forward pass sees one
    kind only; `accumulate` of them make a step, `generated_share` of which are generated."""
    val: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Held-out sources, never trained on; by default `holdout` images of `train`."""
    holdout: NonNegativeInt = 1000
    """Images of `train` set aside for evaluation where `val` is empty, evenly spread, at most a
    tenth of each source; `held_out.txt` in the run folder lists them."""
    classes: list[str] | None = None
    """Names of the classes in the network's order; by default those of the first training source.
    Sources are matched by name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.generated or self.generated_share > 0,
            "data.generated_share is 0, so nothing of data.generated would be seen: give a share "
            "above 0, or leave data.generated out",
        )
        require(
            bool(self.generated) or self.minibatch == "mixed",
            "data.minibatch is apart, but data.generated is empty: name sets with generated "
            "annotations, or leave it out",
        )


@dataclass(frozen=True)
class ViewsConfig(Settings, section="test"):
    """How a trained network sees images, where that is to differ from how its run saw held-out
    ones."""

    scales: list[PositiveFloat] | None = None
    """Factors of the size at which an image is seen."""
    flip: bool | None = None
    """See it mirrored, too, at each scale."""
    merge: Literal["vote", "nms", "soft_nms"] | None = None
    """Of a detector: what is made of the boxes of several views, where boxes alone are found."""
    nms_iou: Share | None = None
    """Of a detector: overlap above which nms and vote keep the better box alone."""
    vote_iou: Share | None = None
    """Of a detector: overlap from which a box votes on the place of a kept one."""
    soft_nms_sigma: PositiveFloat | None = None
    """Of a detector: soft_nms multiplies scores by exp(-IoU^2 / sigma)."""

    def over(self, test: T) -> T:
        """A run's settings with what is given here instead.

        Raises:
            InputError: they do not have it, or refuse it; how views are merged is given for one.
        """
        given = {name: x for name, x in vars(self).items() if x is not None}
        for name in given:
            if not hasattr(test, name):
                raise InputError(f"test.{name} is a setting of detectors: leave it out")
        try:
            seen = replace(test, **given)
        except ValueError as error:
            raise InputError(str(error)) from error
        merging = [name for name in given if name not in ("scales", "flip")]
        if merging and seen.views == 1:
            raise InputError(
                f"test.{merging[0]} is for several views, and images are seen in one: give "
                "test.scales or test.flip, too, or leave it out"
            )
        return seen


@dataclass(frozen=True)
class BalanceConfig(Settings, section="balance"):
    """How losses of human and of generated annotations are weighed (Zoph et al. 2020,
    arXiv:2006.06882, appendix B): L = (L_h + alpha (mean of L_h / mean of L_p) L_p) / (1 + alpha),
    each loss the mean over a step's images of its kind, each mean a moving average over training.
    """

    alpha: PositiveFloat | None = None
    """Weight of the generated annotations. null: every image weighs the same. The paper tried .25,
    .5, 1, 2, 3 and 4: longer training takes a larger one, stronger augmentation a smaller one."""
    decay: ShareBelowOne = 0.9997
    """Of the moving averages, a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_effect(
            self,
            ["decay"],
            self.alpha is not None,
            "balance.alpha is null, so that no loss is balanced: give it, or leave this out",
        )


@dataclass(frozen=True)
class ClassificationConfig(Settings, section="classification"):
    """Labeled images whose classes are learned on the same backbone at the same time (joint
    training, Zoph et al. 2020, arXiv:2006.06882, section 5). The classifier is not exported."""

    train: OneOrSeveral = field(default_factory=list)
    """Labeled sources as `ssld supervised` reads them; without one there is no such training."""
    weight: PositiveFloat = 0.5
    """Of their loss; the paper takes .5, and .2 together with self-training."""
    batch_size: PositiveInt | None = None
    """Labeled images per optimizer step over all processes; null: as many as annotated ones."""
    size: PositiveInt | None = None
    """Side of their views in px; null: of the images that the backbone was trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_effect(
            self,
            ["weight", "batch_size", "size"],
            bool(self.train),
            "classification.train is empty, so that no classes are learned: name labeled sources "
            "there, or leave this out",
        )


@dataclass(frozen=True)
class DownstreamConfig(LoopConfig):
    """A network on a backbone."""

    batch_size: PositiveInt = field(default=16, metadata=IN_SHORT_HELP)
    """Images per optimizer step over all processes."""
    init: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """Run folder, or a copy of its `model`, whose weights the network starts from, those for other
    classes left out; by default the backbone's, and a random head."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: AnnotatedConfig = field(default_factory=AnnotatedConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    classification: ClassificationConfig = field(default_factory=ClassificationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.backbone.name or self.backbone.checkpoint),
            "backbone.name is missing: --backbone resnet50d, or a run folder of ssld",
        )
        require(bool(self.data.train), "data.train is empty: name at least one source")
        require(
            bool(self.data.val) or self.data.holdout > 0,
            "data.val is empty and data.holdout is 0: name held-out images to evaluate on, or "
            "leave data.holdout out",
        )
        require(
            self.data.minibatch == "mixed" or self.generated_passes in range(1, self.accumulate),
            f"data.minibatch is apart, data.generated_share {self.data.generated_share:g} and "
            f"accumulate {self.accumulate}: of a step's forward passes {self.generated_passes:g} "
            "would see generated annotations; give numbers of which the product is whole, such as "
            "0.4 and 5, with at least one pass of each kind",
        )
        require(
            self.balance.alpha is None or bool(self.data.generated),
            f"balance.alpha is {self.balance.alpha}, but data.generated is empty: name sets with "
            "generated annotations, or leave it out",
        )
        labeled = self.labeled_batch_size
        require(
            labeled % self.accumulate == 0,
            f"classification.batch_size is {labeled}: give a multiple of accumulate "
            f"({self.accumulate})",
        )

    @property
    def generated_passes(self) -> float:
        """Forward passes of a step that see generated annotations with `minibatch: apart`."""
        return float(Fraction(str(self.data.generated_share)) * self.accumulate)

    @property
    def labeled_batch_size(self) -> int:
        """Labeled images of a step over all processes; 0 without `classification`."""
        section = self.classification
        return (section.batch_size or self.batch_size) if section.train else 0
