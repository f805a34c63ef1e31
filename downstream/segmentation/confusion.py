"""What an evaluation of masks counts: one confusion matrix for each image, so that means can be had
with intervals over images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from downstream.segmentation.data.class_table import IGNORE
from ssld.common.errors import InputError


class Confusion:
    """Confusion matrices: rows are the ground truth, columns the predictions; IGNORE is left out.

    Args:
        num_classes: of masks and predictions.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # Only what is not 0: few of the pairs of classes occur in one image.
        self._counts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, image: int, mask: Tensor, prediction: Tensor) -> None:
        """Count one image.

        Args:
            image: its number, unique over the whole evaluation.
            mask: class numbers or IGNORE, uint8 or int64 [h, w].
            prediction: class numbers, integer [h, w], on the same device.

        Raises:
            InputError: mask and prediction differ in size, or either has a class that is none.
        """
        if mask.shape != prediction.shape:
            raise InputError(
                f"the mask of image {image} has {tuple(mask.shape)} px (height, width), but the "
                f"image {tuple(prediction.shape)}; give a mask of the image's size"
            )
        assert image not in self._counts, f"image {image} is counted twice"
        valid = mask != IGNORE
        ground_truth, predicted = mask[valid].long(), prediction[valid].long()
        self._check(image, ground_truth, predicted)
        table = torch.bincount(
            ground_truth * self.num_classes + predicted, minlength=self.num_classes**2
        )  # [classes * classes]
        pairs = table.nonzero()[:, 0]  # ground_truth * classes + prediction
        self._counts[image] = (pairs.cpu().numpy(), table[pairs].cpu().numpy())

    def _check(self, image: int, *classes: Tensor) -> None:
        for what, numbers in zip(("mask", "prediction"), classes, strict=True):
            wrong = numbers[(numbers < 0) | (numbers >= self.num_classes)]
            if len(wrong):
                raise InputError(
                    f"the {what} of image {image} has the class {int(wrong[0])}, and the "
                    f"{self.num_classes} classes are 0 to {self.num_classes - 1} and {IGNORE} for "
                    "pixels that do not count; mend the mask or the class table"
                )

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """Collect the images of all processes; False when it was cut short on any of them."""
        parts: list[Any] = [(cut_short, self._counts)]
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
        gathered = {image: counts for _, part in parts for image, counts in part.items()}
        assert len(gathered) == sum(len(part) for _, part in parts), "images are counted twice"
        self._counts = gathered
        return not any(short for short, _ in parts)

    @property
    def images(self) -> np.ndarray:
        """int64 [n]: the numbers of the images, ascending."""
        return np.array(sorted(self._counts), np.int64)

    @property
    def per_image(self) -> np.ndarray:
        """int64 [n, classes, classes]: the matrices, in the order of `images`."""
        matrices = np.zeros((len(self._counts), self.num_classes**2), np.int64)
        for row, (_, (pairs, counts)) in zip(matrices, sorted(self._counts.items()), strict=True):
            row[pairs] = counts
        return matrices.reshape(-1, self.num_classes, self.num_classes)

    @property
    def total(self) -> np.ndarray:
        """int64 [classes, classes]: the sum over all images."""
        matrix = np.zeros(self.num_classes**2, np.int64)
        for pairs, counts in self._counts.values():
            matrix[pairs] += counts
        return matrix.reshape(self.num_classes, self.num_classes)

    def metrics(self) -> dict[str, float]:
        """`scores` over all images, and their number; nothing where no pixel counts."""
        metrics = scores(self.total)
        return {**metrics, "images": float(len(self._counts))} if metrics else {}


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        matrix: int64 [classes, classes], as of `Confusion`.

    Returns:
        float64 [classes]: hits / (pixels of the class + pixels predicted as it - hits), as PASCAL
        VOC has it (Everingham et al. 2010); NaN for a class in neither ground truth nor prediction.
    """
    hits = matrix.diagonal()
    return _share(hits, matrix.sum(0) + matrix.sum(1) - hits)


def scores(matrix: np.ndarray) -> dict[str, float]:
    """What a confusion matrix says, nothing where it is empty.

    Args:
        matrix: int64 [classes, classes], as of `Confusion`.

    Returns:
        `miou`: the mean of `class_iou` over the classes that occur in ground truth or prediction,
        as Cityscapes' own evaluation takes it (cityscapesScripts
        `evalPixelLevelSemanticLabeling.getScoreAverage` skips NaN). `pixel_accuracy`: share of
        pixels that are right. `mean_accuracy`: the mean of each class's share of right pixels, over
        the classes that occur in the ground truth (Long et al. 2015, section 5).
    """
    if not matrix.sum():
        return {}
    hits = matrix.diagonal()
    return {
        "miou": float(np.nanmean(class_iou(matrix))),
        "pixel_accuracy": float(hits.sum() / matrix.sum()),
        "mean_accuracy": float(np.nanmean(_share(hits, matrix.sum(1)))),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
