"""Which pairs of images are the same picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ssld.curate.near_duplicates import matching
from ssld.curate.near_duplicates.matching import (
    NO_MATCH,
    Match,
    compare,
    correlation,
    inlier_points,
    verdicts,
)
from ssld.curate.near_duplicates.sift import Features, features, features_of
from tests.curate.test_sift import encoded, picture


def brute_force(query: Features, other: Features) -> list[tuple[int, int]]:
    """Lowe's rule, both ways, one descriptor at a time in float64."""
    left, right = query.descriptors.astype(np.float64), other.descriptors.astype(np.float64)

    def nearest(vector: np.ndarray, others: np.ndarray) -> tuple[int, float, float]:
        distance = [float(np.linalg.norm(vector - o)) for o in others]
        order = sorted(range(len(distance)), key=lambda i: (distance[i], i))
        return order[0], distance[order[0]], distance[order[1]]

    found = []
    for i, vector in enumerate(left):
        j, best, second = nearest(vector, right)
        if best < 0.8 * second and nearest(right[j], left)[0] == i:
            found.append((i, j))
    return found


def judged(match: Match, policy: str = "copy") -> bool:
    ncc = np.array([np.nan if match.ncc is None else match.ncc])
    no = np.array([False])
    return bool(verdicts(np.array([match.inliers]), ncc, np.array([0.0]), no, policy)[0])


@pytest.fixture(scope="module")
def pictures() -> list[Features]:
    return [features_of(picture(seed)) for seed in range(12)]


def test_matches_are_those_of_a_naive_loop(pictures):
    copy = features(encoded(picture(0), ".jpg"))
    for other in (pictures[0], pictures[1]):
        found = matching.matches(copy, [other], mirrored=False)[0]
        assert [tuple(pair) for pair in found.tolist()] == brute_force(copy, other)


def test_a_batch_gives_what_single_comparisons_give(pictures):
    query = features_of(picture(3)[10:180, 20:220, :])
    together = compare(query, pictures)
    assert together == [compare(query, [other])[0] for other in pictures]
    assert together == compare(query, pictures[::-1])[::-1]
    assert together == compare(query, pictures)
    assert [i for i, match in enumerate(together) if judged(match)] == [3]


def test_unrelated_pictures_are_clear(pictures):
    for i, query in enumerate(pictures):
        others = pictures[:i] + pictures[i + 1 :]
        assert not any(
            judged(m, p) for m in compare(query, others) for p in ("copy", "similar_view")
        )


