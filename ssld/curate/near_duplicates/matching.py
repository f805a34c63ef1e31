"""Are two images the same picture, edited? RootSIFT matches, an affine map, correlation of pixels.

Matching: Lowe 2004, "Distinctive Image Features from Scale-Invariant Keypoints", section 7.1 (the
ratio of nearest to second-nearest distance), both ways. Geometry: RANSAC (Fischler and Bolles 1981)
of an affine map, since a picture squashed to a square is no similarity. A mirrored copy is found
from the same descriptors: mirroring a picture permutes the bins of its descriptors. Where few
points match, the aligned pixels decide: other things on the same table share points too.

Descriptors are integers, so the matrix product of all pairs is exact in float32 and no result
depends on which other images were compared in the same call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ssld.curate.near_duplicates.sift import Features

RULE_VERSION = 1
"""Goes into every pairs table: raise it when `compare` or `verdicts` can say something else."""
RATIO = 0.8
"""Largest ratio of nearest to second-nearest distance: Lowe 2004, section 7.1."""
RANSAC_PX = 4.0
"""Farthest that an inlier may lie from where the affine map puts it, in px of the frame."""
RANSAC_ROUNDS = 1000
RANSAC_CONFIDENCE = 0.995
LARGEST_SCALE = 8.0
"""A map that enlarges or reduces more than this rests on a few px and is taken for chance."""
LARGEST_STRETCH = 3.0
"""Largest ratio of the map's singular values: a panorama squashed to a square has 3."""
MIN_INLIERS = 5
"""An affine map fits any 3 matches, so fewer than two more say nothing."""
SURE_INLIERS = 30
"""So many inliers need no second opinion. Two garments on one table had up to 29 in common, all of
them the table's, and their pictures agree in little else."""
SIMILAR_VIEW_INLIERS = 8
"""The same where another photograph of the same thing counts too."""
MIN_NCC = 0.5
"""Correlation of aligned pixels that makes fewer inliers a copy: 99 % of pairs of other garments on
the same table have less; 97 % of copies with 5 to 14 inliers have more, and all with 15."""
WINDOW_PX = 9
"""Side of the windows of a thumbnail in which correlation is taken: correlation of whole pictures
is .9 for any white shirt on any red cloth."""
NOISE, STRUCTURE = 0.0016, 0.01
"""Shares of the variance of all common pixels. Noise is added to a window's own, so that noise does
not count as difference; a window with less than structure in both pictures does not count."""
MIN_WINDOWS = 64
"""Fewer windows that count say nothing."""
STRUCTURELESS = 20
"""Reference images with fewer descriptors cannot be verified; their cosine decides."""
STRUCTURELESS_COSINE = 0.9
"""Of 60 photographs blurred until nothing was left to match, half of the edits have more, 4 of 300
other blurred photographs and no ordinary one of 3,000."""
DECIMALS = 4
"""Cosine and correlation are rounded to so many, so that no table hangs on the last bit."""

_MIRRORED_BINS = np.array(
    [
        (3 - row) * 32 + col * 8 + (8 - turn) % 8
        for row in range(4)
        for col in range(4)
        for turn in range(8)
    ]
)
"""Descriptors have 4 rows x 4 columns of cells x 8 directions in the keypoint's own frame, whose x
axis is its direction. Mirroring the picture turns the rows around and every angle's sign."""


@dataclass(frozen=True)
class Match:
    """What one pair of images has in common."""

    inliers: int
    """Distinct places of the query that the affine map puts onto their matches; 0 without a map."""
    mirrored: bool
    """The query is mirrored left to right."""
    affine: tuple[float, ...] | None
    """(a, b, c, d, e, f): a point x, y of the query's frame lies at (ax + by + c, dx + ey + f) of
    the other's frame; for a mirrored query x is `width - 1 - x` of it."""
    ncc: float | None
    """How alike the aligned pictures are where they overlap (`correlation`), -1 to 1."""


NO_MATCH = Match(0, False, None, None)


def compare(query: Features, others: Sequence[Features]) -> list[Match]:
    """The query against each of the others; every answer is that of the pair alone."""
    best = [NO_MATCH] * len(others)
    for mirrored in (False, True):
        for i, pairs in enumerate(matches(query, others, mirrored)):
            if len(pairs) > max(MIN_INLIERS - 1, best[i].inliers):  # else it cannot be better
                match, _ = _fit(query, others[i], pairs, mirrored)
                best[i] = match if match.inliers > best[i].inliers else best[i]
    return best


