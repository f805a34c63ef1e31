"""Vectors whose cosine says which reference images are worth a close look, and the search.

Whitening: Jegou and Chum 2012, "Negative evidences and co-occurrences in image retrieval: the
benefit of PCA and whitening" (ECCV), section 2.

Vectors are rounded to multiples of 1/2048, 11 bits: with lengths of 1, every partial sum of a dot
product is then exact in float32 (and each factor in TF32), so that a cosine depends on its two
vectors alone, not on batch size, device or threads. Their rounding moves a cosine by about 1e-4.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from ssld.curate.near_duplicates.hamming_embedding import evenly

VECTOR_UNIT = 2048
DIMENSIONS = 256
"""Whitened dimensions at most."""
FIT_ROWS = 20_000
"""Vectors, evenly spread, that whitening is fitted to: enough for a covariance of 2,048 numbers."""
SHRINKAGE = 0.1
"""Share of the average variance in every direction's: with few images a direction's own variance
is a guess (Ledoit and Wolf 2004, J. Multivariate Anal. 88, shrink to the same target)."""
MAX_GPU_DEPTH = 2048
"""Most neighbours that faiss finds on a GPU."""
TINY = 1e-12
"""Keeps zero over zero zero."""
VIEWS = 12
"""Per reference image. Without them 99.87 instead of 100 % of edited copies were among the first 10
of 596, without the one on a canvas 99.94."""


def views(pixels: np.ndarray, size: int) -> np.ndarray:
    """What an edited copy of a reference image may look like to a classifier.

    Args:
        pixels: uint8 [h, w, 3].
        size: side of the views in px.

    Returns:
        uint8 [VIEWS, size, size, 3], the whole frame squashed to a square first.
    """
    height, width = pixels.shape[:2]
    whole = _squash(pixels, size)
    crops = [
        _squash(pixels[_part(height, y, share), _part(width, x, share)], size)
        for share, y, x in ((0.7, 0.5, 0.5), (0.5, 0.5, 0.5), *_CORNERS)
    ]
    others = [_turned(whole, 15), _turned(whole, -15), _on_canvas(whole, 0.7)]
    upright = [whole, *crops, *others]
    return np.stack([upright[0], upright[0][:, ::-1], *upright[1:], upright[1][:, ::-1]])


_CORNERS = tuple((0.7, y, x) for y in (0.0, 1.0) for x in (0.0, 1.0))


def _part(length: int, place: float, share: float) -> slice:
    kept = max(1, round(length * share))
    start = round((length - kept) * place)
    return slice(start, start + kept)


def _squash(pixels: np.ndarray, size: int) -> np.ndarray:
    smaller = min(pixels.shape[:2]) >= size
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels), (size, size), interpolation=method)


def _turned(whole: np.ndarray, degrees: float) -> np.ndarray:
    size = len(whole)
    turn = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, 1)
    return cv2.warpAffine(whole, turn, (size, size), borderValue=(127, 127, 127))


def _on_canvas(whole: np.ndarray, share: float) -> np.ndarray:
    size = len(whole)
    canvas, inner = np.full_like(whole, 230), max(1, round(size * share))
    start = (size - inner) // 2
    canvas[start : start + inner, start : start + inner] = _squash(whole, inner)
    return canvas


class Whitening:
    """Makes directions in which reference images differ little count like those with much.

    Args:
        mean: float64 [d].
        directions: float64 [d, k], each divided by the deviation along it.
    """

    def __init__(self, mean: np.ndarray, directions: np.ndarray) -> None:
        self.mean, self.directions = mean, directions

    @staticmethod
    def fit(vectors: np.ndarray, dimensions: int = DIMENSIONS) -> Whitening:
        """Of vectors [n, d] of the reference set alone: no image of the pool has a say."""
        sample = vectors[evenly(len(vectors), FIT_ROWS)].astype(np.float64)
        mean = sample.mean(axis=0)
        variances, axes = _principal_axes(sample - mean, dimensions)
        average = ((sample - mean) ** 2).mean()
        shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * average
        return Whitening(mean, axes / np.sqrt(np.maximum(shrunk, TINY)))

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, k] of length 1, in multiples of 1 / `VECTOR_UNIT`, from float [n, d].

        In float64: the rounding then hides how many vectors were multiplied at once.
        """
        turned = (np.asarray(vectors, np.float64) - self.mean) @ self.directions
        unit = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), TINY)
        return (np.rint(unit * VECTOR_UNIT) / VECTOR_UNIT).astype(np.float32)


def _principal_axes(centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances [k], largest first, and axes [d, k] of rows [n, d], 1 <= k <= count."""
    n, d = centred.shape
    small = centred.T @ centred if d <= n else centred @ centred.T  # [min(n, d), min(n, d)]
    variances, axes = np.linalg.eigh(small / n)
    keep = np.argsort(-variances, kind="stable")[:count]
    positive = variances[keep] > 1e-10 * variances.max()
    keep = keep[positive] if positive.any() else keep[:1]
    variances, axes = variances[keep], axes[:, keep]
    if d > n:  # eigenvectors of the small matrix, turned into those of the large one
        axes = centred.T @ axes / np.sqrt(np.maximum(n * variances, TINY))
    return variances, axes


@dataclass(frozen=True)
class Shortlist:
    """For each of b images of the pool the reference images to look at; picklable."""

    vectors: np.ndarray
    """float32 [b, d]: whitened."""
    numbers: np.ndarray
    """int64 [b, k]: reference images, best first."""

    def __getitem__(self, rows: slice | np.ndarray) -> Shortlist:
        return Shortlist(self.vectors[rows], self.numbers[rows])


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the largest positive ones of scores [n], at most `count`; ties: the lower."""
    positive = np.flatnonzero(scores > 0)
    if len(positive) > count:
        least = np.partition(scores[positive], -count)[-count]
        positive = positive[scores[positive] >= least]
    return positive[np.argsort(-scores[positive], kind="stable")][:count]


def search(queries: np.ndarray, vectors: np.ndarray, per_image: int, count: int) -> np.ndarray:
    """The images with the best view each.

    Args:
        queries: float32 [b, d].
        vectors: float32 [n * per_image, d]: the views of each image side by side.

    Returns:
        int64 [b, min(count, n)], best first, ties to the lower number.
    """
    images = len(vectors) // per_image
    count = min(count, images)
    # So deep that no image's views can push another of the best `count` images out.
    depth = min(len(vectors), count * per_image)
    scores, rows = nearest(queries, vectors, depth)
    return np.stack(
        [_distinct(s, r // per_image, count) for s, r in zip(scores, rows, strict=True)]
    )


def nearest(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosines, float32 [b, count], and whose they are, int64 [b, count]; exactly, on a
    GPU if faiss sees one.

    Args:
        queries: float32 [b, d].
        vectors: float32 [n, d], n >= count.
    """
    import faiss  # here, because importing it takes 200 MB of every worker that does

    queries, metric = np.ascontiguousarray(queries, np.float32), faiss.METRIC_INNER_PRODUCT
    if faiss.get_num_gpus() and count <= MAX_GPU_DEPTH:
        return faiss.knn_gpu(_gpu(), queries, vectors, count, metric=metric)
    return faiss.knn(queries, vectors, count, metric=metric)


@functools.cache
def _gpu():
    """faiss's memory on the first GPU, kept between searches."""
    import faiss

    return faiss.StandardGpuResources()


def _distinct(scores: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """The best `count` different numbers in `images` [depth]."""
    order = np.lexsort((images, -scores))
    _, first = np.unique(images[order], return_index=True)
    return images[order][np.sort(first)][:count]
