"""The network that annotates: what it finds in one image, as rows of a table.

One image goes through the network at a time, so that what is found in it depends neither on others
nor on which process it falls to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from downstream.dense.model import read_description
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.inference import predict
from downstream.detection.model import DetectionModel, open_detector, views_of
from downstream.detection.networks import detector
from downstream.pseudo_label.config import PseudoLabelConfig
from downstream.segmentation.config import TestConfig
from downstream.segmentation.data.class_table import IGNORE
from downstream.segmentation.model import SegmentationModel, open_segmenter, test_of
from ssld.common.errors import InputError
from zoo.release import sha256_of

BINS = 50
"""Of histograms of scores and probabilities, from 0 to 1."""
PX_DIGITS = 3
"""Decimals of coordinates in px, in what is written."""

Found = dict[str, Any]
"""A row of a table, without the number of its image."""


@dataclass(frozen=True)
class Description:
    """What is known of a network before it is opened."""

    run: str
    folder: Path
    content: dict[str, Any]
    """Of its config.json."""
    sha256: str
    """Of its weights and of what says how to use them."""

    @property
    def task(self) -> str:
        """detection or segmentation."""
        return self.content["task"]

    @property
    def finds(self) -> str:
        """boxes, keypoints, masks, or pixels."""
        if self.task == "segmentation":
            return "pixels"
        return detector(self.content["head"]["name"]).finds

    @property
    def class_names(self) -> list[str]:
        return self.content["class_names"]

    @property
    def run_folder(self) -> Path | None:
        """Where the settings of its run are, if it is in its run folder."""
        for folder in (Path(self.run), self.folder.parent):
            if (folder / "config.yaml").is_file():
                return folder
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "run": self.run,
            "sha256": self.sha256,
            "task": self.task,
            "network": self.content["head"],
            "backbone": self.content["backbone"]["architecture"],
            "class_names": self.class_names,
        }


def describe(run: str) -> Description:
    """
    Raises:
        InputError: no trained detector or segmenter is there, or it is damaged.
    """
    folder, content = read_description(run)
    try:
        digests = [sha256_of(folder / x) for x in ("model.safetensors", "config.json")]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror})") from error
    return Description(run, folder, content, hashlib.sha256("".join(digests).encode()).hexdigest())


class Teacher(Protocol):
    """A network that annotates."""

    views: dict[str, Any]
    """How it sees an image: settings under `test`."""
    schema: pa.Schema
    """Of what it finds; `row` is the number of the image."""
    device: torch.device

    def find(self, pixels: np.ndarray) -> Sequence[Found]:
        """What is in an image, uint8 [h, w, 3]."""
        ...


def open_teacher(
    description: Description, config: PseudoLabelConfig, device: torch.device
) -> Detector | Segmenter:
    """
    Raises:
        InputError: weights that are damaged, or settings that the network does not have.
    """
    folder, content = description.folder, description.content
    if description.task == "detection":
        model = open_detector(folder, content).to(device)
        augment, test = views_of(content)
        return Detector(model, augment, config.test.over(test), device)
    palette = np.array(content["view"]["palette"], np.uint8)
    if len(palette) != len(description.class_names):
        raise InputError(
            f"{folder / 'config.json'} is damaged ({len(description.class_names)} classes have "
            f"{len(palette)} colours); export the model again"
        )
    model = open_segmenter(folder, content).to(device)
    test = config.test.over(test_of(content))
    return Segmenter(model, test, palette, config.pixel_threshold, device)


class Detector:
    """Finds boxes, and maybe the keypoints or masks in them."""

    def __init__(
        self,
        model: DetectionModel,
        augment: BoxAugmentConfig,
        test: BoxTestConfig,
        device: torch.device,
    ) -> None:
        self.model, self.augment, self.test, self.device = model, augment, test, device
        self.views = dataclasses.asdict(test)
        self.schema = pa.schema(
            {
                "row": pa.int64(),
                "label": pa.int32(),
                "score": pa.float32(),
                "box": pa.list_(pa.float64(), 4),
                "keypoints": pa.list_(pa.float32()),
                "mask": pa.binary(),
            }
        )

    def find(self, pixels: np.ndarray) -> list[Found]:
        """Instances, the surest first: `label`, `score`, `box` xyxy px; `keypoints` x, y px and
        score of each one after the other, `mask` COCO's compressed run lengths, or None.

        Raises:
            InputError: a score or a box is not finite.
        """
        image = torch.from_numpy(pixels).to(self.device)
        with torch.inference_mode():
            found = predict(self.model, image, self.augment, self.test)
        arrays = {key: value.cpu().numpy() for key, value in found.items() if key != "masks"}
        if not all(np.isfinite(value).all() for value in arrays.values()):
            raise InputError("the network's predictions are not finite: it has diverged")
        height, width = pixels.shape[:2]
        boxes = _rounded(arrays["boxes"], width, height)
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        masks = self._masks(found, (height, width)) if "masks" in found else None
        rows = []
        for i in kept.tolist():
            if masks is not None and masks[i] is None:
                continue
            points = arrays["keypoints"][i].ravel() if "keypoints" in arrays else None
            rows.append(
                {
                    "label": int(arrays["labels"][i]),
                    "score": arrays["scores"][i],
                    "box": boxes[i],
                    "keypoints": points,
                    "mask": masks[i] if masks is not None else None,
                }
            )
        return rows

    def _masks(self, found: dict[str, Any], size: tuple[int, int]) -> list[bytes | None]:
        """Run lengths; None where an instance has no pixel."""
        from downstream.detection.pasting import paste  # needs an extra

        runs = paste(found["masks"], found["boxes"], size)
        from faster_coco_eval import mask

        return [run["counts"] if mask.area(run) else None for run in runs]


def _rounded(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """float32 [n, 4] xyxy -> float64, within the image."""
    edges = np.array([width, height] * 2, np.float64)
    return np.clip(np.round(boxes.astype(np.float64), PX_DIGITS), 0, edges)


class Segmenter:
    """Gives every pixel a class, or none.

    Args:
        palette: uint8 [classes, 3].
        least: probability below which a pixel has no class.
    """

    def __init__(
        self,
        model: SegmentationModel,
        test: TestConfig,
        palette: np.ndarray,
        least: float,
        device: torch.device,
    ) -> None:
        self.model, self.device = model, device
        self.palette, self.least = palette, least
        self.views = dataclasses.asdict(test)
        classes = len(model.label_names or ())
        self.schema = pa.schema(
            {
                "row": pa.int64(),
                "mask": pa.binary(),
                "counts": pa.list_(pa.int64(), classes + 1),
                "near": pa.float64(),
                "histogram": pa.list_(pa.int64(), classes * BINS),
            }
        )

    def find(self, pixels: np.ndarray) -> list[Found]:
        """One row: `mask`, a PNG of class numbers, IGNORE where the probability is below the
        threshold; `counts`, pixels of each class and ignored ones; `near`, the share of pixels
        whose probability is within .1 of the threshold; `histogram` of the probabilities of the
        pixels of each class, [classes, BINS].

        Raises:
            InputError: a probability is not finite.
        """
        image = torch.from_numpy(pixels).to(self.device)
        with torch.inference_mode():
            best, labels = self.model.probabilities(image, **self.views).max(0)
        if not bool(best.isfinite().all()):
            raise InputError("the network's predictions are not finite: it has diverged")
        sure, numbers = best.cpu().numpy(), labels.cpu().numpy().astype(np.uint8)  # [h, w] each
        mask = np.where(sure >= np.float32(self.least), numbers, np.uint8(IGNORE))
        classes = len(self.model.label_names or ())
        bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
        places = numbers.astype(np.int64) * BINS + bins
        counts = np.bincount(np.where(mask == IGNORE, classes, mask).ravel(), minlength=classes + 1)
        return [
            {
                "mask": _png(mask),
                "counts": counts,
                "near": float((abs(sure - self.least) < 0.1).mean()),
                "histogram": np.bincount(places.ravel(), minlength=classes * BINS),
            }
        ]


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()
