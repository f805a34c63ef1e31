"""Which protected images a gallery image is compared with."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ssld.curate.near_duplicates.hamming_embedding import (
    MAX_BITS,
    WIDTH_BITS,
    HammingEmbedding,
    index,
)
from ssld.curate.near_duplicates.matching import compare, mirrored_descriptors, verdicts
from ssld.curate.near_duplicates.reference_set import Pair, ReferenceSet
from ssld.curate.near_duplicates.shortlist import (
    DIMENSIONS,
    SHRINKAGE,
    VECTOR_UNIT,
    VIEWS,
    Whitening,
    best,
    search,
    views,
)
from ssld.curate.near_duplicates.sift import Features, features_of
from tests.curate.test_sift import picture


@pytest.fixture(scope="module")
def images() -> list[Features]:
    return [features_of(picture(seed)) for seed in range(30)]


def embeddings_of(images: list[Features], seed: int = 0) -> np.ndarray:
    """float32 [n, VIEWS, 64]: random, views of one image near each other."""
    rng = np.random.default_rng(seed)
    whole = rng.normal(size=(len(images), 1, 64)) * np.linspace(0.2, 3, 64)
    return (whole + 0.2 * rng.normal(size=(len(images), VIEWS, 64))).astype(np.float32)


def bare() -> Features:
    return features_of(np.full((8, 8, 3), 40, np.uint8))


def test_views():
    pixels = picture(1)
    made = views(pixels, 64)
    assert made.shape == (VIEWS, 64, 64, 3) and made.dtype == np.uint8
    assert np.array_equal(made[0, :, ::-1], made[1])
    assert len({view.tobytes() for view in made}) == VIEWS
    for height, width in ((1, 1), (3, 200), (8, 8)):
        assert views(np.zeros((height, width, 3), np.uint8), 32).shape == (VIEWS, 32, 32, 3)


def test_whitening_makes_the_covariance_the_identity(monkeypatch):
    monkeypatch.setattr("ssld.curate.near_duplicates.shortlist.SHRINKAGE", 0.0)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4000, 12)) @ rng.normal(size=(12, 12)) + 5
    whitening = Whitening.fit(vectors)
    white = (vectors - vectors.mean(axis=0)) @ whitening.directions
    assert np.allclose(white.T @ white / len(white), np.eye(12), atol=1e-9)
    unit = white / np.linalg.norm(white, axis=1, keepdims=True)
    assert np.abs(whitening.apply(vectors) - unit).max() <= 0.5 / VECTOR_UNIT + 1e-6


def test_whitening_in_closed_form():
    """Eigenvectors of the covariance, whose values shrink towards their average."""
    rng = np.random.default_rng(1)
    vectors = (rng.normal(size=(500, 6)) * [1, 2, 3, 4, 5, 6]).astype(np.float32)
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    covariance = centred.T @ centred / 500
    values, axes = np.linalg.eigh(covariance)
    shrunk = (1 - SHRINKAGE) * values + SHRINKAGE * np.trace(covariance) / 6
    inverse = axes @ np.diag(1 / shrunk) @ axes.T
    directions = Whitening.fit(vectors).directions
    assert np.allclose(directions @ directions.T, inverse)


@pytest.mark.parametrize("count, d", [(1, 40), (3, 40), (36, 700), (500, 300)])
def test_whitening_of_few_and_many(count: int, d: int):
    vectors = np.random.default_rng(2).normal(size=(count, d)).astype(np.float16)
    whitening = Whitening.fit(vectors)
    white = whitening.apply(vectors)
    assert white.dtype == np.float32 and white.shape[1] <= min(DIMENSIONS, d)
    assert np.isfinite(white).all()
    if count > 1:
        assert np.allclose(np.linalg.norm(white, axis=1), 1, atol=0.01)


def test_cosines_are_exact_in_any_order():
    vectors = Whitening.fit(np.random.default_rng(3).normal(size=(900, 300))).apply(
        np.random.default_rng(4).normal(size=(50, 300))
    )
    exact = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.random.default_rng(5).permutation(vectors.shape[1])
    assert np.array_equal(vectors @ vectors.T, exact)
    assert np.array_equal(vectors[:, order] @ vectors[:, order].T, exact)
    assert np.array_equal(vectors[:1] @ vectors.T, exact[:1])


def test_best_breaks_ties_by_number():
    scores = np.array([0.5, 0.0, 2.0, 0.5, -1.0, 0.5])
    assert best(scores, 3).tolist() == [2, 0, 3]
    assert best(scores, 10).tolist() == [2, 0, 3, 5]
    assert best(np.zeros(4), 2).tolist() == []


def test_search_finds_images_by_their_best_view():
    rng = np.random.default_rng(6)
    vectors = rng.integers(-3, 4, (40, 5, 8)).astype(np.float32) / 4
    vectors[7] = vectors[3]  # a twin within the protected set
    queries = rng.integers(-3, 4, (25, 8)).astype(np.float32) / 4
    cosines = np.einsum("bd,nvd->bnv", queries, vectors).max(axis=2)
    expected = [np.lexsort((np.arange(40), -row))[:6] for row in cosines]
    found = search(queries, vectors.reshape(200, 8), 5, 6)
    assert np.array_equal(found, expected)
    assert search(queries, vectors.reshape(200, 8), 5, 99).shape == (25, 40)


def naive_votes(query: Features, images: list[Features], votes: HammingEmbedding) -> np.ndarray:
    """One pair of descriptors at a time."""
    from ssld.curate.near_duplicates.hamming_embedding import _file

    sides = [[f.descriptors, mirrored_descriptors(f.descriptors)] for f in images]
    filed = [[_file(side, votes._centres) for side in both] for both in sides]
    given = np.zeros((len(images), 2))
    total = 0.0
    for word, bits in zip(*_file(query.descriptors, votes._centres), strict=True):
        weights = np.zeros((len(images), 2))
        for i, both in enumerate(filed):
            for side, (words, others) in enumerate(both):
                for other in others[words == word]:
                    differ = int(bits ^ other).bit_count()
                    weights[i, side] += np.exp(-((differ / WIDTH_BITS) ** 2)) * (differ <= MAX_BITS)
        share = 1 / np.sqrt(max(1.0, weights.sum()))
        given += weights * share
        total += share
    return given.max(axis=1) / total


def test_votes_are_those_of_a_naive_loop(images):
    few = images[:6]
    counts = np.array([len(f.points) for f in few])
    votes = HammingEmbedding(index(np.concatenate([f.descriptors for f in few]), counts), len(few))
    query = features_of(picture(2)[20:180, 30:230])
    found = votes.votes(query.descriptors)
    assert np.allclose(found, naive_votes(query, few, votes))
    assert found.argmax() == 2
    flipped = features_of(np.ascontiguousarray(picture(2)[:, ::-1]))
    assert votes.votes(flipped.descriptors).argmax() == 2


def examined(
    protected: ReferenceSet,
    queries: list[Features | None],
    embeddings: np.ndarray | None,
    size: int,
) -> list[Pair]:
    """As a worker would, in batches of `size`."""
    shortlist = None if embeddings is None else protected.shortlist(embeddings)
    found = []
    for start in range(0, len(queries), size):
        part = (
            None
            if shortlist is None
            else pickle.loads(pickle.dumps(shortlist[start : start + size]))
        )
        for pair in protected.examine(queries[start : start + size], part):
            found.append(Pair(**{**pair.__dict__, "image": start + pair.image}))
    return found


@pytest.mark.parametrize("teacher", [False, True])
def test_batches_and_neighbours_change_nothing(tmp_path: Path, images, teacher: bool):
    known, queries = images[:20], [images[3], None, *images[15:25], bare()]
    given = embeddings_of(known) if teacher else None
    asked = embeddings_of(images, 1)[: len(queries), 0] if teacher else None
    protected = ReferenceSet.build(tmp_path / "set", known, given)
    alone = examined(protected, queries, asked, 1)
    assert (
        alone == examined(protected, queries, asked, 5) == examined(protected, queries, asked, 99)
    )
    back = None if asked is None else asked[::-1]
    turned = [
        Pair(**{**pair.__dict__, "image": len(queries) - 1 - pair.image})
        for pair in examined(protected, queries[::-1], back, 4)
    ]
    assert sorted(turned, key=lambda pair: (pair.image, pair.number)) == alone
    assert 1 not in {pair.image for pair in alone}


def test_pairs_are_those_of_compare(tmp_path: Path, images):
    protected = ReferenceSet.build(tmp_path / "set", images[:20], embeddings_of(images[:20]))
    query = features_of(picture(4)[15:, 20:])
    pairs = examined(protected, [query], embeddings_of(images, 2)[:1, 0], 1)
    assert len({pair.number for pair in pairs}) == len(pairs) >= 10
    for pair in pairs:
        match = compare(query, [images[pair.number]])[0]
        assert (pair.inliers, pair.mirrored, pair.affine, pair.ncc) == (
            match.inliers, match.mirrored, match.affine, match.ncc,
        )  # fmt: skip
        assert -1 <= pair.cosine <= 1


def test_the_teacher_finds_what_descriptors_do_not(tmp_path: Path, images):
    given = embeddings_of(images[:20])
    protected = ReferenceSet.build(tmp_path / "set", [*images[:19], bare()], given)
    assert protected.structureless.tolist() == [False] * 19 + [True]
    pairs = examined(protected, [bare()], given[19:, 0], 1)
    found = {pair.number: pair for pair in pairs}[19]
    assert found.cosine > 0.9 and found.inliers == 0
    columns = [np.array([value]) for value in (found.inliers, np.nan, found.cosine, True)]
    assert verdicts(*columns, "copy")[0]
    assert all(pair.cosine < 0.9 for pair in pairs if pair.number != 19)


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("teacher", [False, True])
def test_small_protected_sets(tmp_path: Path, images, count: int, teacher: bool):
    known = images[:count]
    given = embeddings_of(known) if teacher else None
    protected = ReferenceSet.build(tmp_path / "set", known, given)
    assert len(protected) == count
    asked = None if given is None else given[:, 0]
    copies = [
        features_of(np.ascontiguousarray(picture(i)[10:190, 240:10:-1])) for i in range(count)
    ]
    pairs = examined(
        protected,
        [*copies, images[25]],
        None if asked is None else np.vstack([asked, asked[:1]]),
        8,
    )
    sure = [(pair.image, pair.number) for pair in pairs if pair.inliers >= 15]
    assert sure == [(i, i) for i in range(count)]
    assert all(pair.mirrored for pair in pairs if pair.inliers >= 15)


def test_one_blank_protected_image(tmp_path: Path):
    """No direction is left to be whitened, and no descriptor to vote."""
    same = np.ones((1, VIEWS, 64), np.float32)
    protected = ReferenceSet.build(tmp_path / "set", [bare()], same)
    pairs = examined(protected, [bare(), bare()], np.vstack([same[0, :1], 0 * same[0, :1]]), 2)
    assert [(pair.image, pair.number, pair.cosine) for pair in pairs] == [(0, 0, 0), (1, 0, 0)]


def test_sets_without_any_structure(tmp_path: Path, images):
    protected = ReferenceSet.build(tmp_path / "set", [bare(), bare()], None)
    assert protected.structureless.all()
    assert protected.examine([images[0], bare(), None], None) == []
    mixed = ReferenceSet.build(tmp_path / "mixed", [bare(), images[0], bare()], None)
    assert [pair.number for pair in mixed.examine([images[0], bare()], None)] == [1]


def test_the_folder_is_the_same_each_time(tmp_path: Path, images):
    for name in ("one", "two"):
        ReferenceSet.build(tmp_path / name, iter(images[:8]), embeddings_of(images[:8]))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "teacher.npy" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    reopened = ReferenceSet(tmp_path / "one").features(5)
    for name in ("points", "descriptors", "thumbnail"):
        assert np.array_equal(getattr(reopened, name), getattr(images[5], name))
    assert reopened.frame == images[5].frame


def test_without_a_teacher_there_is_no_shortlist(tmp_path: Path, images):
    protected = ReferenceSet.build(tmp_path / "set", images[:2], None)
    with pytest.raises(ValueError, match="built without embeddings"):
        protected.shortlist(np.zeros((1, 64)))
