"""A detector as an ONNX file that onnxruntime has run, checked against itself before it has a name.

    in    images  float32 [1, 3, h, w] of one size, normalised with the file's `mean` and `std`
    out   boxes float32 [k, 4] xyxy px, scores float32 [k], labels int64 [k] from 0; best first,
          k from 0 to 100 as each image has them, for all detectors; of some keypoints float32
          [k, K, 3] (x, y px, score) or masks float32 [k, 28, 28] (probabilities in the box)

All are written by torch's older, tracing exporter, as k, the proposals of Faster R-CNN and what
non-maximum suppression leaves depend on the image, and torch.export cannot express them without
rewriting torchvision. What it lacks for that is in `tracing`. onnxruntime 1.31 computes all of
it on the CPU, DeformConv included.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.onnx import symbolic_helper, utils

from downstream.detection.heads.detector import MAX_DETECTIONS
from ssld.common.errors import InputError
from zoo.export.checked import (
    INSTEAD,
    TRACING_OPSET,
    Run,
    facts,
    placed,
    require_packages,
    write_onnx,
)

OUTPUTS: tuple[str, ...] = ("boxes", "scores", "labels")
BOX_TOLERANCE_PX = 0.05
SCORE_TOLERANCE = 1e-3
"""Another order of float32 sums moves boxes by 1e-5 px and scores by 1e-7 (measured over all
detectors); half a pixel, or another rounding of sizes, moves nearly all boxes by more than this."""
TIE = 1e-5
"""Of two scores that are nearer than this, float32 decides which one comes first, and with it which
of two overlapping boxes stays and which one is the 100th."""
MISSED = 0.01
"""Share of detections that one side alone may find, ties aside: an overlap may be at the limit. And
of keypoints that may lie elsewhere: two cells may be as high."""


@dataclass(frozen=True)
class ExportedDetector:
    """What was written, and how far it is from eager PyTorch (float32, CPU).

    Attributes:
        path: the file.
        method: exporter and opset.
        size: (height, width) of the images that it takes.
        images: how many were compared, each with every score kept and at the network's own
            threshold.
        paired: detections that both sides found.
        missed: share that one side alone found, ties aside.
        max_box_px, max_score: largest difference of a pair.
        parts: keypoints or masks of pairs that were compared, 0 of a detector of boxes.
        parts_off: share that differs.
        max_part: largest difference of the others, in px of keypoints, in probability of masks.
    """

    path: Path
    method: str
    size: tuple[int, int]
    images: int
    paired: int
    missed: float
    max_box_px: float
    max_score: float
    parts: int
    parts_off: float
    max_part: float


def export_onnx(
    network: nn.Module,
    path: Path,
    size: tuple[int, int],
    class_names: Sequence[str] | None = None,
    images: Tensor | None = None,
    keypoint_names: Sequence[str] | None = None,
) -> ExportedDetector:
    """Write `network` for images of one size; the network stays as it is.

    The comparison is made twice: with every score kept, where also a network that is sure of
    nothing finds its 100 boxes per image, and with the score threshold that is in the file.

    Args:
        network: a detector, see `networks.py`.
        size: height and width in px, multiples of the network's stride.
        class_names: by class number; travel in the file as `label_names`.
        images: float32 [n, 3, *size], normalised, to compare on besides the synthetic ones.
        keypoint_names: of a detector of keypoints; travel in the file, too.

    Raises:
        InputError: packages are missing, the size does not fit, the network cannot be expressed or
            run, `path` cannot be written, or the file finds something else than PyTorch. What was
            at `path` is untouched.
    """
    require_packages("onnx", "onnxruntime")
    if getattr(network, "soft_nms_sigma", None) is not None:
        raise InputError(
            "Soft-NMS cannot be written as ONNX: take soft_nms_sigma out of the config.json of a "
            "copy of the run's `model`, and export that, with NMS"
        )
    alone = _OneImage(copy.deepcopy(network).cpu().float(), size, class_names).eval()
    stride = alone.network.stride
    if any(side <= 0 or side % stride for side in size):
        raise InputError(f"images of {size[0]} x {size[1]} px: give multiples of {stride}")
    trials = trial_images(size)
    if images is not None:
        trials = torch.cat([trials, images.cpu().float()])
    threshold = alone.network.score_threshold
    with torch.no_grad():
        (found,) = alone.network(trials[:1], alone.sizes)
    alone.outputs = (*OUTPUTS, *(name for name in found if name not in OUTPUTS))
    said = facts(alone)
    if keypoint_names:
        said["keypoint_names"] = json.dumps(list(keypoint_names), ensure_ascii=False)
    with placed(path) as temporary:
        comparisons, method = [], ""
        for alone.network.score_threshold in (0.0, threshold):  # the file that stays comes last
            method, run = write_onnx(
                alone,
                temporary,
                trials[:1],
                said | {"score_threshold": str(alone.network.score_threshold)},
                outputs=alone.outputs,
                axes={name: {0: "found"} for name in alone.outputs},
                tracing=tracing(),
            )
            comparisons += _comparisons(alone, run, trials)
        name = said["architecture"]
        return ExportedDetector(path, method, size, len(trials), *_judged(comparisons, name))


def trial_images(size: tuple[int, int]) -> Tensor:
    """float32 [5, 3, *size], about normalised: noise, noise with rectangles (twice), a slope, and
    an image of one colour, in which trained networks find nothing."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, height, width, generator=generator)
    for image in images[1:3]:
        for _ in range(4):
            y, x, h, w = torch.rand(4, generator=generator).tolist()
            top, left = int(0.7 * y * height), int(0.7 * x * width)
            bottom, right = top + int((0.1 + h / 2) * height), left + int((0.1 + w / 2) * width)
            colour = torch.randn(3, 1, 1, generator=generator)
            image[:, top:bottom, left:right] = 0.2 * image[:, top:bottom, left:right] + colour
    slope = torch.linspace(-2, 2, width).expand(height, width)
    images[3] = slope + torch.linspace(-1, 1, height)[:, None]
    images[4] = 0
    return images


