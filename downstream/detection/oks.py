"""Object keypoint similarity: how near predicted keypoints are to those of an object, for its size.

oks = mean over the object's labeled keypoints of exp(-d² / (2 area (2 sigma)²)), where d is a
distance in px (cocodataset.org, "Keypoint evaluation"; pycocotools/cocoeval.py, `computeOks`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssld.common.errors import InputError

COCO_SIGMAS = {
    "nose": 0.026,
    **dict.fromkeys(("left_eye", "right_eye"), 0.025),
    **dict.fromkeys(("left_ear", "right_ear"), 0.035),
    **dict.fromkeys(("left_shoulder", "right_shoulder"), 0.079),
    **dict.fromkeys(("left_elbow", "right_elbow"), 0.072),
    **dict.fromkeys(("left_wrist", "right_wrist"), 0.062),
    **dict.fromkeys(("left_hip", "right_hip"), 0.107),
    **dict.fromkeys(("left_knee", "right_knee"), 0.087),
    **dict.fromkeys(("left_ankle", "right_ankle"), 0.089),
}
"""Of people, in COCO's order: how far annotators were from each other, over the square root of the
object's area (pycocotools/cocoeval.py, `setKpParams`)."""
DEFAULT_SIGMA = 0.05
"""Of keypoints that are not COCO's: between its eyes (.025) and its hips (.107)."""


def sigmas_of(names: Sequence[str], given: float | Sequence[float] | None) -> tuple[float, ...]:
    """The sigma of each keypoint.

    Args:
        names: of the keypoints.
        given: `test.oks_sigmas`: one for all, or one of each. None: COCO's where all names are its
            own, else `DEFAULT_SIGMA`.

    Raises:
        InputError: as many as there are not.
    """
    if given is None:
        known = all(name in COCO_SIGMAS for name in names)
        return tuple(COCO_SIGMAS[x] if known else DEFAULT_SIGMA for x in names)
    if isinstance(given, float | int):
        return (float(given),) * len(names)
    if len(given) != len(names):
        raise InputError(
            f"test.oks_sigmas has {len(given)} numbers, but there are {len(names)} keypoints "
            f"({', '.join(names)}): give one number for all, or one of each"
        )
    return tuple(map(float, given))


def sigmas_line(names: Sequence[str], given: float | Sequence[float] | None) -> str:
    """A line that says by which sigmas keypoints are judged, and whose they are."""
    sigmas = sigmas_of(names, given)
    whose = "given by test.oks_sigmas"
    if given is None and sigmas == tuple(COCO_SIGMAS.get(name) for name in names):
        whose = "COCO's of people"
    elif given is None:
        whose = (
            "the default, as the names are not COCO's; what annotators differ by is not known, so "
            "AP compares with that of the same sigmas alone (test.oks_sigmas)"
        )
    each = [f"{name} {x:g}" for name, x in zip(names, sigmas, strict=True)]
    shown = f"{sigmas[0]:g} for each keypoint" if len(set(sigmas)) == 1 else ", ".join(each)
    return f"keypoint AP by OKS with sigma {shown}: {whose}"


def pixel_numbers(keypoints: np.ndarray) -> np.ndarray:
    """As COCO writes them: float64 [..., 3], x and y where a pixel's centre is its number, of
    continuous px, where it is half a px on; float32 of an image's size lose nothing."""
    points = keypoints.astype(np.float64)
    points[..., :2] -= 0.5
    return points


def scaled_distances(
    points: np.ndarray, truth: np.ndarray, areas: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """d / (2 sigma sqrt(area)), float64 [..., k]: at 1, oks of a keypoint is exp(-1/2) = .61.

    Args:
        points, truth: float [..., k, 3], that go together.
        areas: float [...], px².
    """
    far = np.hypot(*np.moveaxis(points[..., :2].astype(np.float64) - truth[..., :2], -1, 0))
    return far / (2 * np.asarray(sigmas) * np.sqrt(areas.astype(np.float64))[..., None])


def oks(
    points: np.ndarray,
    truth: np.ndarray,
    boxes: Sequence[Sequence[float]],
    areas: np.ndarray,
    sigmas: Sequence[float],
) -> np.ndarray:
    """Of each of d detections and each of g objects, float64 [d, g].

    An object without a labeled keypoint is an area to be ignored: similar is what has its keypoints
    within twice the object's box.

    Args:
        points: float [d, k, 3]: x, y in continuous px, score.
        truth: float [g, k, 3]: x, y, visibility.
        boxes: [g, 4] x, y, width, height.
        areas: float [g], px².
    """
    found, labeled = pixel_numbers(points), np.greater(truth[..., 2], 0)  # [g, k]
    away = found[:, None, :, :2] - pixel_numbers(truth)[None, ..., :2]  # [d, g, k, 2]
    corner, side = np.split(np.asarray(boxes, np.float64).reshape(-1, 1, 4), 2, axis=-1)
    beyond = np.maximum(corner - side - found[:, None, :, :2], 0)
    beyond += np.maximum(found[:, None, :, :2] - (corner + 2 * side), 0)
    known = np.asarray(labeled.any(1))
    away = np.where(known[:, None, None], away, beyond)
    variances = (2 * np.asarray(sigmas)) ** 2
    sizes = areas.astype(np.float64)[:, None] + np.spacing(1)
    terms = np.exp(-((away**2).sum(-1) / variances / sizes / 2))  # [d, g, k]
    counted = labeled | ~known[:, None]
    return (terms * counted).sum(-1) / counted.sum(-1)
