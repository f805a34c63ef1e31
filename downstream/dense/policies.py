"""Which operations change a training image: AutoAugment's and RandAugment's draws, for boxes and
for masks (Zoph et al. 2020, "Rethinking Pre-training and Self-training", arXiv:2006.06882,
section 3.1: Augment-S2 to S4; S1 is flip and scale alone).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from downstream.dense.config import PolicyConfig
from downstream.dense.operations import BLENDS, COLOURS, GEOMETRIC
from ssld.data.autoaugment import LEVELS, POLICY

IN_BOXES = "translate_y_in_boxes"
IN_BOXES_LESS = 3
"""An operation within boxes changes each with a third of its probability
(`_scale_bbox_only_op_probability`), so that not too many neighbours change at once."""


@dataclass(frozen=True)
class Operation:
    """One of `downstream.dense.operations`, or IN_BOXES."""

    name: str
    strength: float
    """1 is the reference's highest level; of either sign."""
    probability: float = 1.0
    """Of an image, or with IN_BOXES of each box."""


def _of_ten(name: str, probability: float, level: int) -> Operation:
    """As the reference's table says it; it blends by a factor of .1 to 1.9, that is 1 at 5."""
    return Operation(name, level / 5 - 1 if name in BLENDS else level / 10, probability)


BOXES: tuple[tuple[Operation, ...], ...] = (
    (_of_ten("translate_x", 0.6, 4), _of_ten("equalize", 0.8, 10)),
    (_of_ten(IN_BOXES, 0.2, 2), _of_ten("cutout", 0.8, 8)),
    (_of_ten("sharpness", 0.0, 8), _of_ten("shear_x", 0.4, 0)),
    (_of_ten("shear_y", 1.0, 2), _of_ten(IN_BOXES, 0.6, 6)),
    (_of_ten("rotate", 0.6, 10), _of_ten("color", 1.0, 6)),
)
"""`policy_v0` of tensorflow/tpu, models/official/detection/utils/autoaugment_utils.py: "used for
all of the results in the paper" (Zoph et al. 2019, "Learning Data Augmentation Strategies for
Object Detection", arXiv:1906.11172), and what its `retinanet_autoaugment.yaml` trains with; v1 to
v3 are "additional good policies"."""
MASKS: tuple[tuple[Operation, ...], ...] = tuple(
    tuple(Operation(name, level / LEVELS, probability) for name, probability, level in steps)
    for steps in POLICY
)
"""The classifier's 25 (`ssld/data/autoaugment.py`): none was published for masks."""
RANDAUGMENT = (*GEOMETRIC, *COLOURS, "cutout")
"""`distort_image_with_randaugment` of tensorflow/tpu, models/official/efficientnet/autoaugment.py:
these 16, each as likely; a later one for boxes has the same, and as a 17th to do nothing
(tensorflow/models, official/vision/ops/augment.py, `RandAugment.build_for_detection`)."""
SMALLER: dict[str, float] = dict.fromkeys(("translate_x", "translate_y", "cutout"), 0.4)
"""RandAugment moves by at most 100 px and cuts 40 out, where boxes' AutoAugment has 250 and 100."""


def draw_operations(config: PolicyConfig, draw: random.Random, boxes: bool) -> list[Operation]:
    """The operations that a policy draws for an image, in order.

    Args:
        boxes: for an image with boxes, else with a mask. RandAugment is the same for both.
    """
    if config.policy == "none":
        return []
    if config.policy == "randaugment":
        names = [draw.choice(RANDAUGMENT) for _ in range(config.randaugment_ops)]
        strength = config.randaugment_magnitude / 10
        drawn = [Operation(name, strength * SMALLER.get(name, 1)) for name in names]
        return _with_signs(drawn, GEOMETRIC, draw)
    steps = draw.choice(BOXES if boxes else MASKS)
    drawn = [x for x in steps if x.name == IN_BOXES or draw.random() < x.probability]
    # As `ssld/data/autoaugment.py` the classifier's blends go either way.
    return _with_signs(drawn, GEOMETRIC if boxes else (*GEOMETRIC, *BLENDS), draw)


def _with_signs(
    drawn: list[Operation], names: Sequence[str], draw: random.Random
) -> list[Operation]:
    """Those of `names` in either direction, each as likely; so IN_BOXES, all boxes in one."""
    signs = [draw.choice((-1, 1)) if x.name in (*names, IN_BOXES) else 1 for x in drawn]
    return [replace(x, strength=x.strength * sign) for x, sign in zip(drawn, signs, strict=True)]