def inlier_points(query: Features, other: Features) -> tuple[np.ndarray, np.ndarray, Match]:
    """Matched points that the affine map explains, for drawing.

    Returns:
        float32 [n, 2] in the frame of the query as it is (mirrored or not), float32 [n, 2] in the
        frame of the other, and the same match as `compare` gives.
    """
    match = compare(query, [other])[0]
    if match.affine is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), match
    pairs = matches(query, [other], match.mirrored)[0]
    match, inlier = _fit(query, other, pairs, match.mirrored)
    return query.points[pairs[inlier, 0]], other.points[pairs[inlier, 1]], match


def verdicts(
    inliers: np.ndarray,
    ncc: np.ndarray,
    cosine: np.ndarray,
    structureless: np.ndarray,
    policy: str,
) -> np.ndarray:
    """Which pairs are duplicates, from columns of the pairs table; bool [n].

    Args:
        inliers: int [n].
        ncc: float [n], nan where there is none.
        cosine: float [n].
        structureless: bool [n]: the reference image has fewer than `STRUCTURELESS` descriptors.
        policy: `copy`: the same photograph. `similar_view`: also another photograph of the same
            thing, as far as enough of its points moved together; not promised: of two frames of
            a film the next one is found, most later ones are not.

    Raises:
        ValueError: another policy.
    """
    if policy not in ("copy", "similar_view"):
        raise ValueError(f"policy {policy!r} is neither 'copy' nor 'similar_view'")
    alike = np.nan_to_num(np.asarray(ncc, np.float64), nan=-1.0) >= MIN_NCC
    sure = SURE_INLIERS if policy == "copy" else SIMILAR_VIEW_INLIERS
    matched = (inliers >= sure) | ((inliers >= MIN_INLIERS) & alike)
    return np.where(structureless, np.asarray(cosine) >= STRUCTURELESS_COSINE, matched)


def mirrored_descriptors(descriptors: np.ndarray) -> np.ndarray:
    """Descriptors [n, 128] of the same keypoints in the mirrored picture."""
    return descriptors[:, _MIRRORED_BINS]


def matches(query: Features, others: Sequence[Features], mirrored: bool) -> list[np.ndarray]:
    """Mutual nearest neighbours that pass the ratio test: int [m, 2] per image, numbers in both."""
    counts = [len(other.points) for other in others]
    none = np.zeros((0, 2), np.int64)
    if not sum(counts) or not len(query.points):
        return [none] * len(others)
    descriptors = mirrored_descriptors(query.descriptors) if mirrored else query.descriptors
    # All images side by side, [n, sum of counts]: one large matrix product, several small searches.
    squares = _squared_distances(descriptors, np.concatenate([o.descriptors for o in others]))
    starts = np.cumsum([0, *counts])
    return [
        _mutual(squares[:, start : start + count]) if count >= 2 else none
        for start, count in zip(starts, counts, strict=False)
    ]