def edits() -> dict[str, np.ndarray]:
    """Edited pixels of picture(0), with the affine map edited -> original, both in px."""
    pixels = picture(0)
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 20, 1)
    page = np.full((400, 500, 3), 240, np.uint8)
    page[120 : 120 + height, 60 : 60 + width] = pixels
    grey = np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    return {
        "smaller": cv2.resize(pixels, (width // 3, height // 3), interpolation=cv2.INTER_AREA),
        "square": cv2.resize(pixels, (150, 150), interpolation=cv2.INTER_AREA),
        "crop": pixels[40:160, 50:200],
        "rotated": cv2.warpAffine(pixels, turn, (width, height)),
        "page": page,
        "blurred": cv2.GaussianBlur(pixels, (0, 0), 2),
        "grey": grey,
        "faded": (pixels // 4 + 150).astype(np.uint8),
        "damaged": cv2.imdecode(
            cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 12])[1], cv2.IMREAD_COLOR_RGB
        ),
    }


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("edit", edits())
def test_edited_copies_are_found(pictures, edit: str, mirrored: bool):
    pixels = edits()[edit][:, ::-1] if mirrored else edits()[edit]
    found = compare(features_of(np.ascontiguousarray(pixels)), pictures)
    assert judged(found[0])
    assert found[0].mirrored == mirrored
    assert found[0].ncc is not None and found[0].ncc > 0.6
    assert not any(judged(match) for match in found[1:])


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_map_leads_from_the_query_to_the_other(pictures, mirrored: bool):
    left, top, right, bottom = 60, 40, 200, 150
    pixels = picture(0)[top:bottom, left:right]
    query = features_of(np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels)
    match = compare(query, [pictures[0]])[0]
    assert match.affine is not None
    a, b, c, d, e, f = match.affine
    scale = query.frame[0] / (right - left)
    # In px of the crop as it was cut out: the map of a mirrored query takes it mirrored back.
    for x, y in ((5, 8), (120, 20), (70, 100)):
        at = (x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5
        found = a * at[0] + b * at[1] + c, d * at[0] + e * at[1] + f
        full = pictures[0].frame[0] / picture(0).shape[1]
        expected = (left + x + 0.5) * full - 0.5, (top + y + 0.5) * full - 0.5
        assert np.allclose(found, expected, atol=2.5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_inlier_points_are_where_the_map_says(pictures, mirrored: bool):
    pixels = picture(0)[:, ::-1] if mirrored else picture(0)
    query = features_of(np.ascontiguousarray(pixels[20:, 30:]))
    mine, theirs, match = inlier_points(query, pictures[0])
    assert match == compare(query, [pictures[0]])[0] and len(mine) == len(theirs) >= match.inliers
    x, y = mine.T
    x = query.frame[0] - 1 - x if mirrored else x
    a, b, c, d, e, f = match.affine
    moved = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
    assert np.linalg.norm(moved - theirs, axis=1).max() <= matching.RANSAC_PX + 0.01


def test_inlier_points_of_unrelated_pictures(pictures):
    mine, theirs, match = inlier_points(pictures[0], pictures[1])
    assert len(mine) == len(theirs) and (match.affine is not None or len(mine) == 0)


def test_bare_images_match_nothing(pictures):
    bare = features_of(np.full((8, 8, 3), 7, np.uint8))
    assert compare(bare, pictures[:2]) == [NO_MATCH] * 2
    assert compare(pictures[0], [bare, pictures[0], bare])[::2] == [NO_MATCH] * 2
    assert compare(pictures[0], []) == []
    assert inlier_points(bare, bare)[2] == NO_MATCH


def lookalike(points: np.ndarray) -> Features:
    """Distinct descriptors at given points, the same for the same number of points."""
    rng = np.random.default_rng(9)
    descriptors = rng.integers(0, 90, (len(points), 128)).astype(np.uint8)
    thumbnail = rng.integers(0, 255, (48, 64)).astype(np.uint8)
    return Features(points.astype(np.float32), descriptors, thumbnail, (256, 192))


@pytest.mark.parametrize(
    "map_", [np.array([[1, 0], [0, 0.1]]), np.array([[0.1, 0], [0, 0.1]]), np.diag([-1, 1])]
)
def test_implausible_maps_are_refused(map_: np.ndarray):
    """A stretch of 10, a reduction by 10, and a mirror image whose descriptors are not mirrored."""
    points = np.random.default_rng(1).uniform(0, 190, (60, 2))
    assert compare(lookalike(points), [lookalike(points @ map_.T + 100)]) == [NO_MATCH]
    shifted = compare(lookalike(points), [lookalike(points + 20)])[0]
    assert shifted.inliers > 50 and np.allclose(shifted.affine, (1, 0, 20, 0, 1, 20), atol=1e-3)


def test_one_place_counts_once():
    """SIFT gives a place as many keypoints as it has directions; they are no further evidence."""
    places = np.random.default_rng(2).uniform(0, 190, (7, 2))
    points = np.repeat(places, 4, axis=0)
    assert compare(lookalike(points), [lookalike(points)])[0].inliers == 7


def thumbnails(*pictures: np.ndarray) -> list[Features]:
    none = np.zeros((0, 2)), np.zeros((0, 128))
    return [
        Features(*none, picture, (picture.shape[1] * 2, picture.shape[0] * 2))
        for picture in pictures
    ]


def naive_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Window by window, of pictures that cover each other."""
    left, right = ((p.astype(np.float64) - p.mean()) / p.std() for p in (left, right))
    half, found = matching.WINDOW_PX // 2, []
    for y in range(left.shape[0]):
        for x in range(left.shape[1]):
            place = slice(max(0, y - half), y + half + 1), slice(max(0, x - half), x + half + 1)
            a, b = left[place], right[place]
            if max(a.var(), b.var()) > matching.STRUCTURE:
                power = np.sqrt((a.var() + matching.NOISE) * (b.var() + matching.NOISE))
                found.append(((a - a.mean()) * (b - b.mean())).mean() / power)
    return float(np.mean(found))


def test_correlation_is_that_of_a_naive_loop():
    rng = np.random.default_rng(3)
    left = rng.integers(0, 256, (48, 64)).astype(np.uint8)
    right = (left // 2 + rng.integers(0, 100, left.shape)).astype(np.uint8)
    right[:, 40:] = 77  # nothing is there
    here, there = thumbnails(left, right)
    same = np.array([[1.0, 0, 0], [0, 1, 0]])
    shift = np.array([[1.0, 0, 20], [0, 1, -10]])  # 10 and -5 px of the thumbnail
    expected = naive_correlation(left, right)
    assert correlation(here, there, same, False) == pytest.approx(expected, abs=1e-4)
    expected = naive_correlation(left[5:, :-10], right[:-5, 10:])
    assert correlation(here, there, shift, False) == pytest.approx(expected, abs=1e-4)
    expected = naive_correlation(left[:, ::-1], right)
    assert correlation(here, there, same, True) == pytest.approx(expected, abs=1e-4)


def test_correlation_of_too_little():
    picture = np.random.default_rng(4).integers(0, 256, (48, 64)).astype(np.uint8)
    here, flat = thumbnails(picture, np.full_like(picture, 5))
    same = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert correlation(here, flat, same, False) is None
    assert correlation(flat, here, same, True) is None
    assert correlation(here, here, np.array([[1.0, 0, 126], [0, 1, 0]]), False) is None


def test_correlation_does_not_mind_contrast_or_size():
    grey = cv2.cvtColor(picture(6), cv2.COLOR_RGB2GRAY)
    whole = cv2.resize(grey, (128, 96), interpolation=cv2.INTER_AREA)
    faded = (whole // 4 + 100).astype(np.uint8)
    coarse = cv2.resize(grey, (32, 24), interpolation=cv2.INTER_AREA)
    first, second, third = thumbnails(whole, faded, coarse)
    same = np.array([[1.0, 0, 0], [0, 1, 0]])
    larger = np.array([[4.0, 0, 1.5], [0, 4, 1.5]])  # frames are twice the thumbnails
    assert correlation(second, first, same, False) > 0.9
    assert correlation(third, first, larger, False) > 0.7
    assert correlation(first, third, np.linalg.inv(np.vstack([larger, [0, 0, 1]]))[:2], False) > 0.7


def test_the_same_table_is_not_the_same_picture():
    """Two things on one patterned cloth: enough inliers, and pixels that disagree."""
    rng = np.random.default_rng(7)
    cloth = cv2.resize(rng.integers(90, 160, (40, 52, 3)).astype(np.uint8), (260, 200))
    one, two = cloth.copy(), cloth.copy()
    one[20:180, 30:230], two[20:180, 30:230] = (
        picture(8)[20:180, 30:230],
        picture(9)[20:180, 30:230],
    )
    match = compare(features_of(one), [features_of(two)])[0]
    assert match.inliers >= matching.MIN_INLIERS
    assert match.ncc is not None and match.ncc < matching.MIN_NCC


def test_verdicts():
    rows = [  # inliers, ncc, cosine, structureless: copy, similar view
        (30, np.nan, 0, False, True, True),
        (29, 0.49, 1, False, False, True),
        (29, np.nan, 1, False, False, True),
        (8, 0.0, 0, False, False, True),
        (7, 0.49, 1, False, False, False),
        (5, 0.5, 0, False, True, True),
        (4, 1.0, 1, False, False, False),
        (40, 1.0, 0.89, True, False, False),
        (0, np.nan, 0.9, True, True, True),
    ]
    inliers, ncc, cosine, structureless, copy, view = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    assert verdicts(inliers, ncc, cosine, structureless, "copy").tolist() == copy.tolist()
    assert verdicts(inliers, ncc, cosine, structureless, "similar_view").tolist() == view.tolist()
    empty = np.zeros(0)
    assert verdicts(empty, empty, empty, empty.astype(bool), "copy").shape == (0,)
    with pytest.raises(ValueError, match="'same' is neither 'copy' nor 'similar_view'"):
        verdicts(inliers, ncc, cosine, structureless, "same")
