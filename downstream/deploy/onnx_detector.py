"""A detector as an ONNX file that onnxruntime has run, checked against itself before it has a name.

    in    images  float32 [1, 3, h, w] of one size, normalised with the file's `mean` and `std`
    out   boxes float32 [k, 4] xyxy px, scores float32 [k], labels int64 [k] from 0; best first,
          k from 0 to 100 as each image has them, for all detectors

All are written by torch's older, tracing exporter, as k, the proposals of Faster R-CNN and what
non-maximum suppression leaves depend on the image, and torch.export cannot express them without
rewriting torchvision. What it lacks for that is in `onnx_tracing.py`. onnxruntime 1.31 computes all
of it on the CPU, DeformConv included.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from downstream.deploy.onnx_tracing import tracing
from downstream.detection.heads.decoding import MAX_DETECTIONS
from ssld.common.errors import InputError
from zoo.export.onnx_classifier import facts

OPSET = 20
"""The newest of the tracing exporter; DeformConv came with 19."""

BOX_TOLERANCE_PX = 0.05
SCORE_TOLERANCE = 1e-3
"""Another order of float32 sums moves boxes by 1e-5 px and scores by 1e-7 (measured over all
detectors); half a pixel, or another rounding of sizes, moves nearly all boxes by more than this."""
TIE = 1e-5
"""Of two scores that are nearer than this, float32 decides which one comes first, and with it which
of two overlapping boxes stays and which one is the 100th."""
MISSED = 0.01
"""Share of detections that one side alone may find, ties aside: an overlap may be at the limit."""

OTHER = "nothing was written, use the network with PyTorch"

Run = Callable[[Tensor], dict[str, Tensor]]


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
    """

    path: Path
    method: str
    size: tuple[int, int]
    images: int
    paired: int
    missed: float
    max_box_px: float
    max_score: float


def export_onnx(
    network: nn.Module,
    path: Path,
    size: tuple[int, int],
    class_names: Sequence[str] | None = None,
    images: Tensor | None = None,
) -> ExportedDetector:
    """Write `network` for images of one size; the network stays as it is.

    The comparison is made twice: with every score kept, where also a network that is sure of
    nothing finds its 100 boxes per image, and with the score threshold that is in the file.

    Args:
        network: a detector, see `networks.py`.
        size: height and width in px, multiples of the network's stride.
        class_names: by class number; travel in the file as `label_names`.
        images: float32 [n, 3, *size], normalised, to compare on besides the synthetic ones.

    Raises:
        InputError: packages are missing, the size does not fit, the network cannot be expressed or
            run, `path` cannot be written, or the file finds something else than PyTorch. What was
            at `path` is untouched.
    """
    _require("onnx", "onnxruntime")
    stride = int(network.stride)  # type: ignore[arg-type]
    if any(side <= 0 or side % stride for side in size):
        raise InputError(f"images of {size[0]} x {size[1]} px: give multiples of {stride}")
    alone = _OneImage(copy.deepcopy(network).cpu().float(), size, class_names).eval()
    trials = trial_images(size)
    if images is not None:
        trials = torch.cat([trials, images.cpu().float()])
    temporary = path.with_name(f".{path.name}.tmp")
    threshold = alone.network.score_threshold
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        pairs = []
        for alone.network.score_threshold in (0.0, threshold):  # the file that stays comes last
            _write(alone, temporary)
            pairs += _comparisons(alone, _session(temporary), trials)
        exported = _judge(pairs, alone, path, len(trials))
        os.replace(temporary, path)
        return exported
    except OSError as error:
        said = error.strerror or str(error)
        raise InputError(f"{path} cannot be written ({said}): give another path") from error
    finally:
        temporary.unlink(missing_ok=True)


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


def compare(eager: dict[str, Tensor], exported: dict[str, Tensor]) -> Comparison:
    """Pair the detections of both sides: of the same class, with boxes and scores within the
    tolerances, nearest first. Ranks are not compared, as equal scores come in any order."""
    boxes = (eager["boxes"][:, None] - exported["boxes"]).abs().amax(2)  # [k, k']
    scores = (eager["scores"][:, None] - exported["scores"]).abs()
    fits = eager["labels"][:, None] == exported["labels"]
    fits &= (boxes <= BOX_TOLERANCE_PX) & (scores <= SCORE_TOLERANCE)
    rows, columns = set(), set()
    worst = (0.0, 0.0)
    for i, j in sorted(fits.nonzero().tolist(), key=lambda pair: float(boxes[tuple(pair)])):
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            worst = max(worst[0], float(boxes[i, j])), max(worst[1], float(scores[i, j]))
    missed = [
        i
        for side, found in ((eager, rows), (exported, columns))
        for i, tied in enumerate(_tied(side["scores"]))
        if i not in found and not tied
    ]
    return Comparison(len(rows), len(missed), *worst)