@dataclass(frozen=True)
class Comparison:
    """Of one image: detections that both sides found, those that one side alone found and that are
    no tie, and the largest differences of the pairs."""

    paired: int
    missed: int
    max_box_px: float
    max_score: float
    parts: int = 0
    """Keypoints or masks of the pairs."""
    parts_off: int = 0
    """Of them those that differ by more than the tolerances."""
    max_part: float = 0.0
    """Largest difference of the others."""


def compare(eager: Mapping[str, Tensor], exported: Mapping[str, Tensor]) -> Comparison:
    """Pair the detections of both sides: of the same class, with boxes and scores within the
    tolerances, nearest first. Ranks are not compared, as equal scores come in any order."""
    boxes = (eager["boxes"][:, None] - exported["boxes"]).abs().amax(2)  # [k, k']
    scores = (eager["scores"][:, None] - exported["scores"]).abs()
    fits = eager["labels"][:, None] == exported["labels"]
    fits &= (boxes <= BOX_TOLERANCE_PX) & (scores <= SCORE_TOLERANCE)
    rows: list[int] = []
    columns: list[int] = []
    for i, j in sorted(fits.nonzero().tolist(), key=lambda pair: float(boxes[tuple(pair)])):
        if i not in rows and j not in columns:
            rows.append(i)
            columns.append(j)
    worst = {
        "max_box_px": float(boxes[rows, columns].max()) if rows else 0.0,
        "max_score": float(scores[rows, columns].max()) if rows else 0.0,
    }
    missed = [
        i
        for side, paired in ((eager, rows), (exported, columns))
        for i, tied in enumerate(_tied(side["scores"]))
        if i not in paired and not tied
    ]
    parts, off, most = _parts(eager, exported, rows, columns)
    return Comparison(len(rows), len(missed), **worst, parts=parts, parts_off=off, max_part=most)


def _parts(
    eager: Mapping[str, Tensor], exported: Mapping[str, Tensor], rows: list[int], columns: list[int]
) -> tuple[int, int, float]:
    """How many keypoints or masks the pairs have, how many differ, how much the others do."""
    off, right = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    if "keypoints" in eager:
        differences = (eager["keypoints"][rows] - exported["keypoints"][columns]).abs()
        off, scores = differences[..., :2].amax(2), differences[..., 2]
        right = (off <= BOX_TOLERANCE_PX) & (scores <= SCORE_TOLERANCE)
    if "masks" in eager:
        off = (eager["masks"][rows] - exported["masks"][columns]).abs().flatten(1).amax(1)
        right = off <= SCORE_TOLERANCE
    return off.numel(), int((~right).sum()), float(off[right].max()) if right.any() else 0.0


def _tied(scores: Tensor) -> list[bool]:
    """Whether each score is that of another detection, or of the last of a full hundred."""
    near = (scores[:, None] - scores).abs() <= TIE
    tied = near.sum(1) > 1
    if len(scores) == MAX_DETECTIONS:
        tied |= near[:, -1]
    return tied.tolist()