def _squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float32 [n, m] of descriptors uint8 [n, 128] and [m, 128], exact: every partial sum is a
    whole number below 2 ** 24."""
    left, right = left.astype(np.float32), right.astype(np.float32)
    squares = left @ right.T
    squares *= -2
    squares += np.einsum("ij,ij->i", left, left)[:, None]
    squares += np.einsum("ij,ij->i", right, right)
    return squares


def _mutual(squares: np.ndarray) -> np.ndarray:
    """The accepted pairs of one image: squared distances [n, m] -> int [k, 2]."""
    rows = np.arange(len(squares))
    nearest = squares.argmin(axis=1)  # [n]
    best = squares[rows, nearest]
    squares[rows, nearest] = np.inf  # for a moment, since sorting for two would take far longer
    second = squares.min(axis=1)
    squares[rows, nearest] = best
    passed = np.flatnonzero(best < RATIO**2 * second)  # few, where nothing is in common
    chosen = nearest[passed]
    mutual = squares[:, chosen].argmin(axis=0) == passed
    return np.stack([passed[mutual], chosen[mutual]], axis=1)


def _fit(
    query: Features, other: Features, pairs: np.ndarray, mirrored: bool
) -> tuple[Match, np.ndarray]:
    """The affine map of matched points, and which pairs it explains, bool [m]."""
    source, target = _points(query, mirrored)[pairs[:, 0]], other.points[pairs[:, 1]]
    # OpenCV seeds its RANSAC anew in each call: the same points give the same map.
    affine, mask = cv2.estimateAffine2D(
        source,
        target,
        method=cv2.RANSAC,
        ransacReprojThreshold=RANSAC_PX,
        maxIters=RANSAC_ROUNDS,
        confidence=RANSAC_CONFIDENCE,
    )
    if affine is None or not _plausible(affine):
        return NO_MATCH, np.zeros(len(pairs), bool)
    inlier = mask.ravel().astype(bool)
    inliers = min(_places(source[inlier]), _places(target[inlier]))
    ncc = correlation(query, other, affine, mirrored) if inliers >= MIN_INLIERS else None
    return Match(inliers, mirrored, tuple(float(v) for v in affine.ravel()), ncc), inlier


def _points(image: Features, mirrored: bool) -> np.ndarray:
    if not mirrored:
        return image.points
    x, y = image.points.T
    return np.stack([image.frame[0] - 1 - x, y], axis=1)


def _places(points: np.ndarray) -> int:
    """Points at distinct px: SIFT gives one place several keypoints where directions compete."""
    return len(np.unique(np.rint(points), axis=0))


def _plausible(affine: np.ndarray) -> bool:
    if not np.isfinite(affine).all() or np.linalg.det(affine[:, :2]) <= 0:
        return False
    large, small = np.linalg.svd(affine[:, :2], compute_uv=False)
    in_range = small * LARGEST_SCALE >= 1 and large <= LARGEST_SCALE
    return bool(in_range and large <= LARGEST_STRETCH * small)


def correlation(
    query: Features, other: Features, affine: np.ndarray, mirrored: bool
) -> float | None:
    """How alike the pictures are where they overlap: normalised cross-correlation in a window
    around each pixel of the thumbnails, the query's warped onto the other's, on average.

    Args:
        affine: float [2, 3], frame to frame, as in `Match`.

    Returns:
        -1 to 1, rounded; None where too little overlaps or has structure.
    """
    picture = query.thumbnail[:, ::-1] if mirrored else query.thumbnail
    # px of the query's thumbnail -> of its frame -> of the other's frame -> of its thumbnail
    to_frame, from_frame = _thumbnail_to_frame(query), _thumbnail_to_frame(other)
    warp = (np.linalg.inv(from_frame) @ np.vstack([affine, [0, 0, 1]]) @ to_frame)[:2]
    enlarged = float(np.sqrt(np.linalg.det(warp[:, :2])))  # the sharper one is made as coarse
    picture, still = _blurred(picture, 1 / enlarged), _blurred(other.thumbnail, enlarged)
    size = still.shape[1], still.shape[0]
    moved = cv2.warpAffine(picture, warp, size, flags=cv2.INTER_LINEAR)
    # bool [h, w]: px that lie wholly within both; at an edge they are mixed with black
    covered = cv2.warpAffine(np.full_like(picture, 255), warp, size, flags=cv2.INTER_LINEAR) == 255
    left, right = _standardised(moved, covered), _standardised(still, covered)
    if left is None or right is None:
        return None
    agreement = _agreement(left, right, covered)
    enough = len(agreement) >= MIN_WINDOWS
    return round(float(agreement.mean()), DECIMALS) if enough else None


def _blurred(picture: np.ndarray, times: float) -> np.ndarray:
    """As if it had been `times` as coarse. A picture is taken to be blurred by half of one of its
    px (Lowe 2004, section 3.3)."""
    picture = np.ascontiguousarray(picture)
    if times <= 1:
        return picture
    return cv2.GaussianBlur(picture, (0, 0), 0.5 * math.sqrt(times**2 - 1))


def _standardised(picture: np.ndarray, covered: np.ndarray) -> np.ndarray | None:
    """float64 [h, w], mean 0 and variance 1 over the covered pixels, 0 elsewhere; None if flat."""
    values = picture[covered].astype(np.float64)
    if not len(values) or not values.std():
        return None
    return np.where(covered, (picture - values.mean()) / values.std(), 0.0)


def _agreement(left: np.ndarray, right: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Correlation in each window with structure, float64 [n]; windows end where cover does."""

    def windowed(values: np.ndarray) -> np.ndarray:
        size = (WINDOW_PX, WINDOW_PX)
        summed = cv2.boxFilter(values, -1, size, normalize=False, borderType=cv2.BORDER_CONSTANT)
        return summed[covered] / members

    # Means, variances and covariance of all windows at once, from box sums; [px that are covered].
    members = 1.0
    members = windowed(covered.astype(np.float64))
    mean_left, mean_right = windowed(left), windowed(right)
    of_left = np.maximum(windowed(left * left) - mean_left**2, 0)
    of_right = np.maximum(windowed(right * right) - mean_right**2, 0)
    of_both = windowed(left * right) - mean_left * mean_right
    structured = np.maximum(of_left, of_right) > STRUCTURE
    agreement = of_both / np.sqrt((of_left + NOISE) * (of_right + NOISE))
    return agreement[structured]


def _thumbnail_to_frame(image: Features) -> np.ndarray:
    """float64 [3, 3]; pixel centres are whole numbers, so the corner of a picture is at -.5."""
    x = image.frame[0] / image.thumbnail.shape[1]
    y = image.frame[1] / image.thumbnail.shape[0]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