def _tied(scores: Tensor) -> list[bool]:
    """Whether each score is that of another detection, or of the last of a full hundred."""
    near = (scores[:, None] - scores).abs() <= TIE
    tied = near.sum(1) > 1
    if len(scores) == MAX_DETECTIONS:
        tied |= near[:, -1]
    return tied.tolist()


def _comparisons(alone: _OneImage, run: Run, trials: Tensor) -> list[Comparison]:
    pairs = []
    for image in trials.split(1):
        eager = alone.run(image)
        flat = bool((image == image[..., :1, :1]).all())
        if not flat or not len(eager["labels"]):  # on one colour all that is found is tied
            pairs.append(compare(eager, run(image)))
    return pairs


class _OneImage(nn.Module):
    """A detector as a function of one image that is all picture."""

    def __init__(
        self, network: nn.Module, size: tuple[int, int], class_names: Sequence[str] | None
    ) -> None:
        super().__init__()
        self.network: Any = network
        backbone: Any = network.backbone
        self.register_buffer("sizes", torch.tensor([size]), persistent=False)
        self.pretrained_cfg = {
            "architecture": f"{type(network).__name__} {getattr(backbone, 'architecture', '')}",
            "input_size": (3, *size),
            "mean": getattr(backbone, "mean", (0.0,)),
            "std": getattr(backbone, "std", (1.0,)),
            "label_names": class_names,
        }

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.network(images, self.sizes)[0]
        return found["boxes"], found["scores"], found["labels"]

    def run(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(OUTPUTS, self(images.clone()), strict=True))


OUTPUTS = ("boxes", "scores", "labels")


def _judge(pairs: list[Comparison], alone: _OneImage, path: Path, images: int) -> ExportedDetector:
    paired, missed = sum(p.paired for p in pairs), sum(p.missed for p in pairs)
    share = missed / max(1, 2 * paired + missed)
    name = facts(alone)["architecture"].strip()
    if paired + missed == 0:
        raise InputError(
            f"{name} finds nothing at all, so that no export of it can be checked: {OTHER}"
        )
    if not paired or share > MISSED:
        raise InputError(
            f"the ONNX file of {name} does not find what PyTorch finds ({share:.0%} of the "
            f"detections are of one side alone): {OTHER}"
        )
    return ExportedDetector(
        path=path,
        method=f"trace, opset {OPSET}",
        size=tuple(alone.sizes[0].tolist()),  # type: ignore[arg-type, index]
        images=images,
        paired=paired,
        missed=share,
        max_box_px=max(p.max_box_px for p in pairs),
        max_score=max(p.max_score for p in pairs),
    )


def _write(alone: _OneImage, path: Path) -> None:
    import onnx
    from torch.onnx.errors import OnnxExporterError

    errors = (
        OnnxExporterError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
    )
    height, width = (int(n) for n in alone.sizes[0])  # type: ignore[union-attr, index]
    example = trial_images((height, width))[:1]
    try:
        with tracing(OPSET), torch.no_grad():
            torch.onnx.export(
                alone,
                (example,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "found"} for name in OUTPUTS},
            )
        model = onnx.load(str(path))
        said = facts(alone) | {"score_threshold": str(alone.network.score_threshold)}
        onnx.helper.set_model_props(model, said)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
    except errors as error:
        raise InputError(f"the network cannot be written as ONNX: {OTHER}{_said(error)}") from error


def _session(path: Path) -> Run:
    import onnxruntime

    # Its errors have no common class but Exception.
    state = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    errors = tuple(kind for kind in state if isinstance(kind, type) and issubclass(kind, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what matters is raised
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except errors as error:
        raise InputError(f"onnxruntime cannot load the file: {OTHER}{_said(error)}") from error

    def run(images: Tensor) -> dict[str, Tensor]:
        try:
            found = session.run(list(OUTPUTS), {"images": images.numpy()})
        except errors as error:
            raise InputError(f"onnxruntime cannot run the file: {OTHER}{_said(error)}") from error
        return {k: torch.as_tensor(x) for k, x in zip(OUTPUTS, found, strict=True)}

    return run


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f" ({type(error).__name__}: {(lines or [''])[0][:200]})"


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"ONNX needs {package}: pip install 'ssld[onnx]'") from error