def _comparisons(alone: _OneImage, run: Run, trials: Tensor) -> list[Comparison]:
    comparisons = []
    for image in trials.split(1):
        with torch.no_grad():
            eager = dict(zip(alone.outputs, alone(image.clone()), strict=True))
        flat = bool((image == image[..., :1, :1]).all())
        if not flat or not len(eager["labels"]):  # on one colour all that is found is tied
            exported = dict(zip(alone.outputs, run(image), strict=True))
            comparisons.append(compare(eager, exported))
    return comparisons


class _OneImage(nn.Module):
    """A detector as a function of one image that is all picture."""

    outputs: tuple[str, ...] = OUTPUTS
    """Keys of what it finds, in the order in which they are returned."""

    def __init__(
        self, network: nn.Module, size: tuple[int, int], class_names: Sequence[str] | None
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.register_buffer("sizes", torch.tensor([size]), persistent=False)
        self.pretrained_cfg = pretrained_cfg(network, size, class_names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        (detections,) = self.network(images, self.sizes)
        return tuple(detections[name] for name in self.outputs)


def _judged(
    comparisons: list[Comparison], name: str
) -> tuple[int, float, float, float, int, float, float]:
    """-> pairs, share that one side alone found, largest differences of boxes and scores; keypoints
    or masks of the pairs, share that differs, largest difference of the others."""
    paired, missed = sum(c.paired for c in comparisons), sum(c.missed for c in comparisons)
    share = missed / max(1, 2 * paired + missed)
    if paired + missed == 0:
        raise InputError(
            f"{name} finds nothing at all, so that no export of it can be checked: {INSTEAD}"
        )
    if not paired or share > MISSED:
        raise InputError(
            f"the ONNX file of {name} does not find what PyTorch finds ({share:.0%} of the "
            f"detections are of one side alone): {INSTEAD}"
        )
    parts, off = sum(c.parts for c in comparisons), sum(c.parts_off for c in comparisons)
    elsewhere = off / max(1, parts)
    if elsewhere > MISSED:
        raise InputError(
            f"the ONNX file of {name} has other keypoints or masks than PyTorch in the same boxes "
            f"({elsewhere:.0%} of them): {INSTEAD}"
        )
    boxes, scores, most = (
        max(getattr(c, key) for c in comparisons) for key in ("max_box_px", "max_score", "max_part")
    )
    return paired, share, boxes, scores, parts, elsewhere, most


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Within it `torch.onnx.export(..., dynamo=False, opset_version=TRACING_OPSET)` knows
    torchvision's deformable convolution, traces splits as slices, and prints nothing."""
    deformable, split = "torchvision::deform_conv2d", torch.split

    def slices(x: Tensor, size: Any, dim: int = 0) -> Any:
        """Where a backbone has a split, as Res2Net, the exporter writes the proposals of Faster
        R-CNN with one dimension too many."""
        if not isinstance(size, int):
            return split(x, size, dim)
        starts = range(0, int(x.shape[dim]), size)
        return tuple(x.narrow(dim, i, min(size, int(x.shape[dim]) - i)) for i in starts)

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # That it is the older exporter, that a trace keeps to the size that it has seen, which is
        # wanted, and on stdout the graph of an export that fails.
        for category in (TracerWarning, DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        utils.register_custom_op_symbolic(deformable, _deform_conv, TRACING_OPSET)
        torch.split = slices
        try:
            yield
        finally:
            torch.split = split
            utils.unregister_custom_op_symbolic(deformable, TRACING_OPSET)


@symbolic_helper.parse_args("v", "v", "v", "v", "v", "i", "i", "i", "i", "i", "i", "i", "i", "b")
def _deform_conv(
    g: Any,
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride_y: int,
    stride_x: int,
    pad_y: int,
    pad_x: int,
    dilation_y: int,
    dilation_x: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Any:
    """https://onnx.ai/onnx/operators/onnx__DeformConv.html; the order of offsets (y, x by point)
    and of the mask is torchvision's."""
    inputs = [x, weight, offset, bias] + ([mask] if use_mask else [])
    return g.op(
        "DeformConv",
        *inputs,
        strides_i=[stride_y, stride_x],
        pads_i=[pad_y, pad_x, pad_y, pad_x],
        dilations_i=[dilation_y, dilation_x],
        group_i=groups,
        offset_group_i=offset_groups,
    )


def pretrained_cfg(
    network: nn.Module, size: tuple[int, int], class_names: Sequence[str] | None
) -> dict[str, Any]:
    """The same that timm's classifiers say of themselves; for images of one (height, width)."""
    backbone: Any = network.backbone
    return {
        "architecture": f"{type(network).__name__} {backbone.architecture}",
        "input_size": (3, *size),
        "mean": backbone.mean,
        "std": backbone.std,
        "label_names": class_names,
    }
